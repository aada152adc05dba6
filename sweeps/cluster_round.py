"""A round of cells on a cluster: trainings, engines and answers, as the schedule decides.

Carries out what cluster.schedule says and tells it what came of it. What becomes of a cell is noted
by sweeps.outcomes; knows nothing of how a cell is trained, answered or judged.
"""

import _thread
import contextlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from cluster.actions import Action, Ask, EngineKind, Start, Stop, Train
from cluster.jobs import Job
from cluster.schedule import Schedule
from cluster.session import totals
from em.datasets import Row
from em.models import ModelConfig
from sweeps.api_training import ApiTrainings
from sweeps.cluster_looks import Looks
from sweeps.estimate import START_S, seconds_left
from sweeps.evaluation_pass import EvaluationTask, evaluate_cells
from sweeps.failures import CellFailure, Outcome
from sweeps.layout import engine_demand, judge_models, pool_models, train_demand
from sweeps.outcomes import Outcomes
from sweeps.plan import CellPlan
from sweeps.pools import Pools
from sweeps.progress import SweepProgress
from sweeps.spec import SweepSpec
from sweeps.todo import Todo
from sweeps.training_pass import Trainings, TrainTask

LOOK_S = 5.0  # at nodes that come and go, and at other drivers
BATCHED_CELLS = 64  # side by side, of a model whose API answers within a day
THREADS_END_S = 5.0
MOST_FAILED_LOOKS = 24  # in a row: two minutes without a word of the cluster

log = logging.getLogger(__name__)


Beside = Callable[[Callable[[], None]], threading.Thread]


@dataclass(frozen=True)
class Tasks:
    """How the driver makes what its workers need of a cell."""

    train: Callable[[CellPlan], TrainTask]
    evaluate: Callable[[CellPlan, Mapping[str, str]], EvaluationTask]
    rows: Callable[[Sequence[CellPlan]], dict[str, tuple[Row, ...]]]
    by_api: Callable[[Callable[[CellPlan], None], Beside], ApiTrainings]


