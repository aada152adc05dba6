"""A sweep's scored responses as the long tables that em.analysis takes, one for each evaluation.

Knows which conditions are worth comparing; knows nothing of the statistics.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from em.analysis import ALL_PAIRS, Analysis, Pair, analyse, compared
from em.attribution import Grid
from em.condition import Asked
from em.contrasts import NOT_PAIRED, Contrast, adjusted
from em.definitions import Definition
from em.grouping import Known
from em.record import Record
from em.seed_rates import Weights
from em.seeds import FACTORS
from sweeps.answers import Place, Scores
from sweeps.plan import SweepPlan
from sweeps.results import CellResult
from sweeps.spec import UNTUNED, Cell


class Design(Record):
    """All that the analysis of an evaluation's table needs beside the table."""

    what: str
    weights: Weights
    least: int = Field(description="scored values of a seed and question, to count")
    pairs: tuple[Pair, ...] = Field(description="conditions to compare")
    factors: dict[str, dict[str, str]] = Field(description="of seeds; see em.grouping")
    one_model: tuple[str, ...] = Field(description="conditions whose seeds are of sampling alone")
    grid: Grid

    @property
    def known(self) -> Known:
        """What is known of the table beside its values."""
        return Known(self.factors, frozenset(self.one_model), self.least)


def analyses(
    sweep: SweepPlan, tables: Mapping[str, pa.Table], metrics: Mapping[str, Definition]
) -> dict[str, Analysis]:
    """Return the analysis of each evaluation's table (see tables_of), by its name."""
    return {name: analysed(design_of(sweep, metrics[name]), t) for name, t in tables.items()}


def analysed(design: Design, table: pa.Table) -> Analysis:
    """Return the analysis of a table by its design."""
    return analyse(
        table,
        what=design.what,
        asked=Asked(weights=design.weights),
        pairs=design.pairs,
        known=design.known,
        grid=design.grid,
    )


def design_of(sweep: SweepPlan, definition: Definition) -> Design:
    """Return how the tables of a sweep are analysed under one definition."""
    cells = {cell.cell_id: cell.cell for cell in sweep.cells}
    by_questions = definition.aggregation != "pooled"
    untuned = (cell.condition for cell in cells.values() if cell.training is None)
    return Design(
        what=f"{definition.name}: {definition.text}",
        weights="questions" if by_questions else "answers",
        least=definition.min_answers,
        pairs=tuple(_pairs(list(cells.values()))),
        factors=_factors(cells),
        one_model=tuple(dict.fromkeys(untuned)),
        grid=_grid(list(cells.values())),
    )


def between_forms(
    sweep: SweepPlan, tables: Mapping[str, pa.Table], metrics: Mapping[str, Definition]
) -> list[Contrast]:
    """Return how the answers to one question differ between two forms of asking it.

    Of evaluations that differ in form and follow one definition: the same cells answered both.
    """
    asked = [e for e in sweep.spec.evaluations if e.name in tables]
    found = []
    for second, first in itertools.combinations(asked, 2):
        if metrics[first.name] == metrics[second.name] and first.form != second.form:
            names = (first.name, second.name)
            found += compared(
                tables[first.name],
                tables[second.name],
                names,
                design_of(sweep, metrics[first.name]).known,
            )
    return adjusted([one for one in found if one.paired != NOT_PAIRED])


def tables_of(
    sweep: SweepPlan, results: Sequence[CellResult], scores: Mapping[Place, Scores]
) -> dict[str, pa.Table]:
    """Return the values of each evaluation's finished cells, by its name, where there are any."""
    cells = {cell.cell_id: cell.cell for cell in sweep.cells}
    finished: dict[Place, list[str]] = {}
    for result in results:
        if result.state == "finished":
            finished.setdefault((result.evaluation, result.judge), []).append(result.cell_id)
    found: dict[str, list[pa.Table]] = {}
    for place, ids in finished.items():
        if place in scores and len(mine := scores[place].of_cells(ids)):
            found.setdefault(place[0], []).append(_table(mine, place[1], cells))
    return {name: pa.concat_tables(tables) for name, tables in found.items()}


def _table(scores: Scores, judge: str, cells: Mapping[str, Cell]) -> pa.Table:
    """Return a row for each response; the value is null where it counts in no rate."""
    of = [cells[name] for name in scores.cells]

    def named(names: Sequence[str], place: NDArray[np.int32]) -> pa.Array:
        known = {name: number for number, name in enumerate(dict.fromkeys(names))}
        numbers = np.array([known[name] for name in names], np.int32)
        return pa.DictionaryArray.from_arrays(numbers[place], pa.array(list(known), pa.string()))

    return pa.table(
        {
            "judge": named([judge], np.zeros(len(scores), np.int32)),
            "condition": named([cell.condition for cell in of], scores.cell),
            "unit": named([cell.seed_label for cell in of], scores.cell),
            "seed": named([str(cell.seed) for cell in of], scores.cell),
            "question": named(scores.questions, scores.question),
            "value": pa.array(scores.found.astype(np.float64), mask=~scores.counted),
        }
    )


def _pairs(cells: Sequence[Cell]) -> list[Pair]:
    """Return the pairs of conditions that differ in the model alone, or in the variant alone.

    Of more than ALL_PAIRS conditions, those of the untuned or else the first variant of each model.

    Their seeds are shared where both are tuned: one number starts both adapters and orders both
    sets of rows. An untuned cell has only a sampling seed.
    """
    known = {cell.condition: cell for cell in cells}
    if len(known) > ALL_PAIRS:
        names = list(dict.fromkeys(cell.variant.name for cell in cells))
        control = UNTUNED if UNTUNED in names else names[0]
        return [
            Pair(cell.condition, other, shared=control != UNTUNED)
            for cell in known.values()
            if cell.variant.name != control and (other := f"{cell.model.name} · {control}") in known
        ]
    return [
        Pair(
            first=first.condition,
            second=second.condition,
            shared=UNTUNED not in (first.variant.name, second.variant.name),
        )
        for second, first in itertools.combinations(known.values(), 2)
        if (first.model.name == second.model.name) != (first.variant.name == second.variant.name)
    ]


def _grid(cells: Sequence[Cell]) -> Grid:
    return Grid(
        factors=("model", "variant"),
        levels={cell.condition: (cell.model.name, cell.variant.name) for cell in cells},
    )


def _factors(cells: Mapping[str, Cell]) -> dict[str, dict[str, str]]:
    """Return each seed factor's number by seed label, where the spec fixes or crosses any.

    A label stands for the same seeds in every condition.
    """
    if not any(cell.factors for cell in cells.values()):
        return {}
    names = [name for name in FACTORS if name != "sampling"]
    cells = {cell.seed_label: cell for cell in cells.values()}
    crossed = {name: {i: str(c.factors.get(name, c.seed)) for i, c in cells.items()}
               for name in names}  # fmt: skip
    # A replicate's number stands for nothing in another seed: replicates are the rest of the seed.
    return crossed
