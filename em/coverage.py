"""How often an interval's method holds the truth, by simulation of a design and rate near its own.

Draws come from SEED alone: the same design has the same coverage on every machine. Knows nothing of
real values: it is told how many seeds, questions and samples there are, and how much they vary.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from em.crossed import Crossed, Floats
from em.hierarchical import hierarchical_limits
from em.intervals import (
    Interval,
    mean_squares,
    near_normal,
    t_limits,
    two_way_limits,
    with_estimate,
)
from em.variance import PAIR, QUESTION, SAMPLING, Component, seed_variance

SEED = 20260101
RUNS = 1000  # 0.7 points of standard error at 95 %
CHUNK = 250
STEP = 1.2  # rates and spreads are rounded to its powers: designs that are near share their runs
POINTS = 60  # of the quadrature that turns a spread on the logit scale into one of rates
FEW = 5  # events, or values without one: with fewer the design that is estimated says nothing
TOO_FEW = f"not simulated: fewer than {FEW} events, from which no design can be told"
RARE, RAREST = 0.1, 0.01
RARER = "; at rates this low and few questions it is lower in truth (see the benchmark)"
RARER_OF_SEEDS = "; at rates this low it may be 3 points lower in truth (see the benchmark)"
MOST_VALUES = 40_000  # of a simulated table; more questions change nothing in how a method covers


def with_coverage_over_seeds(
    interval: Interval, answers: "np.typing.ArrayLike", spread: float | None
) -> Interval:
    """Return a fixed-question `interval` of shares with its simulated coverage.

    `answers` are those of each seed; `spread` the SD of the seeds' true rates, None where unknown.
    """
    if interval.low is None or interval.estimate is None or spread is None:
        return interval
    num = np.asarray(answers, dtype=np.float64)
    num = num[num > 0]
    if too_few(interval.estimate, int(num.sum())):
        return interval.model_copy(update={"coverage_of": TOO_FEW})
    mean = _rounded(max(interval.estimate, 0.5 / int(num.sum())))
    sd = min(_rounded(spread), 0.95 * math.sqrt(mean * (1 - mean)))  # a beta's may be no larger
    usual = int(_rounded(float(np.median(num))))
    share = coverage_over_seeds(mean, sd, len(num), usual)
    return interval.model_copy(
        update={
            "coverage": share,
            "coverage_of": f"{len(num)} seeds x {usual} answers, rate {mean:.2%}, "
            f"SD of seeds {sd:.2%}" + (RARER_OF_SEEDS if min(mean, 1 - mean) < RAREST else ""),
        }
    )


@lru_cache(maxsize=4096)
def coverage_over_seeds(
    mean: float, sd: float, seeds: int, answers: int, runs: int = RUNS
) -> float:
    """Return the share of `runs` in which a fixed-question interval holds `mean`.

    The seeds' rates are from a beta distribution of that mean and SD, hits from binomials.
    """
    draws = np.random.default_rng(SEED)
    if sd > 0:
        size = mean * (1 - mean) / sd**2 - 1
        rates = draws.beta(mean * size, (1 - mean) * size, size=(runs, seeds))
    else:
        rates = np.full((runs, seeds), mean)
    hits = draws.binomial(answers, rates).astype(np.float64)
    low, high = limits_over_seeds(hits, answers)
    low, high = with_estimate(low, high, hits.mean(axis=1) / answers)
    return float(np.mean((low <= mean) & (mean <= high)))


def limits_over_seeds(hits: Floats, answers: int) -> tuple[Floats, Floats]:
    """Return the bounds that em.intervals.fixed_questions gives to each row (tables, seeds)."""
    shares = hits / answers
    low, high = t_limits(shares)
    other = ~near_normal(shares)
    # Seeds of equally many answers are alike: rows of the same hits have the same bounds.
    rows, place = np.unique(np.sort(hits[other], axis=1), axis=0, return_inverse=True)
    num = np.full(hits.shape[1], float(answers))
    found = [
        hierarchical_limits(rows[start : start + CHUNK], num)
        for start in range(0, len(rows), CHUNK)
    ]
    if found:
        low[other] = np.concatenate([part[0] for part in found])[place.ravel()]
        high[other] = np.concatenate([part[1] for part in found])[place.ravel()]
    return low, high


def with_coverage_over_questions(
    interval: Interval, table: Crossed, parts: list[Component]
) -> Interval:
    """Return a random-question `interval` of shares with its simulated coverage."""
    if interval.low is None or interval.estimate is None:
        return interval
    table = table.present()
    if not table.binary:
        return interval
    if too_few(interval.estimate, table.num_values):
        return interval.model_copy(update={"coverage_of": TOO_FEW})
    if any(part.estimate is None and part.name in (PAIR, QUESTION, SAMPLING) for part in parts):
        return interval.model_copy(update={"coverage_of": "not simulated: not all is known"})
    known = {part.name: part.reported or 0.0 for part in parts}
    mean = _rounded(max(interval.estimate, 0.5 / table.num_values))
    variances = (seed_variance(parts), known[QUESTION], known[PAIR])
    spreads = tuple(_rounded(math.sqrt(variance)) for variance in variances)
    seeds, questions = table.filled.shape
    samples = int(_rounded(float(np.median(table.num[table.filled]))))
    share = coverage_over_questions(mean, spreads, seeds, questions, samples)
    return interval.model_copy(
        update={
            "coverage": share,
            "coverage_of": f"{seeds} seeds x {questions} questions x {samples} samples, rate "
            f"{mean:.2%}, SD of seeds {spreads[0]:.2%}, of questions {spreads[1]:.2%}, of their "
            f"pairing {spreads[2]:.2%}" + (RARER if min(mean, 1 - mean) < RARE else ""),
        }
    )


def with_coverage_of_factors(
    interval: Interval,
    variances: tuple[float, float, float],
    shape: tuple[int, int],
    num_values: int,
    names: tuple[str, str],
) -> Interval:
    """Return an interval over two crossed seed factors with its simulated coverage.

    `variances` are those of rates: of either factor, and of what is left between trainings; `shape`
    the number of levels of either.
    """
    if interval.low is None or interval.estimate is None:
        return interval
    if too_few(interval.estimate, num_values):
        return interval.model_copy(update={"coverage_of": TOO_FEW})
    mean = _rounded(max(interval.estimate, 0.5 / num_values))
    spreads = tuple(_rounded(math.sqrt(variance)) for variance in variances)
    answers = int(_rounded(num_values / (shape[0] * shape[1])))
    share = coverage_over_questions(mean, spreads, *shape, answers)
    return interval.model_copy(
        update={
            "coverage": share,
            "coverage_of": f"{shape[0]} x {shape[1]} levels x {answers} answers, rate {mean:.2%}, "
            f"SD of {names[0]} {spreads[0]:.2%}, of {names[1]} {spreads[1]:.2%}, of what is left "
            f"{spreads[2]:.2%}",
        }
    )


@lru_cache(maxsize=4096)
def coverage_over_questions(
    mean: float,
    spreads: tuple[float, ...],
    seeds: int,
    questions: int,
    samples: int,
    runs: int = RUNS,
) -> float:
    """Return the share of `runs` in which a random-question interval holds `mean`.

    Effects of seeds, questions and their pairing are normal on the logit scale, with the SDs that
    give rates the `spreads`.
    """
    draws = np.random.default_rng(SEED)
    samples = max(1, min(samples, MOST_VALUES // max(1, seeds * questions)))
    logits = [_logit_spread(mean, spread) for spread in spreads]
    middle = logit_mean(mean, math.sqrt(sum(sd**2 for sd in logits)))
    held = 0
    for _ in range(max(1, runs // CHUNK)):
        shapes = [(CHUNK, seeds, 1), (CHUNK, 1, questions), (CHUNK, seeds, questions)]
        effects = sum(
            (sd * draws.standard_normal(shape) for sd, shape in zip(logits, shapes, strict=True)),
            start=np.zeros((CHUNK, seeds, questions)),
        )
        hits = draws.binomial(samples, 1 / (1 + np.exp(-middle - effects)))
        low, high = limits_over_questions(hits / samples, samples)
        held += int(((low <= mean) & (mean <= high)).sum())
    return held / (CHUNK * max(1, runs // CHUNK))


def limits_over_questions(means: Floats, samples: int) -> tuple[Floats, Floats]:
    """Return em.intervals.random_questions' bounds for whole tables (tables, seeds, questions)."""
    _, seeds, questions = means.shape
    middle, squares = means.mean(axis=(1, 2)), mean_squares(means)
    return two_way_limits(middle, squares, (seeds, questions), seeds * questions * samples, True)


