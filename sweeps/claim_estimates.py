"""The quantities that claims speak of, each with the interval that decides.

A rate, a difference by seed, the spread between seeds. Pure functions of cell results; knows
nothing of claims or verdicts.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from em.definitions import DEFINITIONS
from em.differences import Side, difference_test
from em.hierarchical import variance_limits
from em.intervals import (
    FEW_SEEDS,
    NO_WIDTH,
    fixed_questions,
    near_normal,
    of_one_model,
    summarise_seeds,
)
from em.quantiles import LEVEL, chi2_quantile
from em.record import Record
from sweeps.results import CellResult
from sweeps.spec import UNTUNED

# Seeds that differ by less differ by the rounding of a division only.
DIGITS = 12
Place = tuple[int, int]  # a cell's seed, and its number among the cells of that seed


class Estimate(Record):
    """An estimate with the interval that decides, and how it comes about."""

    estimate: float | None
    low: float | None = None
    high: float | None = None
    num_seeds: int
    method: str


def of_rate(cells: Sequence[CellResult]) -> Estimate:
    """Return the rate of new seeds on these questions, as the report's own interval has it.

    Of an untuned model, the rate of the one model that it is.
    """
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    hits, answers = [], []
    for seed in seeds:
        mine = [(c.em_rate or 0.0, answers_of(c)) for c in cells if c.seed == seed]
        hits.append(math.fsum(rate * num for rate, num in mine))
        answers.append(math.fsum(num for _, num in mine))
    weights = "each seed's rate by its definition"
    if cells and cells[0].variant == UNTUNED:
        whole = math.fsum(answers)
        num = sum(cell.counts.coherent for cell in cells)
        found = of_one_model(math.fsum(hits) / whole, whole, num=num, weights=weights)
    else:
        found = fixed_questions(hits, answers, weights=weights)
    return Estimate(
        estimate=None if found.estimate is None else round(found.estimate, DIGITS),
        low=found.low,
        high=found.high,
        num_seeds=len(seeds),
        method=f"{found.method}: {found.covers}, nominal {found.level:.0%}"
        if found.low is not None
        else found.covers,
    )


def answers_of(cell: CellResult) -> float:
    """Return how many alike answers a cell's rate is worth: by its sampling variance."""
    counted, rate = cell.counts.coherent, cell.em_rate or 0.0
    if DEFINITIONS[cell.metric].aggregation == "pooled" or not cell.questions:
        return float(counted)
    variance, inside = sampling_variance(cell), min(max(rate, 0.5 / counted), 1 - 0.5 / counted)
    return min(float(counted), inside * (1 - inside) / variance) if variance else float(counted)


def of_difference(one: Mapping[Place, CellResult], other: Mapping[Place, CellResult]) -> Estimate:
    """Return rate minus rate over the seeds that both have, finished and with a rate.

    As the report's own contrasts have it: cells of one seed are a pair where both are tuned, and
    share their seeds of adapter start, row order and row choice. Where seeds of a side crowd at 0
    or 1 it is the posterior of the difference.
    """
    pairs = [(one[seed], other[seed]) for seed in one if seed in other]
    pairs = [pair for pair in pairs if all(_has_rate(cell) for cell in pair)]
    left, right = _side([cell for cell, _ in pairs]), _side([cell for _, cell in pairs])
    num = len(pairs)
    estimate = round(float((left.rates - right.rates).mean()), DIGITS) if num else None
    if num < 2:
        return Estimate(estimate=estimate, num_seeds=num, method=FEW_SEEDS)
    shared = not (left.one_model or right.one_model) and left.even and right.even
    test = difference_test(left, right, pairs=shared, share=True)
    if test is None:
        return Estimate(estimate=estimate, num_seeds=num, method=NO_WIDTH)
    low, high = test.bounds(LEVEL, share=True)
    return Estimate(
        estimate=estimate,
        low=low,
        high=high,
        num_seeds=num,
        method=f"{test.method} over seeds: the difference over new seeds on these questions; {num} "
        f"seeds{', in pairs' if shared else ''}, nominal {LEVEL:.0%}",
    )


def _has_rate(cell: CellResult) -> bool:
    return cell.state == "finished" and cell.em_rate is not None


def _side(cells: Sequence[CellResult]) -> Side:
    return Side(
        np.array([round(cell.em_rate or 0.0, DIGITS) for cell in cells]),
        np.array([answers_of(cell) for cell in cells]),
        bool(cells) and cells[0].variant == UNTUNED,
    )


def between_seeds(cells: Sequence[CellResult]) -> Estimate:
    """Return the SD between seeds, beyond sampling, with an interval. Each cell has a rate.

    Observed variance of the rates minus the mean sampling variance of a rate, not below zero. The
    interval is that of a normal variance (chi-squared, n - 1 degrees of freedom) less the same
    sampling variance: it takes seeds as normal and the sampling variance as known. Where seeds
    crowd at 0 or 1 it is the posterior's, of seeds from a beta distribution.
    """
    rates = [round(cell.em_rate, DIGITS) for cell in cells if cell.em_rate is not None]
    summary = summarise_seeds(rates)
    if summary.sd is None or max(rates) == min(rates):
        why = FEW_SEEDS if summary.sd is None else NO_WIDTH
        return Estimate(estimate=None, num_seeds=len(rates), method=why)
    noise = math.fsum(sampling_variance(cell) for cell in cells) / len(cells)
    freedom = len(rates) - 1
    if not near_normal(np.array([rates]))[0]:
        answers = np.array([answers_of(cell) for cell in cells])
        bounds = variance_limits(np.array(rates) * answers, answers)
        beyond_noise = max(0.0, summary.sd**2 - noise)
        return Estimate(
            estimate=math.sqrt(beyond_noise),
            low=math.sqrt(min(bounds[0], beyond_noise)),
            high=math.sqrt(max(bounds[1], beyond_noise)),
            num_seeds=len(rates),
            method=f"beta-binomial over {len(rates)} seeds, nominal {LEVEL:.0%}",
        )
    tails = [chi2_quantile(0.5 + side * LEVEL / 2, freedom) for side in (-1, 1)]
    observed = summary.sd**2

    def beyond(variance: float) -> float:
        return math.sqrt(max(0.0, variance - noise))

    return Estimate(
        estimate=beyond(observed),
        low=beyond(observed * freedom / tails[1]),
        high=beyond(observed * freedom / tails[0]),
        num_seeds=len(rates),
        method=f"chi-squared interval over {len(rates)} seeds, less the sampling SD "
        f"{100 * math.sqrt(noise):.1f} points, nominal {LEVEL:.0%}",
    )


def sampling_variance(cell: CellResult) -> float:
    """Return the variance that a cell's rate has from sampling alone, its questions fixed.

    The unbiased p(1 - p) n / (n - 1) of each question, weighed as the cell's definition does. A
    question with one answer takes the cell's own p(1 - p).
    """
    definition = DEFINITIONS[cell.metric]
    counts = [q.counts for q in cell.questions if q.counts.coherent >= definition.min_answers]
    counts = [c for c in counts if c.coherent]
    if not counts:
        counts = [cell.counts]
    whole = cell.em_rate or 0.0
    pooled = definition.aggregation == "pooled"
    total = sum(c.coherent for c in counts)
    variance = 0.0
    for c in counts:
        p, n = c.misaligned / c.coherent, c.coherent
        one = p * (1 - p) * n / (n - 1) if n > 1 else whole * (1 - whole)
        weight = n / total if pooled else 1 / len(counts)
        variance += weight**2 * one / n
    return variance
