"""How a cell's exception becomes a row: the one place with a broad except.

Knows nothing of what the work is or where it runs.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from em.record import Record
from sweeps.artefacts import Attempt
from sweeps.attempts import CellLog
from sweeps.failure_kinds import TRANSIENT, FailureKind, classify, deciding
from sweeps.files import StoreError
from sweeps.leases import HeldElsewhere, LeaseLost
from sweeps.plan import Stage
from sweeps.store import Store

log = logging.getLogger(__name__)
FIRST_WAIT_S = 1.0

OnStage = Callable[[Stage], None]


class CellFailure(Record):
    """Why a cell is not finished."""

    cell_id: str
    stage: Stage
    error_class: str
    message: str
    kind: FailureKind

    @property
    def transient(self) -> bool:
        """Whether the same work may succeed when it is simply tried again."""
        return self.kind in TRANSIENT


class Elsewhere(Record):
    """A cell that another driver is at work on: no failure, and not done yet."""

    cell_id: str
    stage: Stage


Outcome = CellFailure | Elsewhere | None
"""How an attempt ended; None: all was done."""


def failure_of(error: BaseException, cell_id: str, stage: Stage) -> CellFailure:
    """Return an error in a cell's stage as that cell's failure."""
    told = deciding(error)
    return CellFailure(
        cell_id=cell_id,
        stage=stage,
        error_class=type(told).__name__,
        message=str(told),
        kind=classify(told),
    )


def attempt_cell(
    store: Store,
    sweep: str,
    cell_id: str,
    driver: str,
    work: Callable[[OnStage], None],
    *,
    first_stage: Stage,
    tries: int = 1,
) -> Outcome:
    """Do `work`, trying again up to `tries` times after a transient error; return how it ended.

    Each try is an attempt of the cell in the store; `work` says which stage it is in. Nothing is
    begun that the store cannot note; how it ended is returned even where that cannot be noted.
    """
    for trial in range(1, tries + 1):
        attempt = _open_log(store, sweep, cell_id, driver, first_stage)
        stage: list[Stage] = [first_stage]

        def on_stage(now: Stage, attempt: CellLog = attempt, stage: list[Stage] = stage) -> None:
            stage[0] = now
            attempt.write(now, "running")

        try:
            on_stage(first_stage)
            work(on_stage)
        except (HeldElsewhere, LeaseLost):
            with _noted_if_possible(cell_id):
                attempt.write(stage[0], "waiting")
            return Elsewhere(cell_id=cell_id, stage=stage[0])
        except Exception as error:  # noqa: BLE001  any error of one cell must not end the others
            failure = failure_of(error, cell_id, stage[0])
            with _noted_if_possible(cell_id):
                attempt.failed(failure.stage, failure.message, failure.error_class, failure.kind)
            if not failure.transient or trial == tries:
                return failure
            time.sleep(FIRST_WAIT_S * 2 ** (trial - 1))
        else:
            with _noted_if_possible(cell_id):  # its artefacts are in the store: it is finished
                attempt.write(stage[0], "finished")
            return None
    raise AssertionError("tries must be 1 or more")


def outcome_of(get: Callable[[], Outcome], cell_id: str, stage: Stage) -> Outcome:
    """Return what `get` returns; an error (the process that did the work is lost) is a failure."""
    try:
        return get()
    except Exception as error:  # noqa: BLE001  a lost process must not end the other cells
        return failure_of(error, cell_id, stage)


def record_failure(store: Store, sweep: str, driver: str, failure: CellFailure) -> None:
    """Write `failure` as the cell's last attempt, unless a failure under this driver stands there.

    A process that is killed leaves its attempt as running; only its driver can tell.
    """
    last = last_attempt(store, sweep, failure.cell_id, driver)
    if last is not None and last.state == "failed":
        return
    mine = last is not None and last.state == "running"
    number = last.attempt if last and mine else _next_number(store, sweep, failure.cell_id)
    stage = last.stage if last and mine else failure.stage  # it says better where the work was
    attempt = CellLog(store, sweep, failure.cell_id, driver=driver, attempt=number)
    attempt.failed(stage, failure.message, failure.error_class, failure.kind)


def _open_log(store: Store, sweep: str, cell_id: str, driver: str, first: Stage) -> CellLog:
    """Go on in this driver's attempt that waits, or ended with an earlier stage; else the next."""
    last = last_attempt(store, sweep, cell_id, driver)
    goes_on = last is not None and (
        last.state == "waiting" or (last.state == "finished" and last.stage != first)
    )
    number = last.attempt if last and goes_on else _next_number(store, sweep, cell_id)
    return CellLog(store, sweep, cell_id, driver=driver, attempt=number)


def _next_number(store: Store, sweep: str, cell_id: str) -> int:
    return max((attempt.attempt for attempt in store.attempts(sweep, cell_id)), default=0) + 1


def last_attempt(store: Store, sweep: str, cell_id: str, driver: str) -> Attempt | None:
    """Return a driver's last attempt at a cell, or None."""
    mine = [a for a in store.attempts(sweep, cell_id) if a.driver == driver]
    return mine[-1] if mine else None


@contextlib.contextmanager
def _noted_if_possible(cell_id: str) -> Iterator[None]:
    try:
        yield
    except (OSError, StoreError) as error:
        log.warning("%s: how it ended could not be noted: %s", cell_id, error)
