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
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from em.record import Record
from sweeps.artefacts import Attempt, DriverBeat
from sweeps.failure_kinds import CURES, FailureKind, classify_stored
from sweeps.leases import LOST_AFTER_S, Holder, has_ended, place_of_process, process_ticks
from sweeps.plan import CellPlan, Stage, SweepPlan, left_of
from sweeps.store import Store

log = logging.getLogger(__name__)

BEAT_S = 5.0
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
    kind: FailureKind | None = None
    cure: str | None = None
    failed_judgements: int = 0
    stages_left: list[Stage] = Field(default_factory=list)

    @property
    def shown(self) -> dict[str, Any]:
        """What a user is shown, as plain values."""
        return self.model_dump(exclude={"error_class", "stages_left"})


class CellLog:
    """The current attempt at one cell; every write replaces one small file."""

    def __init__(
        self, store: Store, sweep: str, cell_id: str, *, driver: str, attempt: int
    ) -> None:
        self._store, self._sweep, self._cell_id = store, sweep, cell_id
        self._driver, self._attempt = driver, attempt

    def write(self, stage: Stage, state: Literal["running", "waiting", "finished"]) -> None:
        """Say where the attempt is."""
        self._write(stage, state)

    def failed(self, stage: Stage, error: str, error_class: str, kind: FailureKind) -> None:
        """Say how the attempt ended; `error` is cut to MAX_MESSAGE."""
        self._write(stage, "failed", error[:MAX_MESSAGE], error_class, kind)

    def _write(
        self,
        stage: Stage,
        state: Literal["running", "waiting", "finished", "failed"],
        error: str | None = None,
        error_class: str | None = None,
        kind: FailureKind | None = None,
    ) -> None:
        self._store.write_attempt(
            self._sweep,
            self._cell_id,
            Attempt(
                attempt=self._attempt,
                stage=stage,
                state=state,
                updated=time.time(),
                driver=self._driver,
                error=error,
                error_class=error_class,
                kind=kind,
            ),
        )


class Beat:
    """A driver's sign of life, renewed by a thread of its own until it is closed."""

    def __init__(self, store: Store, sweep: str) -> None:
        """Begin to carry out the sweep, as a new driver with an id of its own."""
        self.driver = uuid.uuid4().hex[:12]
        self._store, self._sweep = store, sweep
        self._started, self._count = time.time(), 0
        self._starts: dict[str, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._write(finished=False)
        self._thread = threading.Thread(target=self._loop, name="driver-beat", daemon=True)
        self._thread.start()

    @property
    def holder(self) -> Holder:
        """In whose name this driver's processes take leases."""
        return Holder(self.driver, self._sweep)

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
        self._count += 1
        beat = DriverBeat(
            driver=self.driver,
            host=platform.node(),
            place=place_of_process(),
            pid=os.getpid(),
            process_ticks=process_ticks(os.getpid()),
            started=self._started,
            updated=time.time(),
            count=self._count,
            finished=finished,
            starts=dict(self._starts),
        )
        self._store.write_driver(self._sweep, beat)


def live_drivers(store: Store, sweep: str) -> list[DriverBeat]:
    """Return the drivers that seem to be at work on the sweep now; for a person to be shown.

    One look must do here, so that of other machines their clocks are believed. Where something
    hangs on it, see sweeps.leases.living.
    """
    return [
        beat
        for beat in store.drivers(sweep)
        if not has_ended(beat)
        and (beat.place == place_of_process() or time.time() - beat.updated <= LOST_AFTER_S)
    ]


def kind_of(attempt: Attempt) -> FailureKind:
    """Return the kind of a failed attempt's error; told anew for one of before kinds were kept."""
    return attempt.kind or classify_stored(attempt.error_class, attempt.error)


def cell_status(plan: CellPlan, store: Store, sweep: str, live: Collection[str]) -> CellStatus:
    """Return how far one cell is: what the store holds whole goes before what attempts say.

    `live` are the ids of the drivers at work.
    """
    kept = store.attempts(sweep, plan.cell_id)
    attempts = [attempt for attempt in kept if attempt.state != "waiting"]
    last = attempts[-1] if attempts else None
    stages, failed_judgements = left_of(plan, store)
    state: State = "missing"
    if not stages:
        state = "finished"
    elif any(a.state in ("running", "waiting") and a.driver in live for a in kept):
        state = "running"
    elif last and last.state == "failed":
        state = "failed"
    failed = last if last and state == "failed" else None
    kind = kind_of(failed) if failed else None
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
        kind=kind,
        cure=CURES[kind] if kind else None,
        stages_left=stages,
        failed_judgements=failed_judgements,
    )


def statuses(
    plan: SweepPlan, store: Store, cells: Sequence[CellPlan] | None = None
) -> list[CellStatus]:
    """Return how far every one of `cells` is (those of the plan for None), in their order."""
    live = {beat.driver for beat in live_drivers(store, plan.spec.name)}
    asked = plan.cells if cells is None else cells
    return store.each(lambda cell: cell_status(cell, store, plan.spec.name, live), asked)
