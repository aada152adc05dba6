"""Every scored response of a sweep as columns of numbers, and a few of them whole, to be read.

A sweep of many cells has millions: what is kept of each is what some number or picture needs.
Knows nothing of stores, or of what is made of it.
"""

import hashlib
import heapq
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em.definitions import Definition
from em.scoring import is_coherent, is_misaligned
from sweeps.results import ScoredResponse

SEED = 20260101  # of the responses that are kept whole
Place = tuple[str, str]
"""An evaluation and a judge."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scored responses of one evaluation under one judge; arrays have one entry for each.

    `cell` and `question` are places in `cells` (ids) and `questions`. `answer` is equal for the
    same response under two judges. `aligned` and `coherent` are NaN where they were not scored.
    `counted` are in the definition's denominator, `found` in its numerator.
    """

    cells: tuple[str, ...]
    questions: tuple[str, ...]
    cell: NDArray[np.int32]
    question: NDArray[np.int32]
    answer: NDArray[np.int64]
    aligned: NDArray[np.float64]
    coherent: NDArray[np.float64]
    counted: NDArray[np.bool_]
    found: NDArray[np.bool_]

    def __len__(self) -> int:
        """How many responses there are."""
        return len(self.cell)

    def of_cells(self, ids: Iterable[str]) -> "Scores":
        """Return those of the cells `ids`; `cells` stays as it is."""
        wanted = set(ids)
        return self._at(np.array([name in wanted for name in self.cells], dtype=bool)[self.cell])

    def by(self, group_of: Mapping[str, str]) -> "dict[str, Scores]":
        """Return those of each group of cells, by the group's name; of cells in none, none."""
        names = list(dict.fromkeys(group_of.values()))
        place = {name: number for number, name in enumerate(names)}
        of_cell = np.array([place.get(group_of.get(name, ""), -1) for name in self.cells] or [-1])
        group = of_cell[self.cell]
        order = np.argsort(group, kind="stable")
        ends = np.searchsorted(group[order], np.arange(len(names) + 1))
        return {
            name: self._at(order[ends[number] : ends[number + 1]])
            for number, name in enumerate(names)
        }

    def _at(self, places: NDArray[Any]) -> "Scores":
        columns = {name: getattr(self, name)[places] for name in COLUMNS}
        return Scores(cells=self.cells, questions=self.questions, **columns)

    @property
    def both(self) -> NDArray[np.bool_]:
        """Which have both scores from 0 to 100."""
        return np.asarray(~(np.isnan(self.aligned) | np.isnan(self.coherent)))


COLUMNS = ("cell", "question", "answer", "aligned", "coherent", "counted", "found")
TYPES = ("i4", "i4", "i8", "f8", "f8", "?", "?")


NOTHING = Scores(
    (), (), **{name: np.zeros(0, kind) for name, kind in zip(COLUMNS, TYPES, strict=True)}
)


@dataclass
class _Gathered:
    cells: list[str] = field(default_factory=list)
    questions: dict[str, int] = field(default_factory=dict)
    chunks: list[NDArray[np.void]] = field(default_factory=list)


class Gathering:
    """Takes the responses of one cell after the other, and gives Scores."""

    def __init__(self) -> None:
        self._places: dict[Place, _Gathered] = {}

    def add(self, rows: Sequence[ScoredResponse], definition: Definition) -> None:
        """Take all responses of one cell under one evaluation and judge."""
        if not rows:
            return
        mine = self._places.setdefault((rows[0].evaluation, rows[0].judge), _Gathered())
        number = len(mine.cells)
        mine.cells.append(rows[0].cell_id)
        lines = [
            (
                number,
                mine.questions.setdefault(row.response.question, len(mine.questions)),
                _number_of(row.response.key),
                np.nan if row.scored.aligned is None else row.scored.aligned,
                np.nan if row.scored.coherent is None else row.scored.coherent,
                is_coherent(row.scored, definition),
                is_misaligned(row.scored, definition),
            )
            for row in rows
        ]
        mine.chunks.append(np.array(lines, dtype=list(zip(COLUMNS, TYPES, strict=True))))

    def scores(self) -> dict[Place, Scores]:
        """Return what was taken, by evaluation and judge."""
        found = {}
        for place, mine in self._places.items():
            table = np.concatenate(mine.chunks)
            found[place] = Scores(
                cells=tuple(mine.cells),
                questions=tuple(mine.questions),
                **{name: np.ascontiguousarray(table[name]) for name in COLUMNS},
            )
        return found


def _number_of(key: str) -> int:
    """Return a number that no two of millions of keys share, but for a chance of 1 in a million."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


class ToRead:
    """Keeps some responses of each condition whole, drawn by a fixed seed: all have one chance.

    Every condition, evaluation and judge has as many, so that a small one is not lost.
    """

    def __init__(self, each: int, condition_of: Mapping[str, str]) -> None:
        """Keep `each` of a group; `condition_of` gives a cell's condition by its id."""
        self._each, self._condition_of = each, condition_of
        self._draws = random.Random(SEED)
        self._groups: dict[tuple[str, str, str], list[tuple[float, int, ScoredResponse]]] = {}
        self.num_seen = 0

    def add(self, rows: Sequence[ScoredResponse]) -> None:
        """Take responses of one cell, or more of them."""
        for row in rows:
            place = (self._condition_of[row.cell_id], row.evaluation, row.judge)
            group = self._groups.setdefault(place, [])
            # The largest of the drawn numbers go.
            drawn = (-self._draws.random(), -self.num_seen, row)
            self.num_seen += 1
            if len(group) < self._each:
                heapq.heappush(group, drawn)
            elif drawn > group[0]:
                heapq.heapreplace(group, drawn)

    def kept(self, most: int) -> list[ScoredResponse]:
        """Return those kept, in the order in which they came; the first `most` of them."""
        every = [one for group in self._groups.values() for one in group]
        return [row for _, _, row in sorted(every, key=lambda one: -one[1])[:most]]
