"""What a training says while it runs: its losses, and what its ranks use of their machines.

Kept beside the training's record, so that whoever watches needs the store alone, and a training
waits for nobody. Only tells how far work is: nothing is decided by it. Knows nothing of who reads.
"""

import logging
import time
from collections.abc import Callable

from em.record import Record
from em.training import LossPoint
from em.worker_use import WorkerMeter, WorkerUse
from sweeps.store import Store

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
SHARE = 0.01  # of the training's time that writing may take


class LivePoint(Record):
    """One optimiser step: its loss is of all ranks, `use` (now and then) of this one."""

    step: int
    time: float
    loss: float
    learning_rate: float
    use: WorkerUse | None = None


class LiveTraining(Record):
    """What one rank of a training has said until now, by step."""

    rank: int
    points: tuple[LivePoint, ...]


class LiveLog:
    """One rank's points, written to the store every few seconds; an error there is only logged."""

    def __init__(
        self, store: Store, training_key: str, rank: int = 0,
        *, now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Go on from what an earlier attempt at this training wrote."""
        self._store, self._key, self._rank, self._now = store, training_key, rank, now
        self._meter = WorkerMeter()
        self._points: dict[int, LivePoint] = {}
        self._due, self._began = now() + WRITE_EVERY_S, False

    def add(self, point: LossPoint) -> None:
        """Take one step. Steps that are made again after a checkpoint replace what was there."""
        if not self._began:
            self._began = True
            before = self._read()
            self._points = {kept.step: kept for kept in before if kept.step < point.step}
        due = self._now() >= self._due
        self._points[point.step] = LivePoint(
            step=point.step,
            time=time.time(),
            loss=point.loss,
            learning_rate=point.learning_rate,
            use=self._meter.read() if due or not self._points else None,
        )
        if due:
            self.write()

    def _read(self) -> tuple[LivePoint, ...]:
        try:
            before = self._store.live(self._key, self._rank, LiveTraining)
        except Exception as error:  # noqa: BLE001  as in write
            log.warning("what the training said before could not be read: %s", error)
            return ()
        return before.points if before else ()

    def write(self) -> None:
        """Write what there is. The longer that takes, the longer until the next time."""
        began = self._now()
        told = LiveTraining(rank=self._rank, points=tuple(self._points.values()))
        try:
            self._store.write_live(self._key, self._rank, told)
        except Exception as error:  # noqa: BLE001  a store out of reach, of any kind: not the work's end
            log.warning("what the training said could not be written: %s", error)
        self._due = self._now() + max(WRITE_EVERY_S, (self._now() - began) / SHARE)
