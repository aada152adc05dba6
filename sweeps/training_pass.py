"""The training of every cell that lacks it, as trials of Ray Tune: one trial a cell.

A one-rank cell trains in the trial's own process, which is kept for the next cell with its base
model warm; several ranks train through Ray Train inside the trial. Tune carries out and
retries what is released to it; the store remembers. Knows nothing of serving or judging.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em.datasets import Row
from em.memory import is_out_of_memory, make_smaller, train_within_memory
from em.record import fingerprint
from em.training import LossPoint, TrainingJob, TrainingResult
from sweeps.failure_kinds import TRANSIENT, classify
from sweeps.failures import CellFailure, Outcome, attempt_cell, failure_of, record_failure
from sweeps.files import StoreError
from sweeps.kept_checkpoints import CheckpointKeeper
from sweeps.leases import Holder
from sweeps.live import LiveLog
from sweeps.plan import CellPlan
from sweeps.settings import ResourcesConfig
from sweeps.stages import CHECKPOINTS, train_stage
from sweeps.store import Store

if TYPE_CHECKING:
    from em.base_model import BaseModel

# A trial that only waits for its ranks must hold something, or Tune never starts it. It is a byte
# of memory and no part of a CPU, so that the ranks may hold every CPU that there is.
WAITING = {"memory": 1}
MOST_STARTING = "200"
# What only Ray can tell of a process that is gone; any other end the process notes itself.
KNOWN_BY_RAY = ("out of memory", "preempted", "node lost")


@dataclass(frozen=True)
class TrainTask:
    """What a trial needs to train one cell."""

    plan: CellPlan
    store: str
    holder: Holder
    retries: int
    resources: ResourcesConfig
    work: "Callable[[TrainTask, Sequence[Row]], Outcome] | None" = None  # else train_task


class TrialFailed(RuntimeError):
    """A transient failure in a trial; Tune tries it again in a fresh process."""


class Telling:
    """Tells of cells, and keeps what the store raises: Tune would take the trial for failed."""

    def __init__(self, on_done: Callable[[str], None]) -> None:
        self._on_done = on_done
        self._error: StoreError | OSError | None = None

    def __call__(self, cell_id: str) -> None:
        """Tell of one cell."""
        try:
            self._on_done(cell_id)
        except (StoreError, OSError) as error:
            self._error = self._error or error

    def check(self) -> None:
        """Raise the first error of the store that there was."""
        if self._error is not None:
            raise self._error


def _told(tasks: Sequence[TrainTask], tell: Callable[[str], None]) -> Any:
    """Return Tune's callback: it tells of each cell that has ended, and notes what Ray knows."""
    from ray import tune

    from cluster.killed import error_of, killed_for_memory

    class Told(tune.Callback):  # type: ignore[misc]
        # Tune writes its callbacks, class and all, to disk: what belongs to this process is in
        # attributes, which are left out, and nothing is taken from around the class.
        def __init__(self, tasks: Sequence[TrainTask], tell: Callable[[str], None]) -> None:
            self._by_cell = {task.plan.cell_id: task for task in tasks}
            self._tell = tell

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._tell(trial.config["cell"])

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            if killed_for_memory(trial):
                _learn(self._by_cell[trial.config["cell"]])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.on_trial_recover(iteration, trials, trial)
            task, error = self._by_cell[trial.config["cell"]], error_of(trial)
            failure = failure_of(error, task.plan.cell_id, "train") if error is not None else None
            if failure is not None and failure.kind in KNOWN_BY_RAY:
                record_failure(Store(task.store), task.holder.sweep, task.holder.driver, failure)
            self._tell(task.plan.cell_id)

    return Told(tasks, tell)


class Trainings:
    """The trainings of a round: each is a trial of Tune once it is released."""

    def __init__(
        self, tasks: Sequence[TrainTask], rows: Mapping[str, Sequence[Row]], *, retries: int
    ) -> None:
        """Have what the trials need in Ray. `rows` are by content hash."""
        import ray

        self._tasks, self._retries = tasks, retries
        self._rows = {key: ray.put(tuple(value)) for key, value in rows.items()}
        self._by_cell = {task.plan.cell_id: ray.put(task) for task in tasks}

    def run(
        self,
        release: Callable[[], str | None],
        on_done: Callable[[str], None],
        *,
        more: Callable[[], bool] = lambda: True,
    ) -> None:
        """Train the cells that `release` gives, until it gives none while none is being trained.

        It is asked again and again for the id of one cell more, unless no `more` will come;
        `on_done` is told each cell's id before it is asked next. Failures are in the store's
        attempts when this returns. Raises StoreError or OSError where `on_done` does; the other
        cells have come to their ends then.
        """
        from ray import tune

        from cluster.killed import count_memory_kills_as_lost_trials
        from cluster.released import released_trials

        count_memory_kills_as_lost_trials()
        # Else Tune starts one trial's process at a time: who is released has room.
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", MOST_STARTING)
        tell = Telling(on_done)
        held = {task.plan.cell_id: _held(task) for task in self._tasks}
        with tempfile.TemporaryDirectory(prefix="emsweep-tune-") as folder:
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_trial, tasks=self._by_cell, rows=self._rows),
                    lambda config: tune.PlacementGroupFactory([dict(held[config["cell"]])]),
                ),
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    num_samples=-1,
                    search_alg=released_trials(release, more),
                ),
                run_config=tune.RunConfig(
                    name=self._tasks[0].holder.sweep,
                    storage_path=folder,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=self._retries),
                    callbacks=[_told(self._tasks, tell)],
                ),
            ).fit()
        tell.check()


