"""Intervals for the rate of a condition: over seeds, over seeds and questions, of answers alone.

Two claims, two intervals. With the questions fixed, new seeds are asked these questions; with
random questions, new seeds are asked new questions of the kind. Pure functions of numbers; knows
nothing of cells, stores or how a value came about.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from em.additive import seed_means
from em.crossed import Crossed, Floats
from em.hierarchical import hierarchical_limits
from em.quantiles import ALIKE, LEVEL, beta_quantile, t_quantile
from em.record import Record
from em.variance import PAIR, QUESTION, estimates, seed_variance


class SeedSummary(Record):
    """Rates of one condition over its seeds; their interval is in the condition's analysis."""

    num_seeds: int
    mean: float | None
    sd: float | None


def summarise_seeds(rates: Sequence[float]) -> SeedSummary:
    """Return mean and SD (n - 1) over seeds of `rates`. One seed has no spread: its SD is None."""
    n = len(rates)
    if not n:
        return SeedSummary(num_seeds=0, mean=None, sd=None)
    # The mean of equal rates may be off by its last bit.
    mean = rates[0] if min(rates) == max(rates) else math.fsum(rates) / n
    squares = math.fsum((rate - mean) ** 2 for rate in rates)
    return SeedSummary(num_seeds=n, mean=mean, sd=math.sqrt(squares / (n - 1)) if n > 1 else None)


def exact_bounds(hits: int, answers: int) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share: `hits` of `answers` independent ones.

    Raises ValueError without answers.
    """
    if answers < 1:
        raise ValueError(f"a share of {answers} answers has no interval")
    lows, highs = exact_bounds_of([hits], [answers])
    return lows[0], highs[0]


def exact_bounds_of(
    hits: Sequence[float], answers: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return the Clopper-Pearson bounds of many shares, each of 1 answer or more."""
    counts, totals = np.asarray(hits, dtype=float), np.asarray(answers, dtype=float)
    tail = 0.5 - LEVEL / 2
    low = np.where(
        counts > 0, beta_quantile(tail, np.where(counts > 0, counts, 1.0), totals - counts + 1), 0.0
    )
    high = np.where(
        counts < totals,
        beta_quantile(1 - tail, counts + 1, np.where(counts < totals, totals - counts, 1.0)),
        1.0,
    )
    return low.tolist(), high.tolist()


class Interval(Record):
    """Bounds at `level` with the `method` they come from and what they cover; None: `covers` why.

    `estimate` is what the bounds are about: its weighting is in `covers`. `coverage` is how often
    such bounds hold the truth in simulations of a design and rate near its own (em.coverage).
    """

    estimate: float | None
    low: float | None
    high: float | None
    level: float = LEVEL
    method: str
    covers: str
    coverage: float | None = None
    coverage_of: str = ""


# Seeds that lie as many SDs from 0 and 1 have a t interval; t alone covers down to 52 % where they
# crowd at 0 (tests/benchmarks/coverage.txt).
NEAR_NORMAL = 2.5
# Of many, they may lie as near as this over the root of their number (tests/benchmarks/many_seeds).
MANY_SEEDS = 10.0
T, HIERARCHICAL = "t over seeds", "beta-binomial over seeds"
EXACT = "exact (Clopper-Pearson)"
TWO_WAY = "two-way t on the logit scale"
FEW_SEEDS = "fewer than two seeds with a value: nothing is known of other seeds"
FEW_QUESTIONS = "fewer than two questions: nothing is known of other questions"
FEW_PAIRS = "too few pairs of seed and question have values to tell their variances apart"
APART = "some seeds share no question with the others: nothing compares them"
NO_WIDTH = "all values are alike: an interval would have no width and says nothing here"
REUSED = (
    "seed factors are crossed, so that seeds share levels and are no independent draws: see the "
    "components"
)


def no_interval(estimate: float | None, why: str) -> Interval:
    """Return an estimate without bounds, and why it has none."""
    return Interval(estimate=estimate, low=None, high=None, method="none", covers=why)


