"""How far each cell of a sweep is, told by files that any process can read.

Knows nothing of how stages are carried out.
"""

import contextlib
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Literal

import psutil

from em.record import Record
from sweeps.artefacts import Attempt, DriverBeat
from sweeps.plan import CellPlan, Stage, SweepPlan, stages_to_run
from sweeps.store import Store

log = logging.getLogger(__name__)

BEAT_S = 5.0
LOST_AFTER_S = 60.0
MAX_MESSAGE = 2000

State = Literal["missing", "running", "finished", "failed"]


class CellStatus(Record):
    """One line of `emsweep status`."""

    cell_id: str
    model: str
    variant: str
    seed: int
    state: State
    stage: Stage | None
    attempts: int
    error: str | None
    error_class: str | None = None


class CellLog:
    """The current attempt at one cell; every write replaces one small file."""

    def __init__(
        self, store: Store, sweep: str, cell_id: str, *, driver: str, attempt: int
    ) -> None:
        self._store, self._sweep, self._cell_id = store, sweep, cell_id
        self._driver, self._attempt = driver, attempt

    def write(
        self,
        stage: Stage,
        state: Literal["running", "finished", "failed"],
        error: BaseException | str | None = None,
        error_class: str | None = None,
    ) -> None:
        """Say where the attempt is. `error` is kept with its class, cut to MAX_MESSAGE."""
        self._store.write_attempt(
            self._sweep,
            self._cell_id,
            Attempt(
                attempt=self._attempt,
                stage=stage,
                state=state,
                updated=time.time(),
                driver=self._driver,
                error=str(error)[:MAX_MESSAGE] if error is not None else None,
                error_class=type(error).__name__
                if isinstance(error, BaseException)
                else error_class,
            ),
        )


class Beat:
    """A driver's sign of life, renewed by a thread of its own until it is closed."""

    def __init__(self, store: Store, sweep: str) -> None:
        """Begin to carry out the sweep, as a new driver with an id of its own."""
        self.driver = uuid.uuid4().hex[:12]
        self._store, self._path = store, f"{store.sweep_dir(sweep)}/drivers/{self.driver}.json"
        self._started = time.time()
        self._starts: dict[str, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._write(finished=False)
        self._thread = threading.Thread(target=self._loop, name="driver-beat", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def starting(self, what: str) -> Iterator[None]:
        """Note how long the start of `what` takes: it is no cell's work."""
        began, tick = time.time(), time.monotonic()
        yield
        self._starts[what] = (began, began + time.monotonic() - tick)  # however the clock is set

    def close(self) -> None:
        """Say that this driver has ended; where that cannot be written, its beat just stops."""
        self._stop.set()
        self._thread.join()
        self._try_to_write(finished=True)  # an error here would hide what the run ended with

    def _loop(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._try_to_write(finished=False)

    def _try_to_write(self, *, finished: bool) -> None:
        try:
            self._write(finished=finished)
        except Exception as error:  # noqa: BLE001  a store out of reach for a moment, of any kind
            log.warning("the sign of life could not be written: %s", error)

    def _write(self, *, finished: bool) -> None:
        beat = DriverBeat(
            driver=self.driver,
            host=platform.node(),
            pid=os.getpid(),
            started=self._started,
            updated=time.time(),
            finished=finished,
            starts=dict(self._starts),
        )
        self._store.write_record(self._path, beat)


def live_driver(store: Store, sweep: str, *, but: str | None = None) -> DriverBeat | None:
    """Return the driver that is at work on the sweep now (the oldest, not `but`), or None."""
    live = (beat for beat in store.drivers(sweep) if beat.driver != but and _is_live(beat))
    return next(live, None)


def check_alone(store: Store, sweep: str, *, but: Beat | None = None) -> None:
    """Raise ValueError where another driver is at work on the sweep.

    Asked before a driver begins and again once its sign of life is written: of two that begin at
    one moment, at least one sees the other.
    """
    live = live_driver(store, sweep, but=but.driver if but else None)
    if live is not None:
        raise ValueError(
            f"the sweep {sweep!r} is being run by process {live.pid} on {live.host}: watch it with "
            "'emsweep status', or stop that process first"
        )


def _is_live(beat: DriverBeat) -> bool:
    if beat.finished or time.time() - beat.updated > LOST_AFTER_S:
        return False
    return beat.host != platform.node() or psutil.pid_exists(beat.pid)


def cell_status(plan: CellPlan, store: Store, sweep: str, beat: DriverBeat | None) -> CellStatus:
    """Return how far one cell is: what the store holds whole goes before what attempts say."""
    attempts = store.attempts(sweep, plan.cell_id)
    last = attempts[-1] if attempts else None
    stages = stages_to_run(plan, store)
    state: State = "missing"
    if not stages:
        state = "finished"
    elif last and last.state == "failed":
        state = "failed"
    elif last and last.state == "running" and beat and beat.driver == last.driver:
        state = "running"
    failed = last if last and state == "failed" else None
    return CellStatus(
        cell_id=plan.cell_id,
        model=plan.cell.model.name,
        variant=plan.cell.variant.name,
        seed=plan.cell.seed,
        state=state,
        stage=last.stage if last and state in ("failed", "running") else next(iter(stages), None),
        attempts=len(attempts),
        error=failed.error if failed else None,
        error_class=failed.error_class if failed else None,
    )


def statuses(plan: SweepPlan, store: Store) -> list[CellStatus]:
    """Return how far every cell is, in the plan's order."""
    beat = live_driver(store, plan.spec.name)
    return [cell_status(cell, store, plan.spec.name, beat) for cell in plan.cells]


def cells_to_run(plan: SweepPlan, store: Store, *, retry_failed: bool) -> list[CellPlan]:
    """Return the cells with work left; those that failed only where they are to be retried."""
    states = statuses(plan, store)
    wanted = ("missing", "running", "failed") if retry_failed else ("missing", "running")
    return [cell for cell, status in zip(plan.cells, states, strict=True) if status.state in wanted]
