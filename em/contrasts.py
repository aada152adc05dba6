"""Differences between two conditions: paired by question, and by seed where seeds are shared.

Pure functions of arrays; knows nothing of which conditions are worth comparing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from em.additive import seed_means
from em.crossed import Crossed, Floats
from em.hierarchical import Difference, difference, posterior
from em.intervals import (
    FEW_QUESTIONS,
    FEW_SEEDS,
    NO_WIDTH,
    REUSED,
    Interval,
    mean_squares,
    near_normal,
    no_interval,
)
from em.quantiles import ALIKE, LEVEL, t_quantile
from em.record import Record
from em.variance import estimates, seed_variance

EQUIVALENCE = 0.90  # the interval inside which two one-sided tests at 5 % call two equal
NOT_PAIRED = "not at all"
NOT_ASKED = "no question is asked of both: they cannot be compared"
T, POSTERIOR = "t", "difference of beta-binomial means"


class Contrast(Record):
    """`first` minus `second`; shares in [-1, 1], questions weighing alike.

    `p` tests no difference with the questions fixed, `p_adjusted` the same held against all
    contrasts told together (Holm). `equivalent_within` is the smallest margin within which two
    one-sided tests at 5 % call the two equal with the questions fixed. Shares whose seeds crowd at
    0 or 1 have no t test but the posterior of their difference, of which `p` is twice the tail.
    """

    first: str
    second: str
    paired: str
    fixed: Interval
    random: Interval
    p: float | None = None
    p_adjusted: float | None = None
    equivalent_within: float | None = None


def contrast(first: Crossed, second: Crossed, *, names: tuple[str, str], shared: bool) -> Contrast:
    """Return how two conditions differ on the questions that both have.

    Where seeds are `shared` (of the adapter's start, the row order or the rows) and both have the
    same ones, those of one name are pairs; else the seeds are two samples (Welch), all of them.
    """
    both = sorted(set(first.present().questions) & set(second.present().questions))
    if not both:
        nothing = no_interval(None, NOT_ASKED)
        return _without_test(names, NOT_PAIRED, nothing, nothing)
    one, other = first.of_questions(both), second.of_questions(both)
    left, right = seed_means(one), seed_means(other)
    apart = float(left.mean() - right.mean())
    estimate = None if math.isnan(apart) else apart
    skewed = one.binary and other.binary and not (_is_even(one) and _is_even(other))
    pairs = shared and one.units == other.units and len(one.units) > 1 and not skewed
    if pairs:
        paired = f"by question and by {len(one.units)} seeds"
    elif one.one_model and other.one_model:
        paired = "by question"
    else:
        paired = f"by question; seeds are two samples{'' if skewed else ' (Welch)'}"
    few = any(len(side.units) < 2 and not side.one_model for side in (one, other))
    if one.reused or other.reused or few or estimate is None:
        why = REUSED if one.reused or other.reused else FEW_SEEDS
        nothing = no_interval(estimate, why)
        return _without_test(names, paired, nothing, nothing)
    over = _over_questions(estimate, one, other, pairs=pairs)
    test: _Test | _Skewed | None
    if skewed:
        test = _Skewed(estimate, difference(_posterior(one, left), _posterior(other, right)))
    else:
        test = _of_pairs(left - right) if pairs else _of_samples(left, right)
    if test is None:
        return _without_test(names, paired, no_interval(estimate, NO_WIDTH), over)
    return _with_test(names, paired, test, over, one, other)


def adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Return the contrasts with p values held against all of them (Holm 1979)."""
    values = iter(holm([contrast.p for contrast in contrasts if contrast.p is not None]))
    return [
        c if c.p is None else c.model_copy(update={"p_adjusted": next(values)}) for c in contrasts
    ]


def holm(tests: Sequence[float]) -> list[float]:
    """Return p values held against all of them, as statsmodels' multipletests.

    That one collects garbage at each call: seconds for a sweep of many conditions.
    """
    ordered = np.sort(np.asarray(tests, dtype=float))
    num = len(ordered)
    raised = np.maximum.accumulate(np.minimum(1.0, ordered * np.arange(num, 0, -1)))
    return [float(raised[np.searchsorted(ordered, test, side="left")]) for test in tests]


class _Test(NamedTuple):
    """A t test of no difference: `variance` is that of the estimate."""

    estimate: float
    variance: float
    freedom: float

    @property
    def p(self) -> float:
        """The chance of as much or more without a difference, two-sided."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.freedom, -abs(self.estimate) / math.sqrt(self.variance)))

    def bounds(self, level: float, *, share: bool) -> tuple[float, float]:
        """Return the interval at `level`; of shares it is never beyond -1 and 1."""
        half = float(t_quantile(0.5 + level / 2, self.freedom)) * math.sqrt(self.variance)
        low, high = self.estimate - half, self.estimate + half
        return (max(-1.0, low), min(1.0, high)) if share else (low, high)


class _Skewed(NamedTuple):
    """The posterior of a difference of shares, in the place of a t test.

    Its bounds cover 95 % and more in simulations of 3 to 10 seeds, where those of t cover down to
    67 %; its `p` is below 0.05 in 2 % of them without a difference (tests/benchmarks/differences).
    """

    estimate: float
    posterior: Difference

    @property
    def p(self) -> float:
        return self.posterior.tail

    def bounds(self, level: float, *, share: bool) -> tuple[float, float]:
        """Return the interval at `level`; it holds the estimate."""
        low, high = self.posterior.bounds(level)
        return min(low, self.estimate), max(high, self.estimate)


def _posterior(side: Crossed, rates: Floats) -> Floats:
    answers = side.num.sum(axis=1).astype(np.float64)
    return posterior(rates, answers, one_model=side.one_model)


def _of_pairs(differences: Floats) -> _Test | None:
    """Return the test of seeds' differences; None where they do not vary."""
    if float(np.ptp(differences)) < ALIKE:
        return None
    num = len(differences)
    return _Test(float(differences.mean()), float(differences.var(ddof=1)) / num, num - 1)


def _of_samples(left: Floats, right: Floats) -> _Test | None:
    """Return Welch's test of two samples of seeds; None where neither varies."""
    if float(np.ptp(left)) + float(np.ptp(right)) < ALIKE:
        return None
    parts = [(float(side.var(ddof=1)) / len(side), len(side) - 1) for side in (left, right)]
    return _summed(float(left.mean() - right.mean()), parts)


def _summed(estimate: float, parts: Sequence[tuple[float, int]]) -> _Test:
    """Return the test by a sum of variances, each with its degrees of freedom (Satterthwaite)."""
    whole = sum(part for part, _ in parts)
    return _Test(estimate, whole, whole**2 / sum(part**2 / freedom for part, freedom in parts))


def _without_test(names: tuple[str, str], paired: str, fixed: Interval, over: Interval) -> Contrast:
    return Contrast(first=names[0], second=names[1], paired=paired, fixed=fixed, random=over)


def _with_test(
    names: tuple[str, str],
    paired: str,
    test: "_Test | _Skewed",
    over: Interval,
    one: Crossed,
    other: Crossed,
) -> Contrast:
    share = one.binary and other.binary
    seeds = [len(side.units) for side in (one, other) if not side.one_model]
    low, high = test.bounds(LEVEL, share=share)
    found = _without_test(
        names,
        paired,
        Interval(
            estimate=test.estimate,
            low=low,
            high=high,
            method=T if isinstance(test, _Test) else POSTERIOR,
            covers=f"the difference for new seeds on these questions; {min(seeds)} seeds a side or "
            "more"
            if seeds
            else "the difference of these two models on these questions",
        ),
        over,
    )
    within = max(map(abs, test.bounds(EQUIVALENCE, share=share)))
    return found.model_copy(update={"p": test.p, "equivalent_within": within})


def _is_even(side: Crossed) -> bool:
    """Whether a side's seeds allow a t interval."""
    return len(side.units) > 1 and bool(near_normal(seed_means(side)[None, :])[0])


def _over_questions(estimate: float, one: Crossed, other: Crossed, *, pairs: bool) -> Interval:
    """Return the interval for new questions: of their differences, and of the seeds.

    Of pairs of seeds what is left of their spread, else the spread of both sides.
    """
    by_question = np.nanmean(one.means, axis=0) - np.nanmean(other.means, axis=0)
    num = len(by_question)
    if num < 2:
        return no_interval(estimate, FEW_QUESTIONS)
    parts = [(float(by_question.var(ddof=1)) / num, num - 1)]
    for variance, seeds in _of_seeds(one, other, pairs=pairs):
        if seeds > 1:  # of one model there may be one: it has no variance between seeds
            parts.append((variance / seeds, seeds - 1))
    if sum(part for part, _ in parts) <= 0:
        return no_interval(estimate, NO_WIDTH)
    share = one.binary and other.binary
    low, high = _summed(estimate, parts).bounds(LEVEL, share=share)
    return Interval(
        estimate=estimate,
        low=low,
        high=high,
        method="t, Satterthwaite",
        covers=f"the difference for new seeds on new questions of this kind; {num} questions",
    )


def _of_seeds(one: Crossed, other: Crossed, *, pairs: bool) -> list[tuple[float, int]]:
    """Return variances between seeds beyond what questions and samples make, and of how many."""
    if not pairs:
        return [(seed_variance(estimates(side)), len(side.units)) for side in (one, other)]
    both = one.means - other.means
    both = both[:, ~np.isnan(both).any(axis=0)]
    seeds, questions = both.shape
    if questions < 2:
        return []
    by_seed, _, pairing = mean_squares(both)
    return [(max(0.0, float(by_seed - pairing) / questions), seeds)]
