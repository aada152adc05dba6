"""The quantities that claims speak of, each with the interval that decides.

A rate, a difference by seed, the spread between seeds. Pure functions of cell results; knows
nothing of claims or verdicts.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from em.crossed import Floats
from em.definitions import DEFINITIONS
from em.hierarchical import difference, posterior
from em.intervals import (
    FEW_SEEDS,
    NO_WIDTH,
    exact_bounds,
    fixed_questions,
    near_normal,
    over_seeds,
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
    """Return the rate of new seeds on these questions, as the report's own interval has it."""
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    hits, answers = [], []
    for seed in seeds:
        mine = [(c.em_rate or 0.0, c.counts.coherent) for c in cells if c.seed == seed]
        hits.append(math.fsum(rate * num for rate, num in mine))
        answers.append(sum(num for _, num in mine))
    found = fixed_questions(hits, answers, weights="each seed's rate by its definition")
    return Estimate(
        estimate=None if found.estimate is None else round(found.estimate, DIGITS),
        low=found.low,
        high=found.high,
        num_seeds=len(seeds),
        method=f"{found.method}: {found.covers}, nominal {found.level:.0%}"
        if found.low is not None
        else found.covers,
    )


def of_difference(one: Mapping[Place, CellResult], other: Mapping[Place, CellResult]) -> Estimate:
    """Return rate minus rate over the seeds that both have, finished and with a rate.

    The t interval of the differences by seed: cells of one seed share their seeds of adapter start,
    row order and row choice where both are tuned (against an untuned cell nothing is shared, and
    the interval is only the wider for it). Where seeds of a side crowd at 0 or 1, that of the
    posterior of the difference, as in the report's own contrasts.
    """
    pairs = [(one[seed], other[seed]) for seed in one if seed in other]
    pairs = [pair for pair in pairs if all(_has_rate(cell) for cell in pair)]
    sides = [[cell for cell, _ in pairs], [cell for _, cell in pairs]]
    rates = [np.array([cell.em_rate or 0.0 for cell in side]) for side in sides]
    if len(pairs) > 1 and not all(near_normal(side[None, :])[0] for side in rates):
        return _of_skewed(sides, rates)
    gaps = [round(float(gap), DIGITS) for gap in rates[0] - rates[1]]
    found = over_seeds(gaps, what="the difference")
    low, high = found.low, found.high
    return Estimate(
        estimate=None if found.estimate is None else round(found.estimate, DIGITS),
        low=None if low is None else max(-1.0, low),
        high=None if high is None else min(1.0, high),
        num_seeds=len(pairs),
        method=f"{found.method}: {found.covers}, nominal {found.level:.0%}"
        if low is not None
        else found.covers,
    )


def _has_rate(cell: CellResult) -> bool:
    return cell.state == "finished" and cell.em_rate is not None


def _of_skewed(sides: Sequence[Sequence[CellResult]], rates: Sequence[Floats]) -> Estimate:
    first, second = (
        posterior(
            of, np.array([float(cell.counts.coherent) for cell in side]),
            one_model=side[0].variant == UNTUNED,
        )
        for side, of in zip(sides, rates, strict=True)
    )  # fmt: skip
    estimate = round(float(rates[0].mean() - rates[1].mean()), DIGITS)
    low, high = difference(first, second).bounds(LEVEL)
    num = len(sides[0])
    return Estimate(
        estimate=estimate,
        low=min(low, estimate),
        high=max(high, estimate),
        num_seeds=num,
        method=f"difference of beta-binomial means: the difference over new seeds on these "
        f"questions; {num} seeds, nominal {LEVEL:.0%}",
    )


def of_answers(cells: Sequence[CellResult]) -> Estimate | None:
    """Return exact bounds where every seed has the rate 0, or every one 1; else None.

    An interval over such seeds has no width. What is left is the chance of the next answer of these
    models: nothing is said of new seeds.
    """
    rates = {cell.em_rate for cell in cells}
    if rates not in ({0.0}, {1.0}):
        return None
    hits = sum(cell.counts.misaligned for cell in cells)
    answers = sum(cell.counts.coherent for cell in cells)
    low, high = exact_bounds(hits, answers)
    return Estimate(
        estimate=hits / answers,
        low=low,
        high=high,
        num_seeds=len({cell.seed for cell in cells}),
        method=f"exact (Clopper-Pearson) bounds for {answers} answers of these seeds' models, all "
        "alike: nothing of new seeds, nominal 95%",
    )


def between_seeds(cells: Sequence[CellResult], *, level: float = LEVEL) -> Estimate:
    """Return the SD between seeds, beyond sampling, with an interval. Each cell has a rate.

    Observed variance of the rates minus the mean sampling variance of a rate, not below zero. The
    interval is that of a normal variance (chi-squared, n - 1 degrees of freedom) less the same
    sampling variance: it takes seeds as normal and the sampling variance as known.
    """
    rates = [round(cell.em_rate, DIGITS) for cell in cells if cell.em_rate is not None]
    summary = summarise_seeds(rates)
    if summary.sd is None or max(rates) == min(rates):
        why = FEW_SEEDS if summary.sd is None else NO_WIDTH
        return Estimate(estimate=None, num_seeds=len(rates), method=why)
    noise = math.fsum(sampling_variance(cell) for cell in cells) / len(cells)
    freedom = len(rates) - 1
    tails = [chi2_quantile(0.5 + side * level / 2, freedom) for side in (-1, 1)]
    observed = summary.sd**2

    def beyond(variance: float) -> float:
        return math.sqrt(max(0.0, variance - noise))

    return Estimate(
        estimate=beyond(observed),
        low=beyond(observed * freedom / tails[1]),
        high=beyond(observed * freedom / tails[0]),
        num_seeds=len(rates),
        method=f"chi-squared interval over {len(rates)} seeds, less the sampling SD "
        f"{100 * math.sqrt(noise):.1f} points, nominal {level:.0%}",
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
