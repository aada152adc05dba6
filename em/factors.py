"""The interval of a rate where two seed factors are crossed: trainings share their levels.

Nine trainings of three starts and three orders are not nine seeds: what is drawn anew is a start
and an order. Their table of levels by levels is analysed as one of seeds by questions is. Knows
nothing of which factors there are.
"""

import numpy as np

from em.coverage import with_coverage_of_factors
from em.crossed import Crossed, Floats
from em.intervals import REUSED, Interval, mean_squares, no_interval, two_way_limits
from em.quantiles import ALIKE
from em.variance import PAIR, Component, unit_labels

NAME = "two-way t over two seed factors"


def over_factors(
    table: Crossed, rates: Floats, parts: list[Component], *, weights: str, simulate: bool
) -> Interval:
    """Return the interval of the mean over new levels of both factors, on these questions.

    `rates` are the means of the table's units, shape (units,). Without bounds where not exactly two
    factors, whole crossed, tell the units apart.
    """
    labels = {name: codes for name, codes in unit_labels(table).items()
              if 1 < len(np.unique(codes)) < len(table.units)}  # fmt: skip
    mean = float(rates.mean())
    if len(labels) != 2:
        return no_interval(mean, REUSED)
    (first, rows), (second, columns) = labels.items()
    _, row = np.unique(rows, return_inverse=True)
    _, column = np.unique(columns, return_inverse=True)
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    grid = np.full(shape, np.nan)
    grid[row, column] = rates
    if grid.size != len(rates) or np.isnan(grid).any():
        return no_interval(mean, REUSED)
    if float(np.ptp(rates)) < ALIKE:
        return no_interval(mean, "all trainings are alike: an interval would have no width")
    squares = mean_squares(grid)
    low, high = two_way_limits(
        np.array([mean]),
        (squares[0][None], squares[1][None], squares[2][None]),
        shape,
        table.num_values,
        table.binary,
    )
    found = Interval(
        estimate=mean,
        low=float(low[0]),
        high=float(high[0]),
        method=NAME + (" on the logit scale" if table.binary else ""),
        covers=f"the mean rate of new levels of {first} and of {second} on these questions, "
        f"{weights}; {shape[0]} x {shape[1]} levels",
    )
    if not (simulate and table.binary):
        return found
    known = {part.name: part.reported or 0.0 for part in parts}
    rest = sum(
        value for name, value in known.items()
        if name.startswith("rest of the seed")
    ) + known.get(PAIR, 0.0) / len(table.questions)  # fmt: skip
    spreads = (known.get(first, 0.0), known.get(second, 0.0), rest)
    return with_coverage_of_factors(found, spreads, shape, table.num_values, (first, second))
