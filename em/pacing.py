"""How many calls to a server are under way at once: more while it copes, half when it says stop.

Additive increase, multiplicative decrease, as in TCP (Chiu and Jain 1989). Knows nothing of what is
called; the caller says how a call ended.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

START = 4  # calls at once before anything is known of the server
LEAST_PAUSE_S = 1.0  # one burst of refusals is one sign, not many
MOST_PAUSE_S = 60.0  # a server that asks for more is asked again after this


class Pace:
    """A limit on calls under way, from 1 to `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(START, most))
        self.under_way = 0
        self._free = asyncio.Condition()
        self._not_before = 0.0
        self._slowed_until = 0.0

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until one more call may be made, and hold its place until it has ended."""
        async with self._free:
            await self._free.wait_for(lambda: self.under_way < int(self.limit))
            self.under_way += 1
        try:
            while (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield
        finally:
            async with self._free:
                self.under_way -= 1
                self._free.notify_all()

    def went_well(self) -> None:
        """A call was answered: one more at once for each round of calls that went well."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def slow_down(self, wait_s: float | None) -> None:
        """The server refused a call as one too many, and said to wait `wait_s` seconds (or not)."""
        now = time.monotonic()
        pause = min(MOST_PAUSE_S, max(0.0, wait_s or 0.0))
        self._not_before = max(self._not_before, now + pause)
        if now < self._slowed_until:  # calls that were under way when it was slowed
            return
        self.limit = max(1.0, self.limit / 2)
        self._slowed_until = now + max(pause, LEAST_PAUSE_S)
