"""Running a sweep: what is missing, in rounds on a cluster or one by one in this process.

Begins and ends it; what goes on in a round is in sweeps.cluster_round, the stages themselves in
sweeps.stages. Knows nothing of the command line.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.resources import Totals
from cluster.session import local_totals, session
from em.api_finetune import FineTuning
from em.datasets import Row
from em.sandboxes import check_sandboxes
from sweeps.api_jobs import Ending
from sweeps.api_spend import open_purse, purse_plans
from sweeps.api_training import ApiTrainings, train_by_api
from sweeps.attempts import Beat, live_drivers
from sweeps.cluster_round import ClusterRound, Tasks
from sweeps.console import QUIET
from sweeps.engines import Engines, start_engine
from sweeps.evaluation_pass import EvaluationTask, check_judges, evaluate_cell
from sweeps.graders import check_graders, grader_plans, graders_needed
from sweeps.layout import feasible, judge_models, pool_models
from sweeps.leases import HeldElsewhere
from sweeps.outcomes import Outcomes
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.planner import load_rows_of
from sweeps.pools import Pools, stop_left_behind
from sweeps.preflight import PASSED, check_passed, lines, preflight
from sweeps.progress import SweepProgress
from sweeps.registry import register
from sweeps.spend import budget_plans
from sweeps.stages import ask_again
from sweeps.store import Store
from sweeps.todo import Todo, read_todo
from sweeps.tracking import Tracking
from sweeps.training_pass import TrainTask, train_task
from sweeps.waiting import Others


def run_sweep(
    plan: SweepPlan,
    store: Store,
    todo: Todo,
    *,
    relative_to: Path,
    address: str | None,
    inline: bool,
    progress: SweepProgress,
    again: bool = False,
) -> None:
    """Do what is missing of the cells `todo`. Failures are in the store when this returns.

    With `again`, judgements of theirs whose call failed are missing, too. Raises ValueError where
    the cluster cannot be joined or is too small.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    if address is None:  # before anything is started, where it can be known
        feasible(plan.spec, todo, local_totals())
        answered = (e for cell in todo.lacking("generate") for e in cell.evaluations)
        check_sandboxes(e.task.sandbox for e in answered if e.task is not None)
    asyncio.run(check_judges(plan.spec))
    asyncio.run(check_graders(graders_needed(todo.cells, store)))
    driver = _Driver(plan, store, todo, relative_to, progress)
    try:
        register(plan, store)
        driver.tracking.start()
        if again:
            driver.ask_again()
        driver.inline() if inline else driver.on_cluster(address)
        driver.tracking.close()
    finally:
        driver.close()


