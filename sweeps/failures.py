"""How a cell's exception becomes a row: the one place with a broad except.

Knows nothing of what the work is or where it runs.
"""

import time
from collections.abc import Callable

from em.record import Record
from sweeps.attempts import CellLog
from sweeps.failure_kinds import TRANSIENT, FailureKind, classify, deciding
from sweeps.plan import Stage
from sweeps.store import Store

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
) -> CellFailure | None:
    """Do `work`, trying again up to `tries` times after a transient error; return what failed.

    Each try is an attempt of the cell in the store; `work` says which stage it is in.
    """
    for trial in range(1, tries + 1):
        log = _open_log(store, sweep, cell_id, driver, first_stage)
        stage: list[Stage] = [first_stage]

        def on_stage(now: Stage, log: CellLog = log, stage: list[Stage] = stage) -> None:
            stage[0] = now
            log.write(now, "running")

        try:
            on_stage(first_stage)
            work(on_stage)
        except Exception as error:  # noqa: BLE001  any error of one cell must not end the others
            failure = failure_of(error, cell_id, stage[0])
            log.failed(failure.stage, failure.message, failure.error_class, failure.kind)
            if not failure.transient or trial == tries:
                return failure
            time.sleep(FIRST_WAIT_S * 2 ** (trial - 1))
        else:
            log.write(stage[0], "finished")
            return None
    raise AssertionError("tries must be 1 or more")


def outcome_of(
    get: Callable[[], CellFailure | None], cell_id: str, stage: Stage
) -> CellFailure | None:
    """Return what `get` returns; an error (the process that did the work is lost) is a failure."""
    try:
        return get()
    except Exception as error:  # noqa: BLE001  a lost process must not end the other cells
        return failure_of(error, cell_id, stage)


def record_failure(store: Store, sweep: str, driver: str, failure: CellFailure) -> None:
    """Write `failure` as the cell's last attempt, unless a failure under this driver stands there.

    A process that is killed leaves its attempt as running; only its driver can tell.
    """
    attempts = store.attempts(sweep, failure.cell_id)
    last = attempts[-1] if attempts else None
    if last is not None and last.driver == driver and last.state == "failed":
        return
    mine = last is not None and last.driver == driver and last.state == "running"
    number = len(attempts) if mine else len(attempts) + 1
    log = CellLog(store, sweep, failure.cell_id, driver=driver, attempt=number)
    log.failed(failure.stage, failure.message, failure.error_class, failure.kind)


def _open_log(store: Store, sweep: str, cell_id: str, driver: str, first: Stage) -> CellLog:
    """Go on in this driver's attempt that ended with an earlier stage; else begin the next."""
    attempts = store.attempts(sweep, cell_id)
    last = attempts[-1] if attempts else None
    goes_on = (
        last is not None
        and last.driver == driver
        and last.state == "finished"
        and last.stage != first
    )
    number = len(attempts) if goes_on else len(attempts) + 1
    return CellLog(store, sweep, cell_id, driver=driver, attempt=number)
