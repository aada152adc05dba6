"""The rate of each condition under a grid of thresholds: mean over seeds, from stored scores.

Derived, never stored; no new work. Knows nothing of how it is shown.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from em.definitions import DEFINITIONS, ScaleDefinition
from em.record import Record
from em.sensitivity import grid_of, mean_of_numbers, threshold_rates
from sweeps.answers import NOTHING, Place, Scores
from sweeps.conditions import Condition
from sweeps.results import CellResult


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
    scores: Mapping[Place, Scores],
) -> list[Sensitivity]:
    """Return the grid of every condition whose definition has thresholds, in their order.

    Only finished cells count. `scores` are those of all `cells`, by evaluation and judge.
    """
    finished: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        if cell.state == "finished":
            finished.setdefault((cell.evaluation, cell.judge), []).append(cell)
    found = []
    for evaluation, judge in dict.fromkeys((c.evaluation, c.judge) for c in conditions):
        mine = [c for c in conditions if (c.evaluation, c.judge) == (evaluation, judge)]
        definition = DEFINITIONS[mine[0].metric]
        if isinstance(definition, ScaleDefinition):
            counted = finished.get((evaluation, judge), [])
            found += _grids(mine, counted, scores.get((evaluation, judge)), definition)
    return found


def _grids(
    conditions: Sequence[Condition],
    cells: Sequence[CellResult],
    scores: Scores | None,
    definition: ScaleDefinition,
) -> list[Sensitivity]:
    number = {cell.cell_id: n for n, cell in enumerate(cells)}
    mine = (scores or NOTHING).of_cells(number)
    place = np.array([number.get(name, -1) for name in mine.cells], dtype=np.int64)
    kept = mine.both
    aligned_at, coherent_at = grid_of(definition)
    rates = threshold_rates(
        mine.aligned[kept],
        mine.coherent[kept],
        place[mine.cell[kept]],
        mine.question[kept].astype(np.int64),
        definition,
        aligned_at=aligned_at,
        coherent_at=coherent_at,
        num_cells=len(cells),
    )
    found = []
    for condition in conditions:
        by_seed: dict[int, list[int]] = {}
        for n, cell in enumerate(cells):
            if cell.condition == condition.condition:
                by_seed.setdefault(cell.seed, []).append(n)
        # As in sweeps.conditions: the cells of one seed are averaged first.
        seeds = [mean_of_numbers(rates[mine], axis=0) for mine in by_seed.values()]
        means = mean_of_numbers(np.array(seeds).reshape(-1, *rates.shape[1:]), axis=0)
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
