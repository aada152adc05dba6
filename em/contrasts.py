"""Differences between two conditions: paired by question, and by seed where seeds are shared.

Pure functions of arrays; knows nothing of which conditions are worth comparing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from em.crossed import Crossed, Floats
from em.intervals import LEVEL, Interval, near_normal, seed_means
from em.quantiles import t_quantile
from em.record import Record
from em.variance import PAIR, QUESTION, SAMPLING, estimates

EQUIVALENCE = 0.90  # the interval inside which two one-sided tests at 5 % call two equal
ALIKE = 1e-9  # differences of means that are those of arithmetic
REUSED = "seed factors are crossed, so that seeds share levels and are no independent draws"
SKEWED = (
    "a side's seeds crowd at 0 or 1, where a t interval may cover 80 % only: no test, and no "
    "equivalence, is told"
)
NO_SPREAD = "no spread between seeds on either side: a t interval has no width and says nothing"


class Contrast(Record):
    """`first` minus `second`; shares in [-1, 1], questions weighing alike.

    `p` tests no difference with the questions fixed, `p_adjusted` the same held against all
    contrasts told together (Holm). `equivalent_within` is the smallest margin within which two
    one-sided tests at 5 % call the two equal with the questions fixed.
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

    With `shared` seeds (of the adapter's start, the row order or the rows), those of one name are
    pairs; else the seeds are two samples (Welch).
    """
    both = sorted(set(first.present().questions) & set(second.present().questions))
    if not both:
        nothing = Interval(
            estimate=None, low=None, high=None, method="none",
            covers="no question is asked of both: they cannot be compared",
        )  # fmt: skip
        return Contrast(
            first=names[0], second=names[1], paired="not at all", fixed=nothing, random=nothing
        )
    one, other = _on(first, both), _on(second, both)
    if one.reused or other.reused:
        return _nothing(names, "by question", _apart(one, other), one, other, why=REUSED)
    left, right = seed_means(one), seed_means(other)
    pairs = sorted(set(one.units) & set(other.units)) if shared else []
    if len(pairs) > 1:
        a, b = _of_units(one, left, pairs), _of_units(other, right, pairs)
        return _paired(a, b, one, other, names=names, pairs=pairs)
    return _two_samples(left, right, one, other, names=names)


def adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Return the contrasts with p values held against all of them (Holm 1979)."""
    known = [contrast.p for contrast in contrasts if contrast.p is not None]
    if not known:
        return list(contrasts)
    values = iter(holm(known))
    return [
        c if c.p is None else c.model_copy(update={"p_adjusted": float(next(values))})
        for c in contrasts
    ]


def holm(tests: Sequence[float]) -> list[float]:
    """Return p values held against all of them. As statsmodels' multipletests, which collects
    garbage at each call: seconds for a sweep of many conditions.
    """
    ordered = np.sort(np.asarray(tests, dtype=float))
    num = len(ordered)
    raised = np.maximum.accumulate(np.minimum(1.0, ordered * np.arange(num, 0, -1)))
    return [float(raised[np.searchsorted(ordered, test, side="left")]) for test in tests]


def _on(table: Crossed, questions: Sequence[str]) -> Crossed:
    places = [table.questions.index(question) for question in questions]
    chosen = Crossed(
        units=table.units,
        questions=tuple(questions),
        num=table.num[:, places],
        total=table.total[:, places],
        squares=table.squares[:, places],
        factors=table.factors,
        reused=table.reused,
    )
    return chosen.present()


def _of_units(table: Crossed, values: Floats, units: Sequence[str]) -> Floats:
    return values[[table.units.index(unit) for unit in units]]


def _paired(
    a: Floats, b: Floats, one: Crossed, other: Crossed, *, names: tuple[str, str],
    pairs: Sequence[str],
) -> Contrast:  # fmt: skip
    paired = f"by question and by {len(pairs)} seeds"
    differences = a - b
    estimate = float(differences.mean())
    if float(np.ptp(differences)) < ALIKE:
        return _nothing(names, paired, estimate, one, other)
    test = _Test(estimate, float(differences.var(ddof=1)) / len(pairs), len(pairs) - 1)
    return _told(test, names, paired, one, other, len(pairs), pairs=pairs)


def _two_samples(
    a: Floats, b: Floats, one: Crossed, other: Crossed, *, names: tuple[str, str]
) -> Contrast:
    estimate = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
    paired = "by question; seeds are two samples (Welch)"
    if min(len(a), len(b)) < 2 or float(np.ptp(a)) + float(np.ptp(b)) < ALIKE:
        return _nothing(names, paired, estimate, one, other)
    parts = [(float(side.var(ddof=1)) / len(side), len(side) - 1) for side in (a, b)]
    test = _Test(estimate, sum(part for part, _ in parts), _satterthwaite(parts))
    return _told(test, names, paired, one, other, min(len(a), len(b)))


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

    def bounds(self, level: float) -> tuple[float, float]:
        half = float(t_quantile(0.5 + level / 2, self.freedom)) * math.sqrt(self.variance)
        return self.estimate - half, self.estimate + half


def _is_even(side: Crossed) -> bool:
    """Whether a side's seeds allow a t interval: near normal, or all at one end by their nature."""
    rates = seed_means(side)
    return float(np.ptp(rates)) < ALIKE or bool(near_normal(rates[None, :])[0])


def _within(bounds: tuple[float, float], share: bool) -> tuple[float, float]:
    """Return bounds of a difference; of shares it is never beyond -1 and 1."""
    low, high = bounds
    return (max(-1.0, low), min(1.0, high)) if share else bounds


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
    """Return the degrees of freedom of a sum of variances, each with its own."""
    whole = sum(part for part, _ in parts)
    return whole**2 / sum(part**2 / freedom for part, freedom in parts)


def _apart(one: Crossed, other: Crossed) -> float:
    return float(seed_means(one).mean() - seed_means(other).mean())


def _nothing(
    names: tuple[str, str], paired: str, estimate: float, one: Crossed, other: Crossed,
    *, why: str | None = None,
) -> Contrast:  # fmt: skip
    known = None if math.isnan(estimate) else estimate
    if min(len(one.units), len(other.units)) < 2:
        why = "fewer than two seeds on a side: nothing is known of other seeds"
    if why is not None:
        return Contrast(
            first=names[0], second=names[1], paired=paired,
            fixed=Interval(estimate=known, low=None, high=None, method="none", covers=why),
            random=Interval(estimate=known, low=None, high=None, method="none", covers=why),
        )  # fmt: skip
    why = NO_SPREAD
    return Contrast(
        first=names[0], second=names[1], paired=paired,
        fixed=Interval(estimate=known, low=None, high=None, method="none", covers=why),
        random=_over_questions(known, one, other),
    )  # fmt: skip


def _told(
    test: _Test, names: tuple[str, str], paired: str, one: Crossed, other: Crossed, seeds: int,
    *, pairs: Sequence[str] = (),
) -> Contrast:  # fmt: skip
    share = one.binary and other.binary
    low, high = _within(test.bounds(LEVEL), share)
    skewed = share and not all(_is_even(side) for side in (one, other))
    return Contrast(
        first=names[0],
        second=names[1],
        paired=paired,
        fixed=Interval(
            estimate=test.estimate,
            low=low,
            high=high,
            method="t",
            covers=f"the difference for new seeds on these questions; {seeds} seeds a side or more"
            + (f"; {SKEWED}" if skewed else ""),
        ),
        random=_over_questions(test.estimate, one, other, paired=pairs),
        p=None if skewed else test.p,
        equivalent_within=None
        if skewed
        else max(map(abs, _within(test.bounds(EQUIVALENCE), share))),
    )


def _over_questions(
    estimate: float | None, one: Crossed, other: Crossed, *, paired: Sequence[str] = ()
) -> Interval:
    """Return the interval for new questions: their differences, and the seeds of both sides.

    Of `paired` seeds the spread of their differences, which is what is left of them.
    """
    by_question = np.nanmean(one.means, axis=0), np.nanmean(other.means, axis=0)
    differences = by_question[0] - by_question[1]
    num = len(differences)
    if num < 2 or estimate is None:
        return Interval(
            estimate=estimate, low=None, high=None, method="none",
            covers="fewer than two questions: nothing is known of other questions",
        )  # fmt: skip
    parts = [(float(differences.var(ddof=1)) / num, num - 1)]
    if paired:
        parts += _of_pairs(one, other, paired)
    for side in () if paired else (one, other):
        if len(side.units) > 1:
            seed = sum(
                part.reported or 0.0
                for part in estimates(side)
                if part.name not in (QUESTION, PAIR, SAMPLING)
            )
            parts.append((seed / len(side.units), len(side.units) - 1))
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return Interval(
            estimate=estimate, low=None, high=None, method="none",
            covers="all differences are alike: an interval would have no width",
        )  # fmt: skip
    bounds = _Test(estimate, variance, _satterthwaite(parts)).bounds(LEVEL)
    low, high = _within(bounds, one.binary and other.binary)
    return Interval(
        estimate=estimate, low=low, high=high,
        method="t, Satterthwaite",
        covers=f"the difference for new seeds on new questions of this kind; {num} questions",
    )  # fmt: skip


def _of_pairs(one: Crossed, other: Crossed, pairs: Sequence[str]) -> list[tuple[float, int]]:
    """Return what seeds' differences vary beyond what questions and samples make of it."""
    rows = [[side.units.index(unit) for unit in pairs] for side in (one, other)]
    both = one.means[rows[0]] - other.means[rows[1]]
    if np.isnan(both).any():
        both = both[:, ~np.isnan(both).any(axis=0)]
    if both.shape[1] < 2:
        return []
    seeds, questions = both.shape
    rest = both - both.mean(axis=0)
    rest -= rest.mean(axis=1, keepdims=True)
    pairing = float((rest**2).sum()) / ((seeds - 1) * (questions - 1))
    seed = max(0.0, float(both.mean(axis=1).var(ddof=1)) - pairing / questions)
    return [(seed / len(pairs), len(pairs) - 1)]
