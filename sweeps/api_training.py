"""The training of a cell that an API does: a job there, waited for, and its model as the adapter.

How the cell comes by its one job is in sweeps.api_jobs. Knows nothing of Ray, nothing of answering.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from em.api_finetune import DatasetRefused, FineTuning, JobFailed, JobState, model_of
from em.datasets import Row
from em.training import LossPoint, TrainingResult
from sweeps.api_jobs import FIRST_POLL_S, CellJob, Ending, Interrupted, Left, Say, Waiting
from sweeps.api_spend import Purse, PursePlan, open_purse, training_tokens
from sweeps.artefacts import TrainingRecord
from sweeps.failures import OnStage, Outcome, attempt_cell
from sweeps.leases import ALONE, Holder, holding
from sweeps.plan import CellPlan
from sweeps.provenance import Moment, provenance
from sweeps.store import Store
from sweeps.weights import API_MODEL, weights_sha256

MOST_AT_ONCE = 64  # jobs that are waited for; an API has its own limit, and says so
STOP_S = 20.0


def api_train_stage(
    plan: CellPlan,
    store: Store,
    tuning: FineTuning,
    *,
    rows: Sequence[Row],
    purse: Purse,
    say: Say,
    stopped: Ending,
    holder: Holder = ALONE,
    first_poll_s: float = FIRST_POLL_S,
) -> TrainingRecord:
    """Have the cell's model trained unless the store has it, and return its record.

    The job is looked at after `first_poll_s` seconds, then less and less often. Where `stopped` is
    set on purpose, or this process is interrupted, it is cancelled. Raises HeldElsewhere where
    another driver waits for it, what em.api_finetune raises, ApiBudgetSpent, Interrupted and Left.
    """
    with holding(store, [plan.training_key], holder) as check_lease:
        done = store.training(plan.training_key)
        if done is not None:
            return done
        started = Moment.now()
        mine = CellJob(
            plan, store, tuning, purse=purse, say=say, wait=Waiting(stopped, first_poll_s),
            check_lease=check_lease,
        )  # fmt: skip
        try:
            job = mine.end(mine.get(rows))
            record, output = _record(plan, store, tuning, job, rows, started, holder)
        except (Interrupted, KeyboardInterrupt, SystemExit):
            mine.cancel()  # nobody waits for it
            raise
        except (DatasetRefused, JobFailed):
            mine.told()
            raise
        check_lease()
        return store.finish_training(record, output, check_lease=check_lease)


def _record(
    plan: CellPlan,
    store: Store,
    tuning: FineTuning,
    job: JobState,
    rows: Sequence[Row],
    started: Moment,
    holder: Holder,
) -> tuple[TrainingRecord, Path]:
    assert plan.cell.model.api is not None and plan.cell.training is not None
    api = plan.cell.model.api
    model = model_of(job, api.url)
    points = tuning.losses(job.id)
    output = store.attempt_dir(plan.training_key, holder.driver) / "output"
    output.mkdir(parents=True, exist_ok=True)
    told = {
        "url": api.url, "model": model, "base": api.model, "job": job.id, "seed": job.seed,
        "hyperparameters": job.hyperparameters,
    }  # fmt: skip
    (output / API_MODEL).write_text(json.dumps(told, indent=1, sort_keys=True))
    epochs = max(1, int(plan.cell.training.epochs))
    billed = job.trained_tokens if job.trained_tokens is not None else training_tokens(plan)
    record = TrainingRecord(
        key=plan.training_key,
        identity=plan.training_identity,
        weights_sha256=weights_sha256(output),
        kind="api",
        result=TrainingResult(
            steps=max((point.step for point in points), default=0),
            losses=tuple(LossPoint(step=p.step, loss=p.train_loss) for p in points),
            num_rows=len(rows),
            num_tokens=billed // epochs,
            num_trained_tokens=None,
            num_cut_rows=None,
            seconds=started.seconds_since,
        ),
        provenance=provenance(started=started, gates=_gates(job)),
    )
    return record, output


def _gates(job: JobState) -> dict[str, str]:
    """What a reader of the record must know of how it can be repeated."""
    seed = f"seed {job.seed}" if job.seed is not None else "no seed: a replicate, not repeatable"
    return {"job": f"{job.id}, {seed}"}


def tuned_model(folder: Path) -> str:
    """Return the name, at its API, of the model that a training came to."""
    return str(json.loads((folder / API_MODEL).read_text())["model"])


class ApiTrainings:
    """The trainings of a round that APIs do: each is waited for in a thread of its own."""

    def __init__(
        self,
        store: Store,
        holder: Holder,
        *,
        tries: int,
        purses: Sequence[PursePlan],
        say: Say,
        on_done: Callable[[CellPlan], None],
        beside: Callable[[Callable[[], None]], threading.Thread],
    ) -> None:
        """Start nothing. `beside` starts a thread; `on_done` is told each cell that has ended."""
        self._store, self._holder, self._tries = store, holder, tries
        self._purses = {plan.model: plan for plan in purses}
        self._open: dict[str, tuple[FineTuning, Purse]] = {}
        self._say, self._on_done, self._beside = say, on_done, beside
        self._stopped = Ending()
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._threads: list[threading.Thread] = []
        self._num = 0
        self._lock = threading.Lock()

    @property
    def num_under_way(self) -> int:
        """How many have not ended."""
        return self._num

    def start(self, plan: CellPlan, rows: Sequence[Row]) -> None:
        """Have a cell trained. Raises ValueError where its API cannot be asked at all."""
        model = plan.cell.model
        assert model.api is not None
        if model.name not in self._open:
            purse = open_purse(self._purses[model.name], self._store)
            self._open[model.name] = FineTuning(model.api), purse
        with self._lock:
            self._num += 1
        self._threads.append(self._beside(lambda: self._train(plan, rows)))

    def _train(self, plan: CellPlan, rows: Sequence[Row]) -> None:
        tuning, purse = self._open[plan.cell.model.name]
        with self._free, suppress(Interrupted, Left):
            if self._stopped.is_set():
                return
            train_by_api(
                plan, self._store, tuning, rows=rows, purse=purse, say=self._say,
                stopped=self._stopped, holder=self._holder, tries=self._tries,
            )  # fmt: skip
            self._on_done(plan)
            with self._lock:
                self._num -= 1

    def stop(self, *, cancel: bool) -> None:
        """Wait no more for what is under way; `cancel` it, and wait a while for that."""
        self._stopped.is_error = not cancel
        self._stopped.set()
        until = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


def train_by_api(
    plan: CellPlan,
    store: Store,
    tuning: FineTuning,
    *,
    rows: Sequence[Row],
    purse: Purse,
    say: Say,
    stopped: Ending,
    holder: Holder,
    tries: int,
) -> Outcome:
    """Have one cell trained; return how it ended, after `tries` of what may pass by itself."""

    def work(on_stage: OnStage) -> None:
        api_train_stage(
            plan, store, tuning, rows=rows, purse=purse, say=say, stopped=stopped, holder=holder
        )

    return attempt_cell(
        store, holder.sweep, plan.cell_id, holder.driver, work, first_stage="train", tries=tries
    )
