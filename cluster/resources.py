"""Does the work fit the cluster, and how: arithmetic before anything is started.

Knows nothing of Ray; takes totals and demands, returns a plan or says what is lacking, in numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
    """How much of the work an empty cluster holds at once.

    `train_slots` cells train side by side if nothing else is there; with `beside`, the engines that
    any cell is asked of fit beside any training.
    """

    train_slots: int
    beside: bool

    def __str__(self) -> str:
        if not self.train_slots:
            return "no training"
        answers = "answers are drawn meanwhile" if self.beside else "answers wait for their room"
        return f"up to {self.train_slots} cells train side by side; {answers}"


class ClusterTooSmall(ValueError):
    """The work cannot run on this cluster, however long it waits."""


def plan_resources(
    totals: Totals, trains: Sequence[Demand], engines: Sequence[Sequence[Demand]]
) -> ResourcePlan:
    """Return how much of `trains` (one cell's each) and `engines` runs at once on `totals`.

    Each of `engines` are those that a cell is asked of together. Raises ClusterTooSmall with the
    arithmetic where one training, or one such group, finds no room on the empty cluster.
    """
    for demands in [*([train] for train in trains), *engines]:
        if not _fits(totals, demands):
            raise ClusterTooSmall(_lacking(totals, demands))
    return ResourcePlan(
        train_slots=min((_slots(totals, train) for train in trains), default=0),
        beside=all(_fits(totals, [train, *group]) for train in trains for group in engines),
    )


def _slots(totals: Totals, train: Demand) -> int:
    slots = 1
    while _fits(totals, [train] * (slots + 1)):
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
