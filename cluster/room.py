"""What is free on each node of a cluster, as pieces of work are put there and taken away.

Knows nothing of Ray, which puts them where it likes: a piece that has room here may wait there for
another to end.
"""

from collections.abc import Mapping, Sequence

from cluster.resources import Demand, Totals

SLACK = 1e-9


class Room:
    """The nodes of a cluster, and who holds what of them."""

    def __init__(self, totals: Totals) -> None:
        """All of it is free."""
        self._free = [list(node) for node in totals.nodes]
        self._held: dict[str, list[tuple[int, float, float]]] = {}  # node, CPUs, GPUs
        self._kept: int | None = None

    def set_totals(self, totals: Totals) -> None:
        """Nodes have come or gone: what was held is put anew, where it fits or not."""
        held = {name: [(c, g) for _, c, g in pieces] for name, pieces in self._held.items()}
        self._free = [list(node) for node in totals.nodes]
        self._held, self._kept = {}, None
        largest = sorted(held.items(), key=lambda item: (-sum(g for _, g in item[1]), item[0]))
        for name, pieces in largest:
            self._held[name] = []
            for cpus, gpus in pieces:
                node = self._node(cpus, gpus)
                if node is None and self._free:  # more is held than there is, until some of it ends
                    node = max(range(len(self._free)), key=lambda n: self._free[n][::-1])
                if node is not None:
                    self._put(name, node, cpus, gpus)

    def take(self, demands: Mapping[str, Demand]) -> bool:
        """Take room for all of them, by name, or for none; return whether there was room.

        The pieces of one demand go onto one node where one has room for all, else onto several.
        """
        for name, demand in demands.items():
            self._held[name] = []
            if not self._place(name, demand):
                for taken in demands:
                    self.free(taken)
                return False
        return True

    def _place(self, name: str, demand: Demand) -> bool:
        together = self._node(demand.cpus * demand.count, demand.gpus * demand.count)
        for _ in range(demand.count):
            node = together if together is not None else self._node(demand.cpus, demand.gpus)
            if node is None:
                return False
            self._put(name, node, demand.cpus, demand.gpus)
        return True

    def free(self, name: str) -> None:
        """Give back what is held under a name, if anything is."""
        for node, cpus, gpus in self._held.pop(name, ()):
            self._free[node][0] += cpus
            self._free[node][1] += gpus

    def keep_for(self, demand: Demand) -> None:
        """Let nobody else onto the node with most room: it is being freed for a large demand.

        For one demand at a time, until `keep_none`.
        """
        if self._kept is None and len(self._free) > 1 and self._is_large(demand):
            self._kept = max(range(len(self._free)), key=lambda n: self._free[n][::-1])

    def keep_none(self) -> None:
        """Forget `keep_for`."""
        self._kept = None

    def would_fit(self, wanted: Sequence[Sequence[Demand]], *, without: Sequence[str]) -> bool:
        """Whether one of `wanted` had room if those named `without` gave theirs back."""
        other = Room(Totals(nodes=tuple((c, g) for c, g in self._free)))
        for name in without:
            for node, cpus, gpus in self._held.get(name, ()):
                other._free[node][0] += cpus
                other._free[node][1] += gpus
        return any(
            other.take({str(n): demand for n, demand in enumerate(demands)}) for demands in wanted
        )

    def _is_large(self, demand: Demand) -> bool:
        """Whether smaller pieces could hold it up for ever."""
        most = max(gpus for _, gpus in self._free) if self._free else 0
        return demand.count > 1 or demand.gpus > max(1.0, most)

    def _put(self, name: str, node: int, cpus: float, gpus: float) -> None:
        self._free[node][0] -= cpus
        self._free[node][1] -= gpus
        self._held[name].append((node, cpus, gpus))

    def _node(self, cpus: float, gpus: float) -> int | None:
        """The fullest node that still has room: what is left of others is of most use whole."""
        fits = [
            (free[1], free[0], n)
            for n, free in enumerate(self._free)
            if n != self._kept and free[0] >= cpus - SLACK and free[1] >= gpus - SLACK
        ]
        return min(fits)[2] if fits else None
