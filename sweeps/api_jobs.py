"""The one job of a cell at the API that trains it: noted before it is made, and found again.

Knows nothing of what becomes of the model that a job comes to.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from em.api_client import ApiBusy, ApiUnavailable
from em.api_finetune import USELESS, FineTuning, JobLost, JobState, file_of
from em.api_models import ApiTrainingConfig
from em.datasets import Row
from sweeps.api_spend import ApiJob, Purse, job_place, training_tokens
from sweeps.keys import api_seeds
from sweeps.plan import CellPlan
from sweeps.store import Store

FIRST_POLL_S, MOST_POLL_S = 1.0, 30.0
LISTED_WITHIN_S = (
    60.0  # a job that was made, and whose reply was lost, is in the API's list by then
)
TAG_DIGITS = 32  # of the training's key

Say = Callable[[str], None]


class Interrupted(BaseException):
    """The driver ends on purpose: the job is called off. No failure of the cell."""


class Left(BaseException):
    """The driver ends by an error: the job goes on, and the next driver finds it."""


class Ending(threading.Event):
    """Set where the driver ends. `is_error`: what an API was asked for is let go on."""

    is_error = False


class Waiting:
    """Waits between looks, longer each time; raises Interrupted or Left where the driver ends."""

    def __init__(self, ending: Ending, first_s: float) -> None:
        self._ending, self._next_s = ending, first_s

    def __call__(self) -> None:
        """Wait once."""
        if self._ending.wait(self._next_s):
            raise Left if self._ending.is_error else Interrupted
        self._next_s = min(MOST_POLL_S, 2 * self._next_s)


class CellJob:
    """The job of one cell, for who holds the lease on its training.

    `check_lease` raises where another driver has it now.
    """

    def __init__(
        self,
        plan: CellPlan,
        store: Store,
        tuning: FineTuning,
        *,
        purse: Purse,
        say: Say,
        wait: Waiting,
        check_lease: Callable[[], None],
    ) -> None:
        self._plan, self._store, self._tuning = plan, store, tuning
        self._purse, self._say, self._wait = purse, say, wait
        self._check_lease = check_lease
        self._tag = plan.training_key[:TAG_DIGITS]
        known = purse.known
        self._usd = known.training_usd(training_tokens(plan)) if known is not None else None

    def get(self, rows: Sequence[Row]) -> JobState:
        """Return the cell's job: that which is noted, or was made and not noted, or a new one.

        One that ended without a model since anybody looked is returned once, to be told. Raises
        JobLost, once too, where the API does not know the job that is noted.
        """
        noted = self._noted()
        if noted is not None and noted.job_id is not None:
            job = self._look_at(noted.job_id, told=noted.told)
            if job is not None and job.status != "cancelled" and not noted.told:
                return job
            if job is not None and job.status not in USELESS:
                return job
        found = self._find_made(noted)
        if found is not None:
            self._say(f"{self._plan.cell_id}: its job {found.id} was there already")
            if noted is None:
                self._purse.put_back(0.0, self._usd or 0.0)
            self._note(found.id)
            return found
        return self._make(rows)

    def end(self, job: JobState) -> JobState:
        """Return the job once it is over; an API that is away meanwhile is waited for."""
        is_away = False
        while not job.is_over:
            self._wait()
            before = job.status
            try:
                job = self._tuning.look(job.id)
            except ApiUnavailable as error:
                if not is_away:
                    self._say(f"{self._plan.cell_id}: {error}; its job goes on there")
                is_away = True
                continue
            is_away = False
            if job.status != before:
                self._say(f"{self._plan.cell_id}: job {job.id} {job.status}")
        return job

    def told(self) -> None:
        """Note that the job's end is told as the cell's failure: who asks again wants another."""
        noted = self._noted()
        if noted is not None:
            place = job_place(self._plan.training_key)
            self._store.write_record(place, noted.model_copy(update={"told": True}))

    def cancel(self) -> None:
        """Call the job off, if it can be reached; else it goes on, and is found again."""
        with suppress(Exception):  # the driver's end must come
            noted = self._noted()
            job_id = noted.job_id if noted is not None else None
            if noted is not None and job_id is None:
                found = self._tuning.find(self._tag)
                job_id = found.id if found is not None else None
            if job_id is not None:
                job = self._tuning.cancel(job_id)
                self._say(f"{self._plan.cell_id}: job {job.id} {job.status}")

    def _look_at(self, job_id: str, *, told: bool) -> JobState | None:
        try:
            return self._tuning.look(job_id)
        except JobLost as lost:
            if told:
                return None  # a resume: another is made
            self.told()
            raise JobLost(
                f"{lost}: is the key that of the same project? 'emsweep resume' makes another job"
            ) from lost

    def _find_made(self, noted: ApiJob | None) -> JobState | None:
        """Return a job of the cell's that is in the API's list.

        Where one was about to be made a moment ago it is looked for until it must be listed.
        """
        was_about_to = noted is not None and noted.job_id is None
        told = noted.over if noted is not None and was_about_to else None
        found = self._tuning.find(self._tag, told=told)
        while found is None and noted is not None and was_about_to:
            if not 0 <= time.time() - noted.started < LISTED_WITHIN_S:
                break
            self._wait()
            found = self._tuning.find(self._tag, told=told)
        return found

    def _make(self, rows: Sequence[Row]) -> JobState:
        assert isinstance(self._plan.cell.training, ApiTrainingConfig)
        usd = self._usd or 0.0
        self._purse.take(usd, f"the training of {self._plan.cell_id}")
        try:
            file_id = self._tuning.upload(file_of(rows))
            seed = api_seeds(self._plan.cell, self._plan.cell.training).get("seed")
            job = self._create(file_id, seed)
        except BaseException as error:
            self._purse.put_back(usd, 0.0)
            if isinstance(error, ValueError):  # it was refused: there is no job
                self._store.files.remove(job_place(self._plan.training_key))
            raise
        self._note(job.id)
        self._say(f"{self._plan.cell_id}: job {job.id}")
        return job

    def _create(self, file_id: str, seed: int | None) -> JobState:
        is_busy = False
        while True:
            self._check_lease()
            if is_busy and (found := self._tuning.find(self._tag)) is not None:
                return found
            self._note(None)
            try:
                return self._tuning.create(file_id, tag=self._tag, seed=seed)
            except ApiBusy as busy:
                if not is_busy:
                    self._say(f"{self._plan.cell_id}: waits, {busy}")
                is_busy = True
                self._wait()

    def _noted(self) -> ApiJob | None:
        return self._store.files.read_note(job_place(self._plan.training_key), ApiJob)

    def _note(self, job_id: str | None) -> None:
        before = self._noted()
        over = before.over if before is not None else ()
        if before is not None and before.job_id is not None and before.job_id != job_id:
            over += (before.job_id,)
        job = ApiJob(job_id=job_id, usd=self._usd, started=time.time(), over=over)
        self._store.write_record(job_place(self._plan.training_key), job)
