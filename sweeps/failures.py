"""How a cell's exception becomes a row: the one place with a broad except.

Knows nothing of what the work is or where it runs.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from cluster.requests import EngineDead
from em.judging import JudgeUnavailable
from em.record import Record
from sweeps.artefacts import Attempt
from sweeps.attempts import CellLog
from sweeps.files import StoreError
from sweeps.plan import Stage
from sweeps.store import Store

log = logging.getLogger(__name__)

# Worth another try without a change by the user. Ray's own errors are told by their module, so that
# nothing here imports Ray.
TRANSIENT = (ConnectionError, TimeoutError, EngineDead, JudgeUnavailable)
TRANSIENT_RAY = {
    "ActorDiedError", "ActorUnavailableError", "NodeDiedError", "ObjectLostError", "RayActorError",
    "WorkerCrashedError",
}  # fmt: skip
FIRST_WAIT_S = 1.0

OnStage = Callable[[Stage], None]


class CellFailure(Record):
    """Why a cell is not finished."""

    cell_id: str
    stage: Stage
    error_class: str
    message: str
    transient: bool


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed when it is simply tried again."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_transient(inner) for inner in error.exceptions)
    ray_names = {c.__name__ for c in type(error).__mro__ if c.__module__.startswith("ray.")}
    return isinstance(error, TRANSIENT) or bool(ray_names & TRANSIENT_RAY)


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
        except Exception as error:  # noqa: BLE001  any error of one cell must not end the others
            told = _innermost(error)
            with _noted_if_possible(cell_id):
                attempt.write(stage[0], "failed", told)
            failure = CellFailure(
                cell_id=cell_id,
                stage=stage[0],
                error_class=type(told).__name__,
                message=str(told),
                transient=is_transient(error),
            )
            if not failure.transient or trial == tries:
                return failure
            time.sleep(FIRST_WAIT_S * 2 ** (trial - 1))
        else:
            with _noted_if_possible(cell_id):  # its artefacts are in the store: it is finished
                attempt.write(stage[0], "finished")
            return None
    raise AssertionError("tries must be 1 or more")


def outcome_of(
    get: Callable[[], CellFailure | None], cell_id: str, stage: Stage
) -> CellFailure | None:
    """Return what `get` returns; an error (the process that did the work is lost) is a failure."""
    try:
        return get()
    except Exception as error:  # noqa: BLE001  a lost process must not end the other cells
        return CellFailure(
            cell_id=cell_id,
            stage=stage,
            error_class=type(error).__name__,
            message=str(error),
            transient=is_transient(error),
        )


def record_failure(store: Store, sweep: str, driver: str, failure: CellFailure) -> None:
    """Write `failure` as the cell's last attempt, unless a failure under this driver stands there.

    A process that is killed leaves its attempt as running; only its driver can tell.
    """
    attempts = store.attempts(sweep, failure.cell_id)
    last = attempts[-1] if attempts else None
    if last is not None and last.driver == driver and last.state == "failed":
        return
    mine = last is not None and last.driver == driver and last.state == "running"
    number = _number(last, goes_on=mine)
    attempt = CellLog(store, sweep, failure.cell_id, driver=driver, attempt=number)
    attempt.write(failure.stage, "failed", failure.message, failure.error_class)


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
    number = _number(last, goes_on=goes_on)
    return CellLog(store, sweep, cell_id, driver=driver, attempt=number)


def _number(last: Attempt | None, *, goes_on: bool) -> int:
    """Return the number of an attempt after `last`; a torn file among the attempts is no gap."""
    return (last.attempt if last else 0) + (not goes_on)


@contextlib.contextmanager
def _noted_if_possible(cell_id: str) -> Iterator[None]:
    try:
        yield
    except (OSError, StoreError) as error:
        log.warning("%s: how it ended could not be noted: %s", cell_id, error)


def _innermost(error: BaseException) -> BaseException:
    """Return the error that a group of parallel parts was ended by."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
