"""Cells to carry out with the stages left of each: the store as it was read once.

Knows nothing of why they are to do (see sweeps.selection), or of what a stage holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweeps.plan import CellPlan, Stage, stages_to_run
from sweeps.store import Store


@dataclass(frozen=True)
class Todo:
    """Cells, and the stages of each, by its id, that the store did not hold whole."""

    cells: tuple[CellPlan, ...]
    stages: Mapping[str, Sequence[Stage]]

    def left(self, cell: CellPlan) -> Sequence[Stage]:
        """Return the stages left of a cell, in order."""
        return self.stages[cell.cell_id]

    def lacking(self, stage: Stage) -> list[CellPlan]:
        """Return the cells of which a stage is left."""
        return [cell for cell in self.cells if stage in self.left(cell)]


def read_todo(cells: Iterable[CellPlan], store: Store) -> Todo:
    """Read what is left of `cells`, each once."""
    cells = tuple(cells)
    found = store.each(lambda cell: stages_to_run(cell, store), cells)
    return Todo(cells, {cell.cell_id: left for cell, left in zip(cells, found, strict=True)})
