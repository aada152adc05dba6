"""Differences between two conditions: paired by question, and by seed where seeds are shared.

Pure functions of arrays; knows nothing of which conditions are worth comparing.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from em.additive import seed_means
from em.crossed import Crossed
from em.differences import POSTERIOR, Side, Skewed, TTest, difference_test, summed
from em.intervals import (
    APART,
    FEW_QUESTIONS,
    FEW_SEEDS,
    NO_WIDTH,
    REUSED,
    Interval,
    mean_squares,
    no_interval,
)
from em.quantiles import LEVEL
from em.record import Record
from em.variance import estimates, seed_variance

EQUIVALENCE = 0.90  # the interval inside which two one-sided tests at 5 % call two equal
NOT_PAIRED = "not at all"
NOT_ASKED = "no question is asked of both: they cannot be compared"
SKEWED = (
    "seeds crowd at 0 or 1, where a t interval may cover 80 % only: no test, and no equivalence, "
    "is told"
)
Pairing = Literal["none", "seeds", "models"]


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


def contrast(
    first: Crossed, second: Crossed, *, names: tuple[str, str], pairing: Pairing = "none"
) -> Contrast:
    """Return how two conditions differ on the questions that both have.

    Of the same `models` (two judges, two forms of asking) each seed is a pair of its own. Where
    `seeds` are shared (of the adapter's start, the row order or the rows) and near normal, those of
    one name are pairs; else the seeds are two samples, all of them.
    """
    both = sorted(set(first.present().questions) & set(second.present().questions))
    if not both:
        nothing = no_interval(None, NOT_ASKED)
        return _without_test(names, NOT_PAIRED, nothing, nothing)
    one, other = first.of_questions(both), second.of_questions(both)
    left, right = _side(one), _side(other)
    apart = float(left.rates.mean() - right.rates.mean())
    estimate = None if math.isnan(apart) else apart
    why = _why_not(one, other, estimate)
    pairs = _are_pairs(one, other, left, right, pairing) if not why else False
    if pairs:
        paired = f"by question and by {len(one.units)} seeds"
    elif one.one_model and other.one_model:
        paired = "by question"
    else:
        normal = not (one.binary and other.binary) or (left.even and right.even)
        paired = f"by question; seeds are two samples{' (Welch)' if normal else ''}"
    if why or estimate is None:
        nothing = no_interval(estimate, why)
        return _without_test(names, paired, nothing, nothing)
    share = one.binary and other.binary
    test = difference_test(left, right, pairs=pairs, share=share)
    fixed = _fixed(estimate, test, left, right, share=share)
    over = _over_questions(estimate, one, other, pairs=pairs, fixed=fixed)
    found = _without_test(names, paired, fixed, over)
    if test is None or (pairs and share and not (left.even and right.even)):
        return found
    within = max(map(abs, test.bounds(EQUIVALENCE, share=share)))
    return found.model_copy(update={"p": test.p, "equivalent_within": within})


def _why_not(one: Crossed, other: Crossed, estimate: float | None) -> str:
    """Return why no interval can be given; empty where one can."""
    if one.reused or other.reused:
        return REUSED
    if any(len(side.units) < 2 and not side.one_model for side in (one, other)):
        return FEW_SEEDS
    return APART if estimate is None else ""


def _are_pairs(one: Crossed, other: Crossed, left: Side, right: Side, pairing: Pairing) -> bool:
    alike = one.units == other.units and len(one.units) > 1
    if not alike or pairing == "none" or (one.one_model and other.one_model):
        return False
    normal = not (one.binary and other.binary) or (left.even and right.even)
    return pairing == "models" or normal


def _side(table: Crossed) -> Side:
    return Side(seed_means(table), table.effective, table.one_model)


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


def _without_test(names: tuple[str, str], paired: str, fixed: Interval, over: Interval) -> Contrast:
    return Contrast(first=names[0], second=names[1], paired=paired, fixed=fixed, random=over)


def _fixed(
    estimate: float, test: TTest | Skewed | None, left: Side, right: Side, *, share: bool
) -> Interval:
    if test is None:
        return no_interval(estimate, NO_WIDTH)
    seeds = [len(side.rates) for side in (left, right) if not side.one_model]
    covers = "the difference of these two models on these questions"
    if seeds:
        covers = (
            f"the difference for new seeds on these questions; {min(seeds)} seeds a side or more"
        )
    if share and isinstance(test, TTest) and not (left.even and right.even):
        covers += f"; {SKEWED}"
    low, high = test.bounds(LEVEL, share=share)
    return Interval(estimate=estimate, low=low, high=high, method=test.method, covers=covers)


def _over_questions(
    estimate: float, one: Crossed, other: Crossed, *, pairs: bool, fixed: Interval
) -> Interval:
    """Return the interval for new questions: of their differences, and of the seeds.

    Of pairs of seeds what is left of their spread, else the spread of both sides (Satterthwaite).
    Never narrower than with these questions; where that has no t interval, its reach on either side
    and that of the questions are added as variances are.
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
    reach = [0.0, 0.0]
    if fixed.low is not None and fixed.high is not None:
        reach = [estimate - fixed.low, fixed.high - estimate]
    if fixed.method == POSTERIOR:
        asked = [part for part in parts[:1] if part[0] > 0]
        alone = summed(0.0, asked).bounds(LEVEL, share=False)[1] if asked else 0.0
        ends = [math.hypot(side, alone) for side in reach]
    else:
        half = summed(estimate, parts).bounds(LEVEL, share=False)[1] - estimate
        ends = [max(half, side) for side in reach]
    low, high = estimate - ends[0], estimate + ends[1]
    return Interval(
        estimate=estimate,
        low=max(-1.0, low) if share else low,
        high=min(1.0, high) if share else high,
        method="t, Satterthwaite" if fixed.method != POSTERIOR else f"{POSTERIOR}, and t",
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
