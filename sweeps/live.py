"""What a training says while it runs: its losses, and what its ranks use of their machines.

Kept beside the training's record, so that whoever watches needs the store alone, and a training
waits for nobody. Only tells how far work is: nothing is decided by it. Knows nothing of who reads.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from em.record import Record
from em.training import LossPoint
from em.worker_use import WorkerMeter, WorkerUse
from sweeps.store import Store

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
CLOSE_S = 10.0  # that the end of a training waits for its last points


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
    """One rank's points, written to the store every few seconds by a thread of their own.

    The training never waits for it; an error there is only logged.
    """

    def __init__(
        self, store: Store, training_key: str, rank: int = 0,
        *, now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Go on from what an earlier attempt at this training wrote."""
        self._store, self._key, self._rank, self._now = store, training_key, rank, now
        self._meter = WorkerMeter()
        self._points: dict[int, LivePoint] = {}
        self._earlier: tuple[LivePoint, ...] | None = None
        self._due = now() + WRITE_EVERY_S
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="live")
        self._writing: Future[None] | None = None

    def add(self, point: LossPoint) -> None:
        """Take one step. Steps that are made again after a checkpoint replace what was there."""
        is_due = self._now() >= self._due
        self._points[point.step] = LivePoint(
            step=point.step,
            time=time.time(),
            loss=point.loss,
            learning_rate=point.learning_rate,
            use=self._meter.read() if is_due or not self._points else None,
        )
        if is_due and (self._writing is None or self._writing.done()):
            self._begin()

    def close(self) -> None:
        """Write what there is, for CLOSE_S seconds at most."""
        wait([self._writing] if self._writing else [], CLOSE_S / 2)
        self._begin()
        wait([self._writing] if self._writing else [], CLOSE_S / 2)
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        self._writing = self._writer.submit(self._write, tuple(self._points.values()))
        self._due = self._now() + WRITE_EVERY_S

    def _write(self, points: tuple[LivePoint, ...]) -> None:
        try:
            if self._earlier is None and points:
                self._earlier = self._before(points[0].step)
            told = LiveTraining(rank=self._rank, points=(*(self._earlier or ()), *points))
            self._store.write_live(self._key, self._rank, told)
        except Exception as error:  # noqa: BLE001  a store out of reach, of any kind
            log.warning("what the training said could not be written: %s", error)

    def _before(self, step: int) -> tuple[LivePoint, ...]:
        """Return what an earlier attempt said of the steps before `step`."""
        before = self._store.live(self._key, self._rank, LiveTraining)
        return tuple(p for p in before.points if p.step < step) if before else ()
