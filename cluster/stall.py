"""Whether an engine still brings anything; one that does not, though it is asked, is killed.

Knows nothing of vLLM: it is given what tells of tokens and what kills.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from cluster.requests import EngineDead

LOGGER = logging.getLogger(__name__)

LOOK_S = 1.0
# Who looks may itself be held up (a suspended job, a blocked loop): that is not the engine's time.
LONGEST_GAP_S = 5.0
LOAD_LIMITS = 5  # loading weights brings no token, and may take this many times the limit

T = TypeVar("T")


class Stall:
    """How long requests have been under way without a token, in seconds: `seconds`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._looked = clock()
        self._tokens: Mapping[str, int] = {}
        self._finished = 0

    def look(self, tokens: Mapping[str, int], finished: int) -> None:
        """Take note of the tokens of each request under way, and of how many ended so far.

        Time without requests does not count and forgives nothing: requests that are withdrawn
        before their first token must not hide an engine that gives none.
        """
        now = self._clock()
        passed, self._looked = now - self._looked, now
        moved = any(count > self._tokens.get(name, 0) for name, count in tokens.items())
        if moved or finished > self._finished:
            self.seconds = 0.0
        elif tokens:
            self.seconds += min(passed, LONGEST_GAP_S)
        self._tokens, self._finished = tokens, finished


class Watch:
    """Looks at an engine once a second and kills it after `limit_s` without a token.

    For one event loop. `tokens` gives the tokens so far of each request under way.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        tokens: Callable[[], Mapping[str, int]],
        alive: Callable[[], bool],
        kill: Callable[[], None],
        look_s: float = LOOK_S,
    ) -> None:
        self.finished = 0  # requests, so far: counted by the caller
        self.verdict = ""  # why it was killed, if it was
        self._limit_s = limit_s
        self._tokens, self._alive, self._kill = tokens, alive, kill
        self._look_s = look_s
        self._loads = 0
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look from now on, in the running loop; nothing if that is so already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())

    async def loading(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` of the engine that loads weights; meanwhile no token is expected.

        Raises EngineDead if the engine dies meanwhile (vLLM leaves such a call unanswered) or
        takes longer than LOAD_LIMITS times the limit, upon which it is killed.
        """
        task = asyncio.ensure_future(work)
        stall, limit_s = Stall(), LOAD_LIMITS * self._limit_s
        self._loads += 1
        try:
            while not (await asyncio.wait({task}, timeout=self._look_s))[0]:
                stall.look({"load": 0}, 0)
                if stall.seconds > limit_s:
                    self._end(f"it did not load weights within {limit_s:g} s")
                if not self._alive() or self.verdict:
                    raise EngineDead(self.verdict or "the engine died while it loaded weights")
            return task.result()
        finally:
            task.cancel()
            self._loads -= 1

    async def _look(self) -> None:
        stall = Stall()
        while self._alive() and not self.verdict:
            tokens = self._tokens()
            stall.look({} if self._loads else tokens, self.finished)
            if stall.seconds > self._limit_s:
                under_way = f"{len(tokens)} requests under way"
                self._end(f"it gave no token for {self._limit_s:g} s with {under_way}")
            await asyncio.sleep(self._look_s)

    def _end(self, why: str) -> None:
        self.verdict = f"{why}, and was killed; if it is only that slow, raise stall_limit_s"
        LOGGER.warning("an engine is wedged: %s", self.verdict)
        self._kill()
