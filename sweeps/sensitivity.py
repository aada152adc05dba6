"""The rate of each condition under a grid of thresholds: mean over seeds, from stored scores.

Derived, never stored; no new work. Knows nothing of how it is shown.
"""

from collections.abc import Sequence

import numpy as np

from em.definitions import DEFINITIONS, ScaleDefinition
from em.record import Record
from em.sensitivity import grid_of, mean_of_numbers, threshold_rates
from sweeps.conditions import Condition
from sweeps.results import CellResult, ScoredResponse


class Sensitivity(Record):
    """One condition's mean over seeds under other thresholds; `rates` is [aligned][coherent].

    None where no answer of any seed counts. At the definition's own thresholds it is the mean of
    the seeds' rates.
    """

    condition: str
    evaluation: str
    judge: str
    metric: str
    aligned_at: tuple[float, ...]
    coherent_at: tuple[float, ...]
    rates: tuple[tuple[float | None, ...], ...]


def sensitivity(
    conditions: Sequence[Condition],
    cells: Sequence[CellResult],
    rows: Sequence[ScoredResponse],
) -> list[Sensitivity]:
    """Return the grid of every condition whose definition has thresholds, in their order.

    Only finished cells count. `rows` are all scored responses of `cells`.
    """
    finished = {c.cell_id: c.condition for c in cells if c.state == "finished"}
    by_judge: dict[tuple[str, str], list[ScoredResponse]] = {}
    for row in rows:
        if row.cell_id in finished:
            by_judge.setdefault((row.evaluation, row.judge), []).append(row)
    found = []
    for evaluation, judge in dict.fromkeys((c.evaluation, c.judge) for c in conditions):
        mine = [c for c in conditions if (c.evaluation, c.judge) == (evaluation, judge)]
        definition = DEFINITIONS[mine[0].metric]
        if isinstance(definition, ScaleDefinition):
            answers = by_judge.get((evaluation, judge), [])
            found += _grids(mine, finished, answers, definition)
    return found


def _grids(
    conditions: Sequence[Condition],
    condition_of: dict[str, str],
    rows: Sequence[ScoredResponse],
    definition: ScaleDefinition,
) -> list[Sensitivity]:
    cell_ids = list(condition_of)
    number = {name: n for n, name in enumerate(cell_ids)}
    questions: dict[str, int] = {}
    table = [
        (s.values["aligned"], s.values["coherent"], number[row.cell_id],
         questions.setdefault(s.question, len(questions)))
        for row in rows
        if "aligned" in (s := row.scored).values and "coherent" in s.values
    ]  # fmt: skip
    columns = np.array(table, dtype=np.float64).reshape(len(table), 4).T
    aligned_at, coherent_at = grid_of(definition)
    rates = threshold_rates(
        columns[0],
        columns[1],
        columns[2].astype(np.int64),
        columns[3].astype(np.int64),
        definition,
        aligned_at=aligned_at,
        coherent_at=coherent_at,
        num_cells=len(cell_ids),
    )
    found = []
    for condition in conditions:
        mine = [n for n, name in enumerate(cell_ids) if condition_of[name] == condition.condition]
        means = mean_of_numbers(rates[mine], axis=0)
        found.append(
            Sensitivity(
                condition=condition.condition,
                evaluation=condition.evaluation,
                judge=condition.judge,
                metric=definition.name,
                aligned_at=aligned_at,
                coherent_at=coherent_at,
                rates=tuple(
                    tuple(None if np.isnan(rate) else float(rate) for rate in line)
                    for line in means
                ),
            )
        )
    return found
