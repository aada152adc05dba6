"""Cells whose stages take no time, carried out by the real driver's round on a real Ray.

Stand-ins are passed as arguments: trainings and answers write what the store wants of them, engines
answer at once. Knows nothing of what is measured or asserted.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from finished_store import Asked, trainer
from small_sweep import FakeEndpoint, FakeReader

from cluster.requests import EngineDead
from cluster.serving import PoolState
from em.datasets import Row
from em.models import ModelConfig
from sweeps.api_training import ApiTrainings
from sweeps.artefacts import TrainingRecord
from sweeps.attempts import Beat
from sweeps.cluster_round import LOOK_S, ClusterRound, Tasks
from sweeps.console import QUIET
from sweeps.evaluation_pass import EvaluationTask
from sweeps.failures import Outcome, attempt_cell, failure_of
from sweeps.leases import Holder
from sweeps.outcomes import Outcomes
from sweeps.plan import CellPlan, SweepPlan
from sweeps.progress import SweepProgress
from sweeps.registry import register
from sweeps.stages import generate_stage, judge_stage, run_cell, train_stage
from sweeps.store import Store
from sweeps.todo import read_todo
from sweeps.tracking import Tracking
from sweeps.training_pass import TrainTask


def train(task: TrainTask, rows: Sequence[Row]) -> Outcome:
    """Write a training as the real one does, but for the weights, which are a line of text."""
    store, fake = Store(task.store), trainer(Asked(), "", 64)

    def work(on_stage: object) -> None:
        train_stage(task.plan, store, fake, model_dir=Path("model"), rows=rows, holder=task.holder)

    return attempt_cell(
        store, task.holder.sweep, task.plan.cell_id, task.holder.driver, work, first_stage="train"
    )


def evaluate(task: EvaluationTask) -> Outcome:
    """Answer and judge a cell by stand-ins."""
    store = Store(task.store)

    def speak(trained: TrainingRecord | None) -> FakeEndpoint:
        return FakeEndpoint(trained.weights_sha256 if trained else "")

    def never(plan: CellPlan, store: Store) -> None:
        raise RuntimeError(f"{plan.cell_id} is not trained")

    def work(on_stage: object) -> None:
        readers = {judging.judge: FakeReader() for judging in task.plan.judgings}
        run_cell(
            task.plan,
            store,
            train=never,
            generate=lambda c, s: asyncio.run(generate_stage(c, s, speak, task.holder)),
            judge=lambda c, s: asyncio.run(judge_stage(c, s, readers, task.holder)),
            on_stage=on_stage,  # type: ignore[arg-type]
        )

    return attempt_cell(
        store, task.holder.sweep, task.plan.cell_id, task.holder.driver, work,
        first_stage="generate",
    )  # fmt: skip


SEEN_WITHIN_S = 120.0


def found_dead(store: Path) -> Path:
    """The file that is there once a cell has found its engine dead."""
    return store / "found-dead"


def seen_lost(store: Path) -> Path:
    """The file that is there once a driver was told that its engines are lost."""
    return store / "seen-lost"


def evaluate_but_once(task: EvaluationTask) -> Outcome:
    """The same, but for the first cell of all, whose engine is found dead.

    As with a real one, the cell fails after its driver has seen that the engine is lost, which the
    driver's pools tell by a file.
    """
    store = Path(task.store)
    try:
        found_dead(store).touch(exist_ok=False)
    except FileExistsError:
        return evaluate(task)
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not seen_lost(store).exists():
        if time.monotonic() > deadline:
            raise AssertionError("the driver never looked at its engines")
        time.sleep(0.1)
    time.sleep(LOOK_S)
    return failure_of(EngineDead("the pool was stopped"), task.plan.cell_id, "generate")


class InstantPools:
    """Engines that answer at once; remembers when each started and stopped."""

    joined = False

    def __init__(self) -> None:
        self.events: list[tuple[float, str, str]] = []
        self._lock = threading.Lock()

    def name(self, engine: str) -> str:
        return engine

    def start(self, model: ModelConfig, engine: str) -> bool:
        self._note("start", engine)
        return True

    def stop(self, engine: str) -> None:
        self._note("stop", engine)

    def look(self) -> dict[str, PoolState | None]:
        ended = {engine for _, what, engine in self.events if what == "stop"}
        started = {engine for _, what, engine in self.events if what == "start"}
        return dict.fromkeys(started - ended, "running")

    def give_up(self) -> None:
        self._note("give up", "")

    def _note(self, what: str, engine: str) -> None:
        with self._lock:
            self.events.append((time.monotonic(), what, engine))


def carry_out(
    sweep: SweepPlan,
    store: Store,
    progress: SweepProgress,
    rows: Callable[[CellPlan], tuple[Row, ...]],
    pools: InstantPools,
    cells: Sequence[CellPlan] | None = None,
    work: Callable[[EvaluationTask], Outcome] = evaluate,
) -> Outcomes:
    """Have a round do all `cells` (those of the sweep) on the Ray that is joined."""
    os.environ.update(QUIET)  # as run_sweep does
    store.create()
    register(sweep, store)
    beat = Beat(store, sweep.spec.name)
    tracking = Tracking(sweep, store, beat.driver, progress.say)
    outcomes = Outcomes(sweep.spec, store, beat, progress, tracking)
    tasks = Tasks(
        train=partial(_train_task, sweep, store, beat.holder),
        evaluate=partial(_evaluation_task, sweep, store, beat.holder, work),
        rows=lambda cells: {c.content_sha256 or "": rows(c) for c in cells},
        by_api=lambda on_done, beside: ApiTrainings(
            store, beat.holder, tries=1, purses=(), say=progress.say, on_done=on_done, beside=beside
        ),
    )
    try:
        ClusterRound(
            sweep.spec, read_todo(cells or sweep.cells, store),
            tasks=tasks, pools=pools,  # type: ignore[arg-type]
            outcomes=outcomes, progress=progress, is_crowded=lambda: False,
        ).run()  # fmt: skip
    finally:
        beat.close()
    return outcomes


def _train_task(sweep: SweepPlan, store: Store, holder: Holder, cell: CellPlan) -> TrainTask:
    return TrainTask(
        plan=cell, store=store.url, holder=holder, retries=0, resources=sweep.spec.resources,
        work=train,
    )  # fmt: skip


def _evaluation_task(
    sweep: SweepPlan,
    store: Store,
    holder: Holder,
    work: Callable[[EvaluationTask], Outcome],
    cell: CellPlan,
    pools: Mapping[str, str],
) -> EvaluationTask:
    return EvaluationTask(
        plan=cell, spec=sweep.spec, store=store.url, holder=holder, pools=pools, work=work
    )
