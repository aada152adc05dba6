"""A sweep's scored responses as the long tables that em.analysis takes, one for each evaluation.

Knows which conditions are worth comparing; knows nothing of the statistics.
"""

import itertools
from collections.abc import Mapping, Sequence

import pyarrow as pa

from em.analysis import ALL_PAIRS, Analysis, Pair, analyse, compared
from em.attribution import Grid
from em.condition import Asked
from em.contrasts import NOT_PAIRED, Contrast, adjusted
from em.definitions import Definition
from em.scoring import is_coherent, is_misaligned
from em.seeds import FACTORS
from sweeps.plan import SweepPlan
from sweeps.results import CellResult, ScoredResponse
from sweeps.spec import UNTUNED, Cell


def analyses(
    sweep: SweepPlan, tables: Mapping[str, pa.Table], metrics: Mapping[str, Definition]
) -> dict[str, Analysis]:
    """Return the analysis of each evaluation's table (see tables_of), by its name."""
    cells = {cell.cell_id: cell.cell for cell in sweep.cells}
    found = {}
    for evaluation, table in tables.items():
        definition = metrics[evaluation]
        by_questions = definition.aggregation == "question_mean"
        found[evaluation] = analyse(
            table,
            what=f"{definition.name}: {definition.text}",
            asked=Asked(weights="questions" if by_questions else "answers"),
            pairs=_pairs(list(cells.values())),
            factors=_factors(cells),
            one_model=_untuned(sweep),
            grid=_grid(list(cells.values())),
        )
    return found


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
                tables[first.name], tables[second.name], names, one_model=_untuned(sweep)
            )
    return adjusted([one for one in found if one.paired != NOT_PAIRED])


def tables_of(
    sweep: SweepPlan,
    results: Sequence[CellResult],
    rows: Sequence[ScoredResponse],
    metrics: Mapping[str, Definition],
) -> dict[str, pa.Table]:
    """Return the values of each evaluation's finished cells, by its name, where there are any."""
    cells = {cell.cell_id: cell.cell for cell in sweep.cells}
    finished = {(r.cell_id, r.evaluation, r.judge) for r in results if r.state == "finished"}
    mine: dict[str, list[ScoredResponse]] = {name: [] for name in metrics}
    for row in rows:
        if (row.cell_id, row.evaluation, row.judge) in finished:
            mine[row.evaluation].append(row)
    return {name: _table(of, cells, metrics[name]) for name, of in mine.items() if of}


def _table(
    rows: Sequence[ScoredResponse], cells: Mapping[str, Cell], definition: Definition
) -> pa.Table:
    """Return a row for each response; the value is null where it counts in no rate."""
    counted = [is_coherent(row.scored, definition) for row in rows]
    return pa.table(
        {
            "judge": [row.judge for row in rows],
            "condition": [cells[row.cell_id].condition for row in rows],
            "unit": [cells[row.cell_id].seed_label for row in rows],
            "seed": [str(cells[row.cell_id].seed) for row in rows],
            "question": [row.response.question for row in rows],
            "value": pa.array(
                [
                    float(is_misaligned(row.scored, definition)) if counts else None
                    for row, counts in zip(rows, counted, strict=True)
                ],
                pa.float64(),
            ),
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


def _untuned(sweep: SweepPlan) -> set[str]:
    return {plan.cell.condition for plan in sweep.cells if plan.cell.training is None}


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
