"""How many calls to a server are under way at once: more while it copes, half when it says stop.

Additive increase, multiplicative decrease, as in TCP (Chiu and Jain 1989). Knows nothing of what is
called; the caller says how a call ended.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

START = 4  # calls at once before anything is known of the server
LEAST_PAUSE_S = 1.0  # one burst of refusals is one sign, not many
MOST_PAUSE_S = 60.0  # a server that asks for more is not waited for
# Where a server does not say how long to wait: doubled with each burst of refusals.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 8.0
STEP_S = 0.01  # longer with each refusal in a row, of a server that says to wait for nothing

T = TypeVar("T")


class Pace:
    """A limit on calls under way, from 1 to `most`.

    `refusals` are bursts of them since the last call that was answered.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(START, most))
        self.under_way = 0
        self.refusals = 0
        self._refused = 0  # calls, since the last that was answered
        self._asks_too_much = False
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

    async def in_turn(
        self, call: Callable[[], Awaitable[T]], *, busy: type[Exception], tries: int
    ) -> T:
        """Make a call in its turn, and again in a later turn where it raised `busy`: "too many".

        A server that answers others meanwhile is not away, however often it refuses this one.
        Raises `busy` once it has refused in `tries` bursts and answered nothing in between, or asks
        to wait for longer than MOST_PAUSE_S.
        """
        while True:
            async with self.slot():
                try:
                    return await call()
                except busy:
                    if self.refusals >= tries or self._asks_too_much:
                        raise
            # Those that wait go first: else its place would be its own again.
            await asyncio.sleep(0)

    def went_well(self) -> None:
        """A call was answered: one more at once for each round of calls that went well."""
        self.refusals = self._refused = 0
        self._asks_too_much = False
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def slow_down(self, wait_s: float | None) -> None:
        """The server refused a call as one too many, and said to wait `wait_s` seconds (or not)."""
        now = time.monotonic()
        burst_began = now >= self._slowed_until  # others were under way when it was slowed
        self._refused += 1
        self._asks_too_much = (wait_s or 0.0) > MOST_PAUSE_S
        if burst_began:
            self.refusals += 1
            self.limit = max(1.0, self.limit / 2)
        if wait_s is None:
            pause = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.refusals - 1))
        else:
            pause = min(MOST_PAUSE_S, max(STEP_S * self._refused, wait_s))
        self._not_before = max(self._not_before, now + pause)
        if burst_began:
            self._slowed_until = now + max(pause, LEAST_PAUSE_S)
