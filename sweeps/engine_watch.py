"""What looks at a driver's engines come to: which answer, which are away, which are lost for good.

Knows nothing of how they are looked at, or of what is done about them.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from cluster.serving import PATIENCE_S, PoolState

# A replica that Serve replaces comes up within this time, loading included; else its engine is
# given up, as those who ask it have given it up.
AWAY_S = PATIENCE_S
UNPLACED_S = 30.0  # without room on any node: another's work is there, which may take hours


class Told(Protocol):
    """Who is told of engines: cluster.schedule.Schedule."""

    def up(self, engine: str) -> None: ...  # noqa: D102
    def away(self, engine: str) -> None: ...  # noqa: D102
    def lost(self, engine: str) -> None: ...  # noqa: D102
    def unplaced(self, engine: str) -> None: ...  # noqa: D102


class EngineWatch:
    """How long each engine has been away, or without room, by this process's own clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._away: dict[str, float] = {}
        self._unplaced: dict[str, float] = {}

    def tell(
        self, states: Mapping[str, PoolState | None], answered: Collection[str], told: Told
    ) -> list[str]:
        """Tell of every engine of `states`, and return those that are lost.

        `answered` are the engines that have answered once.
        """
        lost = []
        self._away = self._since(self._away, (e for e, s in states.items() if s != "running"))
        self._unplaced = self._since(
            self._unplaced, (e for e, s in states.items() if s == "unplaced")
        )
        for engine, state in states.items():
            waits = self._lasts(self._unplaced, engine, UNPLACED_S)
            if engine not in answered:
                if waits:
                    told.unplaced(engine)
            elif state == "running":
                told.up(engine)
            elif state in (None, "ending") or waits or self._lasts(self._away, engine, AWAY_S):
                told.lost(engine)
                lost.append(engine)
            else:
                told.away(engine)
        return lost

    def _since(self, before: Mapping[str, float], now: Iterable[str]) -> dict[str, float]:
        return {engine: before.get(engine, self._now()) for engine in now}

    def _lasts(self, since: Mapping[str, float], engine: str, seconds: float) -> bool:
        return engine in since and self._now() - since[engine] >= seconds