class ClusterRound:
    """Carries out cells on the joined cluster; for one call of `run`."""

    def __init__(
        self,
        spec: SweepSpec,
        todo: Todo,
        *,
        tasks: Tasks,
        pools: Pools,
        outcomes: Outcomes,
        progress: SweepProgress,
        is_crowded: Callable[[], bool],
    ) -> None:
        """Start nothing yet. `is_crowded` says whether another driver wants room, too."""
        self._spec, self._tasks, self._pools = spec, tasks, pools
        self._outcomes, self._progress = outcomes, progress
        self._cells = {cell.cell_id: cell for cell in todo.cells}
        self._left = dict(todo.stages)
        self._models = {model.name: model for model in pool_models(spec, todo)}
        self._judges = tuple(model.name for model in judge_models(spec))
        # Cells with one training (equal data under two names) are trained once, by the first.
        self._sharing: dict[str, list[CellPlan]] = {}
        for cell in todo.lacking("train"):
            self._sharing.setdefault(cell.training_key, []).append(cell)
        first = [sharing[0] for sharing in self._sharing.values()]
        self._first = [cell for cell in first if cell.cell.model.api is None]
        # What an API trains holds nothing here: the schedule hears of it when it is trained.
        self._first_by_api = [cell for cell in first if cell.cell.model.api is not None]
        self._by_api = tasks.by_api(self._trained_by_api, self._beside)
        self._lock = threading.RLock()
        self._changed = threading.Event()
        self._released: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._asked: queue.Queue[EvaluationTask | None] = queue.Queue()
        self._asked_of_apis: queue.Queue[EvaluationTask | None] = queue.Queue()
        self._stop = threading.Event()
        self._ended: Future[None] = Future()  # with the first error of a thread
        self._answered: set[str] = set()  # engines that have come up
        self._asked_of: dict[str, Collection[str]] = {}
        self._asked_again: Counter[str] = Counter()
        self._schedule = Schedule([], self._kinds(), totals())
        self._looks = Looks(
            self._schedule, pools, self._lock,
            answered=self._answered, is_crowded=is_crowded, say=progress.say,
        )  # fmt: skip
        trained = [cell for cell in todo.cells if "train" not in todo.left(cell)]
        self._take_up(trained + self._first)

    def _kinds(self) -> list[EngineKind]:
        return [
            EngineKind(
                name=model.name,
                demand=engine_demand(self._spec, model.name),
                most=self._spec.for_model(model.name).serving.replicas,
                at_once=self._spec.serving.concurrency,
                start_s=START_S,
            )
            for model in self._models.values()
        ]

    def _take_up(self, cells: Sequence[CellPlan]) -> None:
        """Have the schedule know of cells, but those that wait for the responses of another."""
        with self._lock:
            self._schedule.add(map(self._job, cells))
            for cell in cells:
                if "train" not in self._left[cell.cell_id] and not self._outcomes.is_first(cell):
                    self._schedule.ended(cell.cell_id)

    def _job(self, cell: CellPlan) -> Job:
        left = self._left[cell.cell_id]
        seconds = seconds_left(cell, left)
        is_here = cell.cell.model.api is None
        needs = [cell.cell.model.name] if "generate" in left and is_here else []
        needs += self._judges if "judge" in left and not self._answers_first(cell) else ()
        return Job(
            job_id=cell.cell_id,
            train=train_demand(self._spec, cell.cell.model.name) if "train" in left else None,
            needs=tuple(dict.fromkeys(needs)),
            train_s=seconds["train"],
            ask_s=seconds["generate"] + seconds["judge"],
        )

    def _answers_first(self, cell: CellPlan) -> bool:
        """Whether an API answers the cell before a pool judges it, which is not held meanwhile."""
        left = self._left[cell.cell_id]
        return cell.cell.model.api is not None and "generate" in left and bool(self._judges)

    def run(self) -> None:
        """Carry out all of it; failures of cells are in the store when this returns.

        Raises ClusterError where an engine does not come up, and what reading or writing the store
        raises.
        """
        trainings = None
        if self._first or self._first_by_api:
            self._progress.begin("train")
        if self._first:
            rows = self._tasks.rows(self._first)
            tasks = [self._tasks.train(cell) for cell in self._first]
            trainings = Trainings(tasks, rows, retries=self._spec.retries)
        with self._threads():
            rows = self._tasks.rows(self._first_by_api)
            for cell in self._first_by_api:
                self._by_api.start(cell, rows[cell.content_sha256 or ""])
            self._decide()
            while not (self._schedule.is_done and self._by_api.num_under_way == 0):
                if trainings is not None and not self._released.empty():
                    trainings.run(self._release, self._trained, more=self._more_to_train)
                self._changed.wait(LOOK_S)
                self._changed.clear()
                if self._ended.done():
                    self._ended.result()

    # Threads -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Have cells evaluated, engines started and nodes looked at beside the block.

        An error of one of them ends the block: Tune, which is in it, waits for no one else.
        """
        self._progress.begin("generate")
        self._progress.begin("judge")
        evaluating = [
            self._beside(lambda: self._evaluate(self._asked, self._at_once)),
            self._beside(lambda: self._evaluate(self._asked_of_apis, self._at_once_of_apis)),
        ]
        watching = self._beside(self._watch)
        called_off = False
        try:
            with _ended_by(self._ended):
                yield
                for asked, thread in zip(
                    (self._asked, self._asked_of_apis), evaluating, strict=True
                ):
                    asked.put(None)
                    thread.join()
        except BaseException as error:
            called_off = isinstance(error, KeyboardInterrupt)
            self._stop.set()  # before what is asked finds its engines gone
            self._pools.give_up()
            raise
        finally:
            self._stop.set()
            self._by_api.stop(cancel=called_off)
            # Ray ends the process, and no error is told, where a thread asks it after its end.
            for thread in (*evaluating, watching):
                thread.join(THREADS_END_S)
            with contextlib.suppress(Exception):  # Ray may be gone, and is not what to tell of
                self._looks.tell_autoscaler([])

    def _beside(self, work: Callable[[], None]) -> threading.Thread:
        """Do it in a thread, which nobody waits for long when the run is interrupted."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  told in the main thread
                with self._lock:
                    if not (self._ended.done() or self._stop.is_set()):
                        self._ended.set_exception(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _evaluate(self, asked: "queue.Queue[EvaluationTask | None]", at_once: int) -> None:
        evaluate_cells(
            asked,
            at_once=at_once,
            retries=self._spec.retries,
            on_answered=lambda cell: self._progress.done("generate", cell.cell_id),
            on_done=self._evaluated,
            stop=self._stop,
        )

    @property
    def _limited(self) -> bool:
        """Whether a judge or grader has a budget, so that one cell is evaluated at a time."""
        graders = (evaluation.grader for evaluation in self._spec.evaluations)
        return any(judge.budget is not None for judge in self._spec.judges) or any(
            grader is not None and grader.budget_usd is not None for grader in graders
        )

    @property
    def _at_once(self) -> int:
        """How many cells are evaluated side by side: those that the schedule lets be asked.

        One where any has a budget: cells are judged in processes of their own, which see of
        each other only what is stored.
        """
        engines = sum(kind.most for kind in self._kinds())
        return 1 if self._limited else self._spec.serving.concurrency * max(1, engines)

    @property
    def _at_once_of_apis(self) -> int:
        """The same of models behind APIs, each of which counts as an engine, and with batches more.

        One where a model has a budget, for the same reason.
        """
        behind = [model.api for model in self._spec.models if model.api is not None]
        if any(api.budget_usd is not None for api in behind):
            return 1
        each = (BATCHED_CELLS if api.batch else self._spec.serving.concurrency for api in behind)
        return max(1, sum(each))

    def _watch(self) -> None:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        failed = 0  # in a row
        while not self._stop.wait(LOOK_S):
            try:
                self._looks.look()
                self._decide()
                failed = 0
            except (RayError, RayServeException) as error:
                failed += 1
                if failed == MOST_FAILED_LOOKS:
                    raise
                log.warning("the cluster could not be looked at: %s", error)

    # What happens --------------------------------------------------------------------------------

    def _release(self) -> str | None:
        try:
            return self._released.get_nowait()
        except queue.Empty:
            return None

    def _more_to_train(self) -> bool:
        with self._lock:
            return self._schedule.num_waiting > 0 or not self._released.empty()

    def _trained(self, cell_id: str) -> None:
        """Take down the end of a training, for all cells that it was for."""
        first, *others = self._sharing[self._cells[cell_id].training_key]
        with self._lock:
            if self._outcomes.trained(first, by=cell_id):
                self._schedule.trained(first.cell_id)
                if not self._outcomes.is_first(first):
                    self._schedule.ended(first.cell_id)
            else:
                self._schedule.ended(first.cell_id)
            there = [cell for cell in others if self._outcomes.trained(cell, by=cell_id)]
            for cell in there:
                self._left[cell.cell_id] = [s for s in self._left[cell.cell_id] if s != "train"]
            self._take_up(there)
        self._decide()

    def _trained_by_api(self, first: CellPlan) -> None:
        """Take down the end of a training that an API did, for all cells that it was for."""
        with self._lock:
            sharing = self._sharing[first.training_key]
            there = [cell for cell in sharing if self._outcomes.trained(cell, by=first.cell_id)]
            for cell in there:
                self._left[cell.cell_id] = [s for s in self._left[cell.cell_id] if s != "train"]
            self._take_up(there)
        self._decide()

    def _evaluated(self, cell: CellPlan, outcome: Outcome) -> None:
        with self._lock:
            if outcome is None and self._answers_first(cell):
                self._left[cell.cell_id] = [s for s in self._left[cell.cell_id] if s != "generate"]
                self._schedule.ended(cell.cell_id)
                self._schedule.add([self._job(cell)])
            elif self._may_ask_again(cell, outcome):
                self._asked_again[cell.cell_id] += 1
                self._schedule.again(cell.cell_id)
            else:
                self._outcomes.evaluated(cell, outcome)
                self._schedule.ended(cell.cell_id)
        self._decide()

    def _may_ask_again(self, cell: CellPlan, outcome: Outcome) -> bool:
        """Whether a cell failed by engines that are given up; `retries` times."""
        asked = self._asked_of.pop(cell.cell_id, ())
        return (
            isinstance(outcome, CellFailure)
            and outcome.kind == "engine dead"
            and any(engine not in self._answered for engine in asked)
            and self._asked_again[cell.cell_id] < self._spec.retries
        )

    def _decide(self) -> None:
        """Have the schedule decide, and do it."""
        with self._lock:
            if self._stop.is_set():
                return
            could_start = self._schedule.may_start
            for action in self._schedule.decide():
                self._carry_out(action)
            if could_start and not self._schedule.may_start:
                self._progress.say("engines find no room: they are tried again after a pause")
            self._changed.set()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Train(job_id):
                self._released.put(job_id)
            case Ask(job_id, engines):
                self._looks.pause.forget()
                pools = {kind: self._pools.name(engine) for kind, engine in engines.items()}
                self._asked_of[job_id] = tuple(engines.values())
                cell = self._cells[job_id]
                task = self._tasks.evaluate(cell, pools)
                by_itself = cell.cell.model.api is not None and not self._limited
                asked = self._asked_of_apis if by_itself else self._asked
                asked.put(replace(task, answer_only=self._answers_first(cell)))
            case Start(kind, engine):
                self._progress.say(f"starting an engine of {kind}")
                model = self._models[kind]
                self._beside(lambda: self._start(model, engine))
            case Stop(engine):
                self._answered.discard(engine)
                self._beside(lambda: self._end(engine))

    def _start(self, model: ModelConfig, engine: str) -> None:
        if not self._pools.start(model, engine):
            return  # it found no room, and is being stopped
        self._progress.say(f"an engine of {model.name} answers")
        with self._lock:
            self._answered.add(engine)
            self._schedule.up(engine)
        self._decide()

    def _end(self, engine: str) -> None:
        self._pools.stop(engine)
        with self._lock:
            self._schedule.down(engine)
        self._decide()


@contextlib.contextmanager
def _ended_by(beside: "Future[None]") -> Iterator[None]:
    """End the block, in the main thread, with the error that `beside` ends with meanwhile.

    Nothing is left to train for where the answers cannot be had; Tune waits for no one else.
    """
    inside = threading.Event()
    inside.set()

    def interrupt(done: "Future[None]") -> None:
        if inside.is_set() and done.exception() is not None:
            _thread.interrupt_main()

    beside.add_done_callback(interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if beside.done():
            beside.result()  # its error, not the interrupt that it caused
        raise
    finally:
        inside.clear()
