"""Does the work fit the cluster, and how: arithmetic before anything is started.

Knows nothing of Ray; takes totals and demands, returns a plan or says what is lacking, in numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Totals:
    """What a cluster has: (CPUs, GPUs) of each node."""

    nodes: tuple[tuple[float, float], ...]

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return math.fsum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return math.fsum(gpus for _, gpus in self.nodes)


MOST_WAYS = 2000  # of placing pools that are looked at; 16 replicas on equal nodes have 231


@dataclass(frozen=True)
class Demand:
    """`count` pieces that each hold `cpus` and `gpus` on one node."""

    name: str
    cpus: float
    gpus: float
    count: int = 1

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"
        return f"{self.name}: {self.count} x {each}"


@dataclass(frozen=True)
class ResourcePlan:
    """How training and serving share the cluster.

    `overlap`: both at once. `two-pass`: all training, then all serving. `pool_groups` are the pools
    that stand at the same time; `train_slots` how many cells train side by side.
    """

    mode: Literal["overlap", "two-pass"]
    train_slots: int
    pool_groups: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        groups = len(self.pool_groups)
        pools = f"{groups} group{'s' * (groups != 1)} of pools"
        if not self.train_slots:
            return f"no training; {pools}"
        how = {
            "overlap": "answers are drawn while others train",
            "two-pass": "training first, then answers (both do not fit at once)",
        }[self.mode]
        return f"{self.train_slots} cells train side by side; {how}; {pools}"


class ClusterTooSmall(ValueError):
    """The work cannot run on this cluster, however long it waits."""


def plan_resources(
    totals: Totals, train: Demand | None, pools: Sequence[Demand], *, shared: Sequence[str] = ()
) -> ResourcePlan:
    """Return how `train` (a cell; `count` ranks) and `pools` run on `totals`.

    `shared` are pools (judges) that stand beside every other pool. Raises ClusterTooSmall with the
    arithmetic where one training, or one pool with the shared ones, fits no way.
    """
    if train is not None and not _fits(totals, [train]):
        raise ClusterTooSmall(_lacking(totals, [train]))
    if _fits(totals, [*pools]):
        groups: tuple[tuple[str, ...], ...] = (tuple(pool.name for pool in pools),) if pools else ()
    else:
        common = [pool for pool in pools if pool.name in shared]
        others = [pool for pool in pools if pool.name not in shared] or common[:1]
        for pool in others:
            group = [pool, *(c for c in common if c is not pool)]
            if not _fits(totals, group):
                raise ClusterTooSmall(_lacking(totals, group))
        groups = tuple((pool.name, *(c.name for c in common if c is not pool)) for pool in others)
    if train is None:
        return ResourcePlan(mode="two-pass", train_slots=0, pool_groups=groups)
    overlap = len(groups) == 1 and _fits_wherever(totals, train, pools)
    return ResourcePlan(
        mode="overlap" if overlap else "two-pass",
        train_slots=_slots(totals, train, beside=pools if overlap else ()),
        pool_groups=groups,
    )


def _fits_wherever(totals: Totals, train: Demand, pools: Sequence[Demand]) -> bool:
    """Whether `train` finds room beside `pools`, on whatever nodes the scheduler has put them.

    Else it would wait for room that the pools, which wait for it, never give. Where there are more
    ways than MOST_WAYS to place them, no.
    """
    ways = {tuple(sorted(totals.nodes))}
    for pool in pools:
        for _ in range(pool.count):
            ways = {
                tuple(sorted([*way[:n], (cpus - pool.cpus, gpus - pool.gpus), *way[n + 1 :]]))
                for way in ways
                for n, (cpus, gpus) in enumerate(way)
                if cpus >= pool.cpus - 1e-9 and gpus >= pool.gpus - 1e-9
            }
            if len(ways) > MOST_WAYS:
                return False
    return bool(ways) and all(_fits(Totals(nodes=way), [train]) for way in ways)


def _slots(totals: Totals, train: Demand, *, beside: Sequence[Demand]) -> int:
    slots = 0
    demands = [*beside]
    while _fits(totals, [*demands, train]):
        demands.append(train)
        slots += 1
    return slots


def _fits(totals: Totals, demands: Sequence[Demand]) -> bool:
    """Whether every piece finds a node: largest first, each on the first node with room."""
    free = [[cpus, gpus] for cpus, gpus in totals.nodes]
    pieces = [(d.gpus, d.cpus) for d in demands for _ in range(d.count)]
    for gpus, cpus in sorted(pieces, reverse=True):
        room = next((n for n in free if n[0] >= cpus - 1e-9 and n[1] >= gpus - 1e-9), None)
        if room is None:
            return False
        room[0] -= cpus
        room[1] -= gpus
    return True


def _lacking(totals: Totals, demands: Sequence[Demand]) -> str:
    cpus = math.fsum(d.cpus * d.count for d in demands)
    gpus = math.fsum(d.gpus * d.count for d in demands)
    wanted = "; ".join(str(demand) for demand in demands)
    nodes = ", ".join(f"{c:g} CPUs + {g:g} GPUs" for c, g in totals.nodes)
    return (
        f"the cluster is too small. Wanted at once: {wanted} = {cpus:g} CPUs and {gpus:g} GPUs; "
        f"there are {totals.cpus:g} CPUs and {totals.gpus:g} GPUs ({len(totals.nodes)} nodes: "
        f"{nodes}), and a piece does not span nodes. Lower the numbers under 'resources' (or "
        "training.ranks, serving.replicas), or name a larger cluster with --address"
    )