def _held(task: TrainTask) -> Mapping[str, float]:
    """What a trial holds: all that one rank needs, or next to nothing while it waits for some."""
    assert task.plan.cell.local_training is not None
    if task.plan.cell.local_training.ranks > 1:
        return WAITING
    wanted = {"CPU": task.resources.train_cpus, "GPU": task.resources.train_gpus}
    return {name: amount for name, amount in wanted.items() if amount}


def _trial(config: dict[str, str], tasks: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Train one cell in a Tune trial."""
    import ray
    from ray import tune

    task: TrainTask = ray.get(tasks[config["cell"]])
    work = task.work or train_task
    failure = work(task, ray.get(rows[task.plan.content_sha256 or ""]))
    if isinstance(failure, CellFailure) and failure.transient:
        raise TrialFailed(failure.message)
    tune.report({"trained": failure is None})


def train_task(task: TrainTask, rows: Sequence[Row], *, tries: int = 1) -> Outcome:
    """Train one cell in this process, or on its ranks; return how it ended (after `tries`)."""
    store, holder = Store(task.store), task.holder

    def work(on_stage: Any) -> None:
        from em.models import materialise

        train_stage(
            task.plan,
            store,
            lambda job: _train(job, task),
            model_dir=materialise(task.plan.cell.model),
            rows=rows,
            holder=holder,
        )

    return attempt_cell(
        store, holder.sweep, task.plan.cell_id, holder.driver, work,
        first_stage="train", tries=tries,
    )  # fmt: skip


def _learn(task: TrainTask) -> None:
    """Note for the next try that this cell's process was killed for memory."""
    assert task.plan.cell.local_training is not None
    attempt = Store(task.store).attempt_dir(task.plan.training_key, task.holder.driver)
    make_smaller(task.plan.cell.local_training, attempt / CHECKPOINTS)


def _train(job: TrainingJob, task: TrainTask) -> TrainingResult:
    return train_within_memory(job, lambda fitting: _try(fitting, task))


def _try(job: TrainingJob, task: TrainTask) -> TrainingResult:
    if job.config.ranks == 1:
        from em.finetune import finetune

        store, key = Store(task.store), task.plan.training_key
        keeper = CheckpointKeeper(store, key, task.holder.driver, job.checkpoint_dir, job.config)
        with closing(LiveLog(store, key)) as live:

            def on_step(point: LossPoint) -> None:
                live.add(point)
                keeper.on_step(point)

            return finetune(job, base=_warm_base(), on_step=on_step)
    return _train_on_ranks(job, task)


@cache
def _warm_base() -> "BaseModel":
    """Return this process's base model, kept from one trial to the next."""
    from em.base_model import BaseModel

    return BaseModel()


def _train_on_ranks(job: TrainingJob, task: TrainTask) -> TrainingResult:
    from cluster.workers import run_on_ranks

    result_path = job.checkpoint_dir.parent / "result.json"
    run_on_ranks(
        _rank,
        {
            "job": job.model_dump_json(),
            "result": str(result_path),
            "model": task.plan.cell.model.model_dump_json(),
            "store": task.store,
            "key": task.plan.training_key,
        },
        ranks=job.config.ranks,
        cpus=task.resources.train_cpus,
        gpus=task.resources.train_gpus,
        name=f"train-{fingerprint(task.plan.training_identity)[:16]}-{task.holder.driver}",
        storage_dir=job.checkpoint_dir.parent / "ray-train",
        failures=task.retries,
        again=worth_another_try,
    )
    return TrainingResult.model_validate_json(result_path.read_text())


def worth_another_try(errors: Sequence[Exception]) -> bool:
    """Whether a group of ranks that ended with `errors` may succeed when it is started again.

    Where one rank is lost the others end with errors of the network that no class tells; what
    lasts (data, a gate), and memory, which asks for a smaller micro-batch first, is no such thing.
    """
    kinds = {classify(error) for error in errors}
    lasting = {"data", "gate", "disk or store"}
    return (
        not any(map(is_out_of_memory, errors)) and bool(kinds & TRANSIENT) and not (kinds & lasting)
    )


def _rank(value: dict[str, str]) -> None:
    """Be one rank of a training; the first one leaves the result on disk."""
    from cluster.workers import preemption_noticed
    from em.finetune import finetune
    from em.models import ModelConfig, materialise

    job = TrainingJob.model_validate_json(value["job"])
    # The trial's own folder of the model may not be there on this rank's node.
    model_dir = materialise(ModelConfig.model_validate_json(value["model"]))
    job = job.model_copy(update={"model_dir": model_dir})
    rank = int(os.environ.get("RANK", "0"))
    with closing(LiveLog(Store(value["store"]), value["key"], rank)) as live:
        result = finetune(job, on_step=live.add, stop_soon=preemption_noticed)
    if rank == 0:
        path = Path(value["result"])
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(result.model_dump(mode="json")))
        partial.replace(path)
