"""What is free on each node of a cluster, as pieces of work are put there and taken away.

Knows nothing of Ray, which puts them where it likes: a piece that has room here may wait there for
another to end.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.resources import Demand, Totals

SLACK = 1e-9  # of sums of parts of a GPU
Piece = tuple[float, float]  # CPUs, GPUs


@dataclass(eq=False)
class _Node:
    size: Piece
    cpus: float  # free, as are the GPUs
    gpus: float
    pieces: list[tuple[str, Piece]] = field(default_factory=list)  # and who holds each

    def has(self, piece: Piece) -> bool:
        return self.gpus >= piece[1] - SLACK and self.cpus >= piece[0] - SLACK

    def put(self, name: str, piece: Piece) -> None:
        self.cpus -= piece[0]
        self.gpus -= piece[1]
        self.pieces.append((name, piece))

    def remove(self, name: str) -> None:
        self.pieces = [held for held in self.pieces if held[0] != name]
        self.cpus = self.size[0] - sum(cpus for _, (cpus, _) in self.pieces)
        self.gpus = self.size[1] - sum(gpus for _, (_, gpus) in self.pieces)

    def of(self, name: str) -> "_Node":
        """As large as what one holds, and free."""
        held = [piece for holder, piece in self.pieces if holder == name]
        size = (sum(cpus for cpus, _ in held), sum(gpus for _, gpus in held))
        return _Node(size, *size)

    def gpus_of(self, names: Collection[str]) -> float:
        return sum(gpus for holder, (_, gpus) in self.pieces if holder in names)

    def without(self, names: Iterable[str]) -> "_Node":
        left = _Node(self.size, self.cpus, self.gpus, [*self.pieces])
        for name in {name for name, _ in self.pieces}.intersection(names):
            left.remove(name)
        return left


class Room:
    """The nodes of a cluster, and who holds what of them."""

    def __init__(self, totals: Totals) -> None:
        """All of it is free."""
        self._nodes = [_Node(size, *size) for size in totals.nodes]
        self._where: dict[str, list[_Node]] = {}
        self._kept: list[_Node] = []
        self._kept_for: tuple[Demand, ...] = ()

    @property
    def left(self) -> list[Piece]:
        """CPUs and GPUs free on each node; below zero where more is held than there is."""
        return [(node.cpus, node.gpus) for node in self._nodes]

    def on(self, node: int) -> list[str]:
        """Return who holds a part of a node."""
        return list(dict.fromkeys(name for name, _ in self._nodes[node].pieces))

    def set_totals(self, totals: Totals) -> None:
        """Nodes have come or gone: of equal ones those that held least.

        What was held on them is put elsewhere, whether it fits or not, until it has ended.
        """
        self.keep_none()
        old: dict[Piece, list[_Node]] = {}
        for node in sorted(self._nodes, key=lambda node: (-node.gpus, -node.cpus)):
            old.setdefault(node.size, []).append(node)
        self._nodes = [old[s].pop() if old.get(s) else _Node(s, *s) for s in totals.nodes]
        homeless = [held for nodes in old.values() for node in nodes for held in node.pieces]
        self._where = {}
        for node in self._nodes:
            for name, _ in node.pieces:
                self._where.setdefault(name, []).append(node)
        for name, piece in sorted(homeless, key=lambda held: held[1][::-1], reverse=True):
            if self._nodes:
                self._put(name, _fullest(self._nodes, piece) or self._freest()[0], piece)

    def take(self, demands: Mapping[str, Demand]) -> bool:
        """Take room for all of them, by name, or for none; return whether there was room.

        The pieces of one demand go onto one node where one has room for all, else onto several.
        """
        nodes = self._nodes
        if self._kept and tuple(demands.values()) != self._kept_for:
            nodes = [node for node in nodes if node not in self._kept]
        for name, demand in demands.items():
            assert name not in self._where, name
            whole = (demand.cpus * demand.count, demand.gpus * demand.count)
            together = _fullest(nodes, whole)
            for _ in range(demand.count):
                piece = (demand.cpus, demand.gpus)
                node = together or _fullest(nodes, piece)
                if node is None:
                    for taken in demands:
                        self.free(taken)
                    return False
                self._put(name, node, piece)
        return True

    def free(self, name: str) -> None:
        """Give back what is held under a name, if anything is."""
        for node in self._where.pop(name, ()):
            node.remove(name)

    def keep_for(self, demands: Sequence[Demand], lasting: Collection[str] = ()) -> None:
        """Let nobody else onto some nodes until these demands have room on them, together.

        Those with most that is free or will be by itself, as it is not held by who is `lasting`.

        Only where smaller ones could hold them up for ever: not where each that holds these nodes
        gives as much room by itself. For the first who asks, until `keep_none`.
        """
        if self._kept:
            return
        freest = sorted(self._freest(), key=lambda node: node.gpus_of(lasting))
        for num in range(1, len(freest) + 1):
            nodes = freest[:num]
            if _fit([_Node(node.size, *node.size) for node in nodes], demands):
                held = {name for node in nodes for name, _ in node.pieces}
                if not all(_fit([node.of(name) for node in nodes], demands) for name in held):
                    self._kept, self._kept_for = nodes, tuple(demands)
                return

    def keep_none(self) -> None:
        """Forget `keep_for`."""
        self._kept, self._kept_for = [], ()

    def would_fit(self, demands: Sequence[Demand], *, without: Iterable[str]) -> bool:
        """Whether they had room together if those named `without` gave theirs back."""
        mine = tuple(demands) == self._kept_for
        nodes = [node for node in self._nodes if mine or node not in self._kept]
        return _fit([node.without(without) for node in nodes], demands)

    def _freest(self) -> list[_Node]:
        return sorted(self._nodes, key=lambda node: (node.gpus, node.cpus), reverse=True)

    def _put(self, name: str, node: _Node, piece: Piece) -> None:
        node.put(name, piece)
        where = self._where.setdefault(name, [])
        if node not in where:
            where.append(node)


def _fullest(nodes: Sequence[_Node], piece: Piece) -> _Node | None:
    """The fullest node that still has room: what is left of others is of most use whole."""
    fits = (node for node in nodes if node.has(piece))
    return min(fits, key=lambda node: (node.gpus, node.cpus), default=None)


def _fit(nodes: Sequence[_Node], demands: Sequence[Demand]) -> bool:
    room = Room(Totals(nodes=()))
    room._nodes = [*nodes]
    return room.take({str(number): demand for number, demand in enumerate(demands)})
