"""The training of a cell that an API does: a job there, waited for, and its model as the adapter.

A cell has one job: its id is noted in the store, and found again by its tag where that was not
reached. Knows nothing of Ray, nothing of answering.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from em.api_client import ApiBusy
from em.api_finetune import USELESS, FineTuning, JobLost, JobState, file_of, model_of
from em.api_models import ApiTrainingConfig
from em.datasets import Row
from em.training import LossPoint, TrainingResult
from sweeps.api_spend import ApiJob, Purse, PursePlan, job_place, training_tokens
from sweeps.artefacts import TrainingRecord
from sweeps.failures import OnStage, Outcome, attempt_cell
from sweeps.keys import api_seeds
from sweeps.leases import ALONE, Holder, holding
from sweeps.plan import CellPlan
from sweeps.provenance import Moment, provenance
from sweeps.store import Store
from sweeps.weights import API_MODEL, weights_sha256

FIRST_POLL_S, MOST_POLL_S = 1.0, 30.0
MOST_AT_ONCE = 64  # jobs that are waited for; an API has its own limit, and says so
STOP_S = 20.0
TAG_DIGITS = 32  # of the training's key

Say = Callable[[str], None]


class Interrupted(BaseException):
    """The driver ends on purpose: the job is called off. No failure of the cell."""


class Left(BaseException):
    """The driver ends by an error: the job goes on, and the next driver finds it."""


class Ending(threading.Event):
    """Set where the driver ends. `is_error`: what an API was asked for is let go on."""

    is_error = False


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
        waiting = _Waiting(stopped, first_poll_s)
        with _cancelled_at_the_end(plan, store, tuning, say):
            job = _job_of(plan, store, tuning, rows, purse, waiting, say)
            job = _wait(plan, tuning, job, waiting, say)
        record, output = _record(plan, store, tuning, job, rows, started, holder)
        check_lease()
        return store.finish_training(record, output, check_lease=check_lease)


class _Waiting:
    """Waits between looks, longer each time; ends where the driver does."""

    def __init__(self, stopped: Ending, first_s: float) -> None:
        self._stopped, self._next_s = stopped, first_s

    def __call__(self) -> None:
        if self._stopped.wait(self._next_s):
            raise Left if self._stopped.is_error else Interrupted
        self._next_s = min(MOST_POLL_S, 2 * self._next_s)


def _job_of(
    plan: CellPlan,
    store: Store,
    tuning: FineTuning,
    rows: Sequence[Row],
    purse: Purse,
    waiting: _Waiting,
    say: Say,
) -> JobState:
    """Return the cell's job: that which is noted, or was made and not noted, or a new one."""
    tag = plan.training_key[:TAG_DIGITS]
    noted = store.files.read_note(job_place(plan.training_key), ApiJob)
    if noted is not None and noted.job_id is not None:
        try:
            job = tuning.look(noted.job_id)
        except JobLost as lost:
            job = _found_again(plan, store, tuning, tag, lost)
        if job.status not in USELESS:
            return job
    found = tuning.find(tag)
    if found is not None:
        say(f"{plan.cell_id}: its job {found.id} was there already")
        _note(plan, store, found.id, None)
        return found
    usd = purse.known.training_usd(training_tokens(plan)) if purse.known else None
    purse.take(usd or 0.0, f"the training of {plan.cell_id}")
    try:
        return _made(plan, store, tuning, rows, usd, waiting, say)
    except BaseException:
        purse.put_back(usd or 0.0, 0.0)
        raise


def _made(
    plan: CellPlan,
    store: Store,
    tuning: FineTuning,
    rows: Sequence[Row],
    usd: float | None,
    waiting: _Waiting,
    say: Say,
) -> JobState:
    assert isinstance(plan.cell.training, ApiTrainingConfig)
    file_id = tuning.upload(file_of(rows))
    seed = api_seeds(plan.cell, plan.cell.training).get("seed")
    is_busy = False
    while True:
        try:
            job = tuning.create(file_id, tag=plan.training_key[:TAG_DIGITS], seed=seed)
        except ApiBusy as busy:
            if not is_busy:
                say(f"{plan.cell_id}: waits, {busy}")
            is_busy = True
            waiting()
        else:
            _note(plan, store, job.id, usd)
            say(f"{plan.cell_id}: job {job.id}")
            return job


def _found_again(
    plan: CellPlan, store: Store, tuning: FineTuning, tag: str, lost: JobLost
) -> JobState:
    """Return another job of the cell's. Raises `lost` where there is none: a resume makes one."""
    found = tuning.find(tag)
    if found is None:
        store.files.remove(job_place(plan.training_key))
        raise lost
    _note(plan, store, found.id, None)
    return found


def _note(plan: CellPlan, store: Store, job_id: str, usd: float | None) -> None:
    job = ApiJob(tag=plan.training_key[:TAG_DIGITS], job_id=job_id, usd=usd, started=time.time())
    store.write_record(job_place(plan.training_key), job)


def _wait(
    plan: CellPlan, tuning: FineTuning, job: JobState, waiting: _Waiting, say: Say
) -> JobState:
    while not job.is_over:
        waiting()
        before, job = job.status, tuning.look(job.id)
        if job.status != before:
            say(f"{plan.cell_id}: job {job.id} {job.status}")
    return job


@contextmanager
def _cancelled_at_the_end(
    plan: CellPlan, store: Store, tuning: FineTuning, say: Say
) -> Iterator[None]:
    """Cancel the cell's job where this driver is ended on purpose: nobody waits for it."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt, SystemExit):
        noted = store.files.read_note(job_place(plan.training_key), ApiJob)
        if noted is not None and noted.job_id is not None:
            with suppress(Exception):  # the end must come; the job goes on, and is found again
                job = tuning.cancel(noted.job_id)
                say(f"{plan.cell_id}: job {job.id} {job.status}")
        raise


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
            purse = Purse(self._purses[model.name], self._store)
            self._open[model.name] = FineTuning(model.api), purse
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