class _Driver:
    """The process that carries out a sweep."""

    def __init__(
        self,
        plan: SweepPlan,
        store: Store,
        todo: Todo,
        relative_to: Path,
        progress: SweepProgress,
    ) -> None:
        self._plan, self._store, self._progress = plan, store, progress
        self._spec, self._relative_to = plan.spec, relative_to
        self._budgets = budget_plans(plan)
        self._graders = grader_plans(plan)
        self._purses = {purse.model: purse for purse in purse_plans(plan)}
        self._joined = False
        self.beat = Beat(store, plan.spec.name)
        self._holder = self.beat.holder
        self._others = Others(store, progress.say)
        self.tracking = Tracking(plan, store, self.beat.driver, progress.say)
        self._outcomes = Outcomes(plan.spec, store, self.beat, progress, self.tracking)
        self._todo = todo  # the cells at first, later those that another driver has let go

    def _rounds(self) -> Iterator[None]:
        """Yield once, and again as long as other drivers let go of cells that are not done."""
        yield
        while self._outcomes.elsewhere:
            waiting, self._outcomes.elsewhere = self._outcomes.elsewhere, []
            free = self._others.wait_for(waiting, self._holder)
            self._holder = replace(self._holder, dead=free.dead)
            training = {cell.cell_id for cell in self._todo.lacking("train")}
            for cell in free.done:
                if cell.cell_id in training:
                    self._progress.done("train", cell.cell_id)
                self._outcomes.done(cell)
            for cell, attempt in free.failed:
                self._outcomes.failed_elsewhere(cell, attempt)
            self._outcomes.elsewhere += free.still_waiting
            if free.todo:
                self._todo = read_todo(free.todo, self._store)
                yield

    # On a cluster --------------------------------------------------------------------------------

    def on_cluster(self, address: str | None) -> None:
        """Carry out the cells on the Ray cluster at `address`, or on one started here."""
        self._joined = address is not None
        where = "starting Ray" if address is None else f"joining the Ray cluster at {address}"
        self._progress.say(where)
        with contextlib.ExitStack() as stack:
            with self.beat.starting("Ray"):
                totals = stack.enter_context(session(address, environment=QUIET))
            self._check(totals)
            for _ in self._rounds():
                if self._joined:  # before training, which may need what they hold
                    own = (model for model in self._spec.models if model.api is None)
                    models = [*own, *judge_models(self._spec)]
                    stop_left_behind(self._spec, self._store, models)
                layout = feasible(self._spec, self._todo, totals)
                self._progress.say(str(layout))
                self._round()

    def _check(self, totals: Totals) -> None:
        """Ask every node of a cluster that was joined, before anything is started there."""
        if not self._joined:
            return
        checks = preflight(self._spec, self._store, self._todo, totals, joined=True)
        for line in lines(checks):
            self._progress.say(line)
        check_passed(checks)
        self._progress.say(PASSED)

    def _is_beside(self) -> bool:
        """Whether another driver of the sweep is at work: idle engines of ours are in its way."""
        live = live_drivers(self._store, self._spec.name)
        return any(beat.driver != self.beat.driver for beat in live)

    def _round(self) -> None:
        tasks = Tasks(
            train=self._train_task,
            evaluate=self._evaluation_task,
            rows=self._rows,
            by_api=self._api_trainings,
        )
        pools = Pools(self._spec, self._store, self.beat, joined=self._joined)
        ClusterRound(
            self._spec,
            self._todo,
            tasks=tasks,
            pools=pools,
            outcomes=self._outcomes,
            progress=self._progress,
            is_crowded=self._is_beside,
        ).run()

    def ask_again(self) -> None:
        """Have failed judgements count as missing, but for those that another driver works on."""
        for cell in self._todo.cells:
            with contextlib.suppress(HeldElsewhere):
                ask_again(cell, self._store, self._holder)
        self._todo = read_todo(self._todo.cells, self._store)

    def close(self) -> None:
        """Say that this driver has ended."""
        self.tracking.close(at_once=True)  # where the end is not a good one
        self.beat.close()

    def _rows(self, cells: Iterable[CellPlan]) -> dict[str, tuple[Row, ...]]:
        needed = {cell.content_sha256: cell for cell in cells}
        return {
            key: load_rows_of(cell, relative_to=self._relative_to).rows
            for key, cell in needed.items()
            if key is not None
        }

    def _train_task(self, cell: CellPlan) -> TrainTask:
        return TrainTask(
            plan=cell.model_copy(update={"evaluations": (), "judgings": ()}),
            store=self._store.url,
            holder=self._holder,
            retries=self._spec.retries,
            resources=self._spec.for_model(cell.cell.model.name).resources,
        )

    def _evaluation_task(self, cell: CellPlan, pools: Mapping[str, str]) -> EvaluationTask:
        return EvaluationTask(
            plan=cell,
            spec=self._spec,
            store=self._store.url,
            holder=self._holder,
            pools=pools,
            budgets=self._budgets,
            purse=self._purses.get(cell.cell.model.name),
            graders=self._graders,
        )

    def _api_trainings(
        self,
        on_done: Callable[[CellPlan], None],
        beside: Callable[[Callable[[], None]], threading.Thread],
    ) -> ApiTrainings:
        return ApiTrainings(
            self._store,
            self._holder,
            tries=self._spec.retries + 1,
            purses=tuple(self._purses.values()),
            say=self._progress.say,
            on_done=on_done,
            beside=beside,
        )

    def _by_api_here(self, cell: CellPlan, rows: Sequence[Row], tries: int) -> None:
        assert cell.cell.model.api is not None
        tuning = FineTuning(cell.cell.model.api)
        try:
            train_by_api(
                cell, self._store, tuning, rows=rows, stopped=Ending(),
                purse=open_purse(self._purses[cell.cell.model.name], self._store),
                say=self._progress.say, holder=self._holder, tries=tries,
            )  # fmt: skip
        finally:
            tuning.close()

    # In this process -----------------------------------------------------------------------------

    def inline(self) -> None:
        """Carry out every cell here, in order: a breakpoint anywhere is reached."""
        if not self._spec.resources.train_gpus and not self._spec.resources.serve_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as Ray does for who holds none
        wanted = pool_models(self._spec, self._todo)
        engines = Engines(wanted, start_engine(self._spec))
        try:
            with asyncio.Runner() as runner:
                for _ in self._rounds():
                    rows = self._rows(self._todo.lacking("train"))
                    for cell in self._todo.cells:
                        self._cell_here(cell, rows, engines, runner)
        finally:
            engines.close()

    def _cell_here(
        self,
        cell: CellPlan,
        rows: Mapping[str, Sequence[Row]],
        engines: Engines,
        runner: asyncio.Runner,
    ) -> None:
        tries = self._spec.retries + 1
        if "train" in stages_to_run(cell, self._store):
            assert cell.content_sha256 is not None
            self._progress.begin("train")
            if cell.cell.model.api is not None:
                self._by_api_here(cell, rows[cell.content_sha256], tries)
            else:
                train_task(self._train_task(cell), rows[cell.content_sha256], tries=tries)
            if not self._outcomes.trained(cell, by=cell.cell_id):
                return
        engines.start(
            model.name for model in pool_models(self._spec, read_todo([cell], self._store))
        )
        task = self._evaluation_task(cell, {})
        self._outcomes.evaluated(cell, evaluate_cell(task, engines, runner, tries=tries))