def fixed_questions(hits: Sequence[float], answers: Sequence[float], *, weights: str) -> Interval:
    """Return the interval of the mean rate over new seeds that are asked these questions.

    `hits` of `answers` for each seed; both may be broken numbers where a rate weighs questions
    alike. It is a t interval where the seeds' rates are near normal, else that of a hierarchical
    model: rates of seeds from a beta distribution, whose mean is what the bounds are about. They
    hold the estimate, and reach 0 or 1 where all seeds are there.
    """
    num = np.asarray(answers, dtype=np.float64)
    rates = np.asarray(hits, dtype=np.float64)[num > 0] / num[num > 0]
    num = num[num > 0]
    mean = float(rates.mean()) if len(rates) else None
    covers = f"the mean rate of new seeds on these questions, {weights}; {len(rates)} seeds"
    if len(rates) < 2:
        return no_interval(mean, FEW_SEEDS)
    if bool(near_normal(rates[None, :])[0]):
        low, high = t_limits(rates[None, :])
        method = T
    else:
        low, high = hierarchical_limits(rates[None, :] * num, num)
        method = HIERARCHICAL
    least, most = with_estimate(low, high, rates.mean(axis=-1)[None])
    return Interval(
        estimate=mean, low=float(least[0]), high=float(most[0]), method=method, covers=covers
    )


def of_one_model(rate: float, answers: float, *, num: int, weights: str) -> Interval:
    """Return the exact interval of one model's rate: its seeds are of sampling alone.

    Of `num` answers that are worth `answers` alike ones (em.crossed.Crossed.effective). Alike ones
    to fixed questions of different rates vary less than the bounds take them to.
    """
    (low,), (high,) = exact_bounds_of([rate * answers], [answers])
    worth = f", worth {answers:.0f} of equal weight" if answers < num - 0.5 else ""
    return Interval(
        estimate=rate, low=low, high=high, method=EXACT,
        covers=f"the rate of this one model on these questions, {weights}; {num} answers{worth}",
    )  # fmt: skip