def too_few(rate: float, num: int) -> bool:
    """Whether events, or values without one, are so few that a simulation would be of a guess."""
    return min(rate, 1 - rate) * num < FEW


def _rounded(value: float) -> float:
    """Return the power of STEP that is nearest: designs that are near share their runs."""
    if value <= 0:
        return 0.0
    near: float = STEP ** round(math.log(value) / math.log(STEP))
    return float(round(near)) if value >= 1 else min(near, 0.97)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[Floats, Floats]:
    points, weights = np.polynomial.hermite_e.hermegauss(POINTS)
    return points, weights / weights.sum()


def _mean_and_sd(middle: float, sd: float) -> tuple[float, float]:
    """Return mean and SD of rates whose logits are normal."""
    points, weights = _quadrature()
    rates = 1 / (1 + np.exp(-middle - sd * points))
    mean = float(weights @ rates)
    return mean, math.sqrt(max(0.0, float(weights @ (rates - mean) ** 2)))


def logit_mean(mean: float, sd: float) -> float:
    """Return the middle of normal logits of SD `sd` that gives rates the `mean`."""
    return _root(lambda middle: _mean_and_sd(middle, sd)[0] - mean, -60.0, 60.0)


@lru_cache(maxsize=4096)
def _logit_spread(mean: float, spread: float) -> float:
    """Return the SD of logits that gives rates of that mean the SD `spread`, 6 at most."""
    if spread <= 0:
        return 0.0

    def off(sd: float) -> float:
        return _mean_and_sd(logit_mean(mean, sd), sd)[1] - spread

    return 6.0 if off(6.0) < 0 else _root(off, 0.0, 6.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(function, low, high, xtol=1e-6))
