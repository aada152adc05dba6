"""How far two judges agree about the same answers: correlation, confusion, kappa, rates.

Pure functions on two score tables, each a mapping of an answer's key to its score. What is in one
table only, or has no value in either, is counted and never taken for something else. Knows nothing
of how the scores were made.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from em.judging import State
from em.record import Record
from em.rules import Rule

CERTAIN = 1e-6  # an interval narrower than this is no interval
MIN_PAIRS = 3  # a correlation of two points is always 1 or -1


class Score(Record):
    """One judge's score of one answer: its state, and a value (0-100) or a label if scored."""

    state: State
    value: float | None = None
    label: str | None = None

    @property
    def said(self) -> str:
        """The label where there is one, else the state."""
        return self.label or self.state


class Confusion(Record):
    """Counts: `table[i][j]` answers were `labels[i]` to one judge and `labels[j]` to the other."""

    labels: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]

    @property
    def n(self) -> int:
        """All that were counted."""
        return sum(map(sum, self.table))


class Kappa(Record):
    """Cohen's kappa with its large-sample interval; None where it is not defined, and why."""

    kappa: float | None
    low: float | None = None
    high: float | None = None
    n: int
    agreed: int
    note: str = ""


class Correlation(Record):
    """Of the answers that both scored with a number; None where it is not defined, and why."""

    pearson: float | None
    spearman: float | None
    n: int
    note: str = ""


class Agreement(Record):
    """Two judges on one score. `dropped` says, by reason, which answers have no part in the rest.

    Answers in one table only are in no number; those that both tables have, and that one of them
    did not score, are in `confusion` only.
    """

    n: int = Field(description="answers that both tables have")
    dropped: dict[str, int]
    confusion: Confusion
    correlation: Correlation
    kappa: Kappa


class RatePair(Record):
    """The rate under each judge: of all that each counts, and of those that both count."""

    first: float | None
    second: float | None
    first_n: int
    second_n: int
    first_of_both: float | None
    second_of_both: float | None
    both_n: int


def agree(
    first: Mapping[str, Score], second: Mapping[str, Score], *, rule: Rule | None = None
) -> Agreement:
    """Return how two judges agree on one score; kappa is of labels, without those unscored.

    `rule` gives the labels' order. For numbers, kappa of a yes or no is that of `kappa_of`.
    """
    both = sorted(first.keys() & second.keys())
    pairs = [(first[key], second[key]) for key in both]
    scored = [(a, b) for a, b in pairs if a.state == b.state == "scored"]
    numbers = [(a.value, b.value) for a, b in scored if a.value is not None and b.value is not None]
    labels = [(a.label, b.label) for a, b in scored if a.label is not None and b.label is not None]
    return Agreement(
        n=len(both),
        dropped={
            "only the first judge has it": len(first.keys() - second.keys()),
            "only the second judge has it": len(second.keys() - first.keys()),
            "scored by the first judge only": sum(a.state == "scored" != b.state for a, b in pairs),
            "scored by the second judge only": sum(
                b.state == "scored" != a.state for a, b in pairs
            ),
            "scored by neither": sum(a.state != "scored" != b.state for a, b in pairs),
        },
        confusion=confusion([(a.said, b.said) for a, b in pairs], rule.labels if rule else ()),
        correlation=correlate(numbers),
        kappa=kappa_of(labels),
    )


def correlate(pairs: Sequence[tuple[float, float]]) -> Correlation:
    """Return Pearson's and Spearman's correlation of pairs of numbers."""
    from scipy import stats

    if len(pairs) < MIN_PAIRS:
        note = f"fewer than {MIN_PAIRS} answers have a number from both"
        return Correlation(pearson=None, spearman=None, n=len(pairs), note=note)
    xs, ys = zip(*pairs, strict=True)
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        note = "one judge gave every answer the same number"
        return Correlation(pearson=None, spearman=None, n=len(pairs), note=note)
    return Correlation(
        pearson=_finite(stats.pearsonr(xs, ys).statistic),
        spearman=_finite(stats.spearmanr(xs, ys).statistic),
        n=len(pairs),
    )


def confusion(pairs: Sequence[tuple[str, str]], order: Sequence[str] = ()) -> Confusion:
    """Return the counts of every pair; labels of `order` first, then the others by name."""
    present = {label for pair in pairs for label in pair}
    labels = [*order, *sorted(present - set(order))]
    counts = Counter(pairs)
    return Confusion(
        labels=tuple(labels), table=tuple(tuple(counts[a, b] for b in labels) for a in labels)
    )


def kappa_of(pairs: Sequence[tuple[Any, Any]]) -> Kappa:
    """Return Cohen's kappa of two judges' categories (any values), with a 95 % interval.

    kappa = (observed - chance) / (1 - chance), where chance is what two judges with these shares
    would agree by chance; not defined where both gave every answer the same one category. The
    interval is statsmodels' (Fleiss, Cohen and Everitt 1969): an asymptotic one.
    """
    agreed = sum(a == b for a, b in pairs)
    if not pairs:
        return Kappa(kappa=None, n=0, agreed=0, note="no answer has a category from both")
    table = confusion([(str(a), str(b)) for a, b in pairs]).table
    if len(table) == 1:
        note = "both judges gave every answer the same category: chance alone explains it"
        return Kappa(kappa=None, n=len(pairs), agreed=agreed, note=note)
    import numpy as np
    from statsmodels.stats.inter_rater import cohens_kappa

    with np.errstate(invalid="ignore", divide="ignore"):  # no variance, told below
        found = cohens_kappa(table)
    # The asymptotic variance is 0 where all agree or one judge is constant, which is certainty that
    # nobody has; rounding leaves a little of it.
    width = float(found.kappa_upp) - float(found.kappa_low)
    certain = not math.isfinite(width) or width < CERTAIN
    return Kappa(
        kappa=float(found.kappa),
        low=None if certain else max(-1.0, float(found.kappa_low)),
        high=None if certain else min(1.0, float(found.kappa_upp)),
        n=len(pairs),
        agreed=agreed,
        note="one judge gave every answer the same category" if _is_constant(pairs) else "",
    )


def _is_constant(pairs: Sequence[tuple[Any, Any]]) -> bool:
    return any(len(set(said)) == 1 for said in zip(*pairs, strict=True))


def rates_under(first: Mapping[str, bool | None], second: Mapping[str, bool | None]) -> RatePair:
    """Return the share of True under each judge; None for an answer that does not count.

    The rates of all that each counts may differ because the judges count other answers; those of
    the answers that both count differ by verdicts alone.
    """
    both = _counted_by_both(first, second)
    ones = [v for v in first.values() if v is not None]
    twos = [v for v in second.values() if v is not None]
    return RatePair(
        first=_share(ones),
        second=_share(twos),
        first_n=len(ones),
        second_n=len(twos),
        first_of_both=_share([a for a, _ in both]),
        second_of_both=_share([b for _, b in both]),
        both_n=len(both),
    )


def verdict_kappa(first: Mapping[str, bool | None], second: Mapping[str, bool | None]) -> Kappa:
    """Return Cohen's kappa of a yes or no (such as misaligned) over the answers that both count."""
    return kappa_of(_counted_by_both(first, second))


def _counted_by_both(
    first: Mapping[str, bool | None], second: Mapping[str, bool | None]
) -> list[tuple[bool, bool]]:
    pairs = ((first[key], second[key]) for key in sorted(first.keys() & second.keys()))
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