def over_seeds(values: Sequence[float], *, what: str) -> Interval:
    """Return the t interval of a mean over new seeds of values that are no shares."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean()) if len(array) else None
    if len(array) < 2:
        return no_interval(mean, FEW_SEEDS)
    if float(np.ptp(array)) < ALIKE * max(1.0, float(np.abs(array).max())):
        return no_interval(mean, NO_WIDTH)
    low, high = t_limits(array[None, :])
    return Interval(
        estimate=mean, low=float(low[0]), high=float(high[0]), method=T,
        covers=f"{what} over new seeds on these questions; {len(array)} seeds",
    )  # fmt: skip


def with_estimate(low: Floats, high: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """Return bounds of shares that hold their estimates: 0 and 1 where all seeds are there.

    A posterior's may leave out what was seen, where seeds crowd.
    """
    return np.maximum(0.0, np.minimum(low, mean)), np.minimum(1.0, np.maximum(high, mean))


def near_normal(rates: Floats) -> NDArray[np.bool_]:
    """Whether seeds' rates, shape (..., seeds), lie far enough from 0 and 1 for a t interval.

    The more seeds, the nearer they may lie: their mean is near normal then. From where this holds
    a t interval covers about 94 % of skewed seeds, and the hierarchical model's grid is coarse.
    """
    mean, spread = rates.mean(axis=-1), rates.std(axis=-1, ddof=1)
    apart = np.ptp(rates, axis=-1) > ALIKE  # the SD of equal rates may not be 0
    times = min(NEAR_NORMAL, MANY_SEEDS / math.sqrt(rates.shape[-1])) * spread
    inside = (mean > times) & (1 - mean > times)
    return np.asarray(inside & apart)


def t_limits(rates: Floats) -> tuple[Floats, Floats]:
    """Return the bounds of the t interval of the mean of values of shape (..., seeds)."""
    num = rates.shape[-1]
    half = float(t_quantile(0.5 + LEVEL / 2, num - 1)) * rates.std(axis=-1, ddof=1) / math.sqrt(num)
    mean = rates.mean(axis=-1)
    return mean - half, mean + half


def random_questions(table: Crossed) -> Interval:
    """Return the interval of the mean over new seeds and new questions of the kind, pairs alike.

    Two-way: the variance of the mean is (MS seed + MS question - MS pairing) / (seeds x questions),
    with Satterthwaite's degrees of freedom; for shares the bounds are found on the logit scale,
    where they may reach farther from 0 than towards it.
    """
    table = table.present()
    seeds, questions = table.filled.shape
    estimate = float(seed_means(table).mean()) if table.num_values else None
    if estimate is not None and math.isnan(estimate):
        return no_interval(None, APART)
    if table.reused:
        return no_interval(estimate, REUSED)
    if seeds < 2 or questions < 2:
        return no_interval(estimate, FEW_SEEDS if seeds < 2 else FEW_QUESTIONS)
    squares_of = _mean_squares(table)
    if squares_of is None:
        return no_interval(estimate, FEW_PAIRS)
    by_seed, by_question, pairing = squares_of
    assert estimate is not None
    mean = np.array([estimate])
    squares = (np.array([by_seed]), np.array([by_question]), np.array([pairing]))
    pairs = int(table.filled.sum())
    low, high = two_way_limits(
        mean, squares, (seeds, questions), table.num_values, table.binary, pairs=pairs
    )
    if math.isclose(float(low[0]), float(high[0])):
        return no_interval(estimate, NO_WIDTH)
    return Interval(
        estimate=estimate, low=float(low[0]), high=float(high[0]),
        method=TWO_WAY if table.binary else "two-way t",
        covers=f"the mean of new seeds on new questions of this kind, questions weigh alike; "
        f"{seeds} seeds x {questions} questions",
    )  # fmt: skip


def _mean_squares(table: Crossed) -> tuple[float, float, float] | None:
    """Return the mean squares of pair means: of seeds, of questions and of their pairing.

    Of a table with missing pairs those that its components would give; None where those are not
    known.
    """
    if table.filled.all():
        whole = mean_squares(table.means)
        return float(whole[0]), float(whole[1]), float(whole[2])
    parts = estimates(table)
    known = {part.name: part.reported for part in parts}
    by_pair, by_question = known[PAIR], known[QUESTION]
    if by_pair is None or by_question is None:
        return None
    pairing = by_pair + float(table.noise[table.filled].mean())
    per_seed = float(table.filled.sum(axis=1).mean())
    per_question = float(table.filled.sum(axis=0).mean())
    return (
        per_seed * seed_variance(parts) + pairing,
        per_question * by_question + pairing,
        pairing,
    )


def mean_squares(means: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the mean squares of seeds, of questions and of their pairing, of whole tables.

    `means` of pairs have the shape (..., seeds, questions); each result the shape before these.
    """
    seeds, questions = means.shape[-2:]
    rows, columns = means.mean(axis=-1), means.mean(axis=-2)
    middle = means.mean(axis=(-2, -1))
    rest = means - rows[..., :, None] - columns[..., None, :] + middle[..., None, None]
    return (
        questions * ((rows - middle[..., None]) ** 2).sum(axis=-1) / (seeds - 1),
        seeds * ((columns - middle[..., None]) ** 2).sum(axis=-1) / (questions - 1),
        (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (questions - 1)),
    )


def two_way_limits(
    mean: Floats,
    squares: tuple[Floats, Floats, Floats],
    shape: tuple[int, int],
    num_values: int,
    share: bool,
    *,
    pairs: int | None = None,
) -> tuple[Floats, Floats]:
    """Return two-way bounds for many tables of one `shape` (seeds, questions).

    `squares` are the mean squares of seeds, questions and pairing, arrays as `mean`; `pairs` how
    many pairs have a value, where some are missing: the mean squares are of that many.
    """
    seeds, questions = shape
    by_seed, by_question, pairing = squares
    cells = seeds * questions if pairs is None else pairs
    # Never less than what either of the two gives alone.
    variance = np.maximum(by_seed + by_question - pairing, np.maximum(by_seed, by_question)) / cells
    freedom = (variance * cells) ** 2 / (
        by_seed**2 / (seeds - 1)
        + by_question**2 / (questions - 1)
        + pairing**2 / ((seeds - 1) * (questions - 1))
        + np.finfo(float).tiny
    )
    # One is taken for the scale, as a share's spread is told by the share itself.
    most = max(1, questions - 2) if share else questions - 1
    freedom = np.clip(freedom, min(seeds - 1, most), most)
    half = t_quantile(0.5 + LEVEL / 2, freedom) * np.sqrt(variance)
    if not share:
        return mean - half, mean + half
    inside = (mean * num_values + 0.5) / (num_values + 1)  # a share of 0 has no logit
    middle = np.log(inside / (1 - inside))
    reach = half / (inside * (1 - inside))
    return 1 / (1 + np.exp(reach - middle)), 1 / (1 + np.exp(-reach - middle))
