"""How long to leave a cluster to others after engines found no room there.

Knows nothing of engines.
"""

import random
import time
from collections.abc import Callable

FIRST_S = 30.0
MOST_S = 600.0


class Pause:
    """A pause by chance, twice as long each time: two who give way to each other do not meet."""

    def __init__(
        self, now: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:  # fmt: skip
        """Nobody waits yet. `chance(low, high)` gives a number between them."""
        self._now, self._chance = now, chance
        self._num = 0
        self._until: float | None = None

    def is_over(self, may_start: bool) -> bool:
        """Whether engines may start: not until a pause after they gave way is over."""
        if not may_start and self._until is None:
            longest = min(MOST_S, FIRST_S * 2**self._num)
            self._until = self._now() + self._chance(longest / 2, longest)
            self._num += 1
        if may_start or (self._until is not None and self._now() >= self._until):
            self._until = None
            return True
        return False

    def forget(self) -> None:
        """Begin with a short one again: there was room."""
        self._num = 0
