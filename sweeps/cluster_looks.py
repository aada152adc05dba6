"""A driver's looks at its cluster: nodes and engines that come or go, and what an autoscaler hears.

Tells a schedule what it sees. Knows nothing of what the schedule then decides, or of cells.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence

from cluster.resources import Demand
from cluster.schedule import Schedule
from cluster.session import request_room, totals
from sweeps.engine_watch import EngineWatch
from sweeps.files import StoreError
from sweeps.pause import Pause
from sweeps.pools import Pools

MOST_ASKED_FOR = 512  # pieces of room that an autoscaler is told of


class Looks:
    """What one driver has seen of its cluster until now."""

    def __init__(
        self,
        schedule: Schedule,
        pools: Pools,
        lock: threading.RLock,
        *,
        answered: Collection[str],
        is_crowded: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """Look at nothing yet; the schedule knows the nodes as they are now.

        `lock` is the schedule's; `answered` are the engines that have answered, kept by who asks
        them; `is_crowded` says whether another driver wants room, too.
        """
        self._schedule, self._pools, self._lock = schedule, pools, lock
        self._answered, self._is_crowded, self._say = answered, is_crowded, say
        self._engines = EngineWatch()
        self._totals = totals()
        self.pause = Pause()

    def look(self) -> None:
        """See what there is, and tell the schedule, the person and an autoscaler."""
        found, engines = totals(), self._pools.look()
        crowded = self._schedule.crowded
        with contextlib.suppress(StoreError, OSError):  # out of reach: as it was seen last
            crowded = self._is_crowded()
        with self._lock:
            before, self._totals = self._totals, found
            if found != before:
                self._schedule.set_totals(found)
            self._schedule.crowded = crowded
            lost = self._engines.tell(engines, self._answered, self._schedule)
            self._schedule.may_start = self.pause.is_over(self._schedule.may_start)
            wanted = self._schedule.wanted(MOST_ASKED_FOR)
        if len(found.nodes) < len(before.nodes):
            self._say(f"a node is gone, {len(found.nodes)} are left: its work goes on there")
        elif len(found.nodes) > len(before.nodes):
            self._say(f"a node has joined: {len(found.nodes)} nodes")
        for engine in lost:
            self._say(f"engine {engine} is lost; what it was asked is asked of another")
        self.tell_autoscaler(wanted)

    def tell_autoscaler(self, wanted: Sequence[Demand]) -> None:
        """Tell an autoscaler what is wanted; a Ray that was started here does not grow."""
        if self._pools.joined:
            request_room(wanted)
