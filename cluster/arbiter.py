"""Whose turn it is on an engine that has one set of weights loaded at a time.

Knows nothing of vLLM: it is given the coroutine that swaps.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.requests import EngineDead, Weights


@dataclass
class _Queue:
    """The calls that wait for one set of weights, the longest wait first."""

    weights: Weights | None
    turns: list[tuple[float, "asyncio.Future[None]"]] = field(default_factory=list)

    @property
    def since(self) -> float:
        return self.turns[0][0]


class Arbiter:
    """Lets calls for one set of weights run at a time, and has the weights swapped in between.

    Calls for the weights that are loaded run side by side. Calls for others wait until those have
    drained; once one has waited `patience_s` seconds, no more are admitted before it, so that a
    steady stream for one set of weights starves nobody. `swap` loads weights (None: the base); if
    it fails, its error goes to the calls that wanted those weights, and what is loaded counts as
    unknown, so that whichever call comes next loads first. For one event loop.
    """

    def __init__(
        self,
        swap: Callable[[Weights | None], Coroutine[Any, Any, None]],
        patience_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with the base model loaded."""
        self._swap = swap
        self._patience_s = patience_s
        self._clock = clock
        self._loaded: str | None = ""  # a key; None: unknown
        self._running = 0
        self._queues: dict[str, _Queue] = {}
        self._swapping: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(self, weights: Weights | None) -> AsyncIterator[str]:
        """Keep `weights` loaded within the block; gives their key, empty for the base model."""
        key = weights.key if weights else ""
        if self._may_join(key):
            self._running += 1
        else:
            await self._turn(key, weights)
        try:
            yield key
        finally:
            self._release()

    def _may_join(self, key: str) -> bool:
        return key == self._loaded and self._swapping is None and not self._someone_starves(key)

    def _someone_starves(self, key: str) -> bool:
        limit = self._clock() - self._patience_s
        return any(q.since <= limit for other, q in self._queues.items() if other != key)

    async def _turn(self, key: str, weights: Weights | None) -> None:
        turn = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(key, _Queue(weights))
        queue.turns.append((self._clock(), turn))
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled after it was admitted: the place was counted and must be given back.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()
            else:
                self._forget(key, turn)
            raise

    def _forget(self, key: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(key)
        if queue is not None:
            queue.turns = [entry for entry in queue.turns if entry[1] is not turn]
            if not queue.turns:
                del self._queues[key]
        self._advance()  # the one whose patience barred others may be the one that left

    def _release(self) -> None:
        self._running -= 1
        self._advance()

    def _advance(self) -> None:
        """Admit whoever may run now; else, with nothing running, start the next swap."""
        if self._swapping is not None or not self._queues:
            return
        if self._loaded in self._queues and not self._someone_starves(self._loaded):
            self._admit(self._loaded)
        elif self._running == 0:
            key = min(self._queues, key=lambda k: self._queues[k].since)
            if key == self._loaded:
                self._admit(key)
            else:
                self._start_swap(key)

    def _admit(self, key: str) -> None:
        for _, turn in self._queues.pop(key).turns:
            if not turn.done():
                self._running += 1
                turn.set_result(None)

    def _start_swap(self, key: str) -> None:
        self._loaded = None
        # A task of its own: the caller that wanted it may be cancelled, the swap goes through.
        self._swapping = asyncio.create_task(self._swap(self._queues[key].weights))
        self._swapping.add_done_callback(lambda done: self._after_swap(key, done))

    def _after_swap(self, key: str, done: "asyncio.Task[None]") -> None:
        self._swapping = None
        error = EngineDead("closed while loading weights") if done.cancelled() else done.exception()
        if error is None:
            self._loaded = key
            if key in self._queues:  # all who wanted it may have left meanwhile
                self._admit(key)
        else:
            self._refuse(key, error)
        self._advance()

    def _refuse(self, key: str, error: BaseException) -> None:
        queue = self._queues.pop(key, None)
        for _, turn in queue.turns if queue else ():
            if not turn.done():
                turn.set_exception(error)
