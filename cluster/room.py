"""What is free on each node of a cluster, as pieces of work are put there and taken away.

Knows nothing of Ray, which puts them where it likes: a piece that has room here may wait there for
another to end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.resources import Demand, Totals

SLACK = 1e-9  # of sums of parts of a GPU
Piece = tuple[float, float]  # CPUs, GPUs


@dataclass(frozen=True)
class _Held:
    name: str
    piece: Piece
    lasts: bool


@dataclass(eq=False)
class _Node:
    size: Piece
    cpus: float  # free, as are the GPUs
    gpus: float
    lasting: float = 0.0  # GPUs held by what does not end by itself
    held: list[_Held] = field(default_factory=list)

    def has(self, piece: Piece) -> bool:
        return self.gpus >= piece[1] - SLACK and self.cpus >= piece[0] - SLACK

    def put(self, held: _Held) -> None:
        self.cpus -= held.piece[0]
        self.gpus -= held.piece[1]
        self.lasting += held.piece[1] * held.lasts
        self.held.append(held)

    @property
    def is_over(self) -> bool:
        return self.cpus < -SLACK or self.gpus < -SLACK

    def hold_only(self, held: Iterable[_Held]) -> None:
        (self.cpus, self.gpus), self.lasting, self.held = self.size, 0.0, []
        for each in held:
            self.put(each)

    def without(self, names: Iterable[str]) -> "_Node":
        left = _Node(self.size, *self.size)
        for held in self.held:
            if held.name not in names:
                left.put(held)
        return left

    def of(self, name: str) -> "_Node":
        """As large as what one holds, and free."""
        pieces = [held.piece for held in self.held if held.name == name]
        return _empty((sum(cpus for cpus, _ in pieces), sum(gpus for _, gpus in pieces)))


def _empty(size: Piece) -> _Node:
    return _Node(size, *size)


class Room:
    """The nodes of a cluster, and who holds what of them."""

    def __init__(self, totals: Totals) -> None:
        """All of it is free."""
        self._nodes = [_empty(size) for size in totals.nodes]
        self._where: dict[str, list[_Node]] = {}
        self._kept: list[_Node] = []
        self._kept_for: tuple[Demand, ...] = ()

    @property
    def left(self) -> list[Piece]:
        """CPUs and GPUs free on each node; below zero where more is held than there is."""
        return [(node.cpus, node.gpus) for node in self._nodes]

    def on(self, node: int) -> list[str]:
        """Return who holds a part of a node."""
        return list(dict.fromkeys(held.name for held in self._nodes[node].held))

    def set_totals(self, totals: Totals) -> None:
        """Nodes have come or gone: of equal ones those that held least.

        What was held on them is put elsewhere, whether it fits or not, until it has ended.
        """
        self.keep_none()
        old: dict[Piece, list[_Node]] = {}
        for node in sorted(self._nodes, key=lambda node: (-node.gpus, -node.cpus)):
            old.setdefault(node.size, []).append(node)
        self._nodes = [old[s].pop() if old.get(s) else _empty(s) for s in totals.nodes]
        homeless = [held for nodes in old.values() for node in nodes for held in node.held]
        self._where = {}
        for node in self._nodes:
            for held in node.held:
                self._note(held.name, node)
        for held in sorted(homeless, key=lambda held: held.piece[::-1], reverse=True):
            if self._nodes:
                self._put(_fullest(self._nodes, held.piece) or self._freest()[0], held)
        self._settle()

    @property
    def is_over(self) -> bool:
        """Whether more is held on some node than it has: a node was lost, with others' room."""
        return any(node.is_over for node in self._nodes)

    def take(self, demands: Mapping[str, Demand], *, lasting: bool = False) -> bool:
        """Take room for all of them, by name, or for none; return whether there was room.

        `lasting` is what does not end by itself, as trainings do. The pieces of one demand go onto
        one node where one has room for all, else onto several.
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
                self._put(node, _Held(name, piece, lasting))
        return True

    def free(self, name: str) -> None:
        """Give back what is held under a name, if anything is."""
        for node in self._where.pop(name, ()):
            node.hold_only([held for held in node.held if held.name != name])
        self._settle()

    def _settle(self) -> None:
        """Where more is held than there is, have some of it on nodes that have room by now."""
        for node in [node for node in self._nodes if node.is_over]:
            for held in sorted(node.held, key=lambda held: held.piece[::-1]):
                there = _fullest(self._nodes, held.piece)
                if there is not None and node.is_over:
                    kept = [*node.held]
                    kept.remove(held)
                    node.hold_only(kept)
                    if all(other.name != held.name for other in kept):
                        self._where[held.name].remove(node)
                    self._put(there, held)

    def keep_for(self, demands: Sequence[Demand]) -> None:
        """Let nobody else onto some nodes until these demands have room on them, together.

        Those where least is lasting, and most is free. Only where smaller ones could hold them up
        for ever: not where each that holds these nodes gives as much room by itself. For the first
        who asks, until `keep_none`.
        """
        if self._kept:
            return
        order = sorted(self._nodes, key=lambda node: (node.lasting, -node.gpus, -node.cpus))
        for num in range(1, len(order) + 1):
            nodes = order[:num]
            if _fit([_empty(node.size) for node in nodes], demands):
                names = {held.name for node in nodes for held in node.held}
                if not all(_fit([node.of(name) for node in nodes], demands) for name in names):
                    self._kept, self._kept_for = nodes, tuple(demands)
                return

    def keep_none(self) -> None:
        """Forget `keep_for`."""
        self._kept, self._kept_for = [], ()

    def would_fit(self, demands: Sequence[Demand], *, without: Iterable[str]) -> bool:
        """Whether they had room together if those named `without` gave theirs back."""
        mine = tuple(demands) == self._kept_for
        nodes = [node for node in self._nodes if mine or node not in self._kept]
        names = set(without)
        return _fit([node.without(names) for node in nodes], demands)

    def _freest(self) -> list[_Node]:
        return sorted(self._nodes, key=lambda node: (node.gpus, node.cpus), reverse=True)

    def _put(self, node: _Node, held: _Held) -> None:
        node.put(held)
        self._note(held.name, node)

    def _note(self, name: str, node: _Node) -> None:
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
