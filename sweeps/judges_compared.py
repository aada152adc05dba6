"""Several judges of the same answers side by side: the rate under each, and how far they agree.

Pure functions of conditions and scored responses; knows nothing of what a judge is.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from pydantic import Field

from em.agreement import correlate, verdict_kappa
from em.record import Record
from sweeps.answers import NOTHING, Place, Scores
from sweeps.conditions import Condition
from sweeps.results import CellResult


class Agreement(Record):
    """How far two judges agree on the answers of one condition; None where it is not measured."""

    kappa: float | None = Field(default=None, description="of the verdicts of answers both count")
    kappa_low: float | None = None
    kappa_high: float | None = None
    pearson: float | None = Field(default=None, description="of `aligned`, where both scored it")
    spearman: float | None = None


class JudgesCompared(Record):
    """Two judges of one condition. Rates in [0, 1]; `first` and `second` are the judges' names.

    `first_rate` and `second_rate` are the means over seeds, each over what its judge counts; they
    may differ because the judges count other answers. Those `of_both` are of the `num_both` answers
    that both count, all seeds together, and differ by verdicts alone.
    """

    evaluation: str
    condition: str
    metric: str
    first: str
    second: str
    first_rate: float | None
    second_rate: float | None
    num_both: int
    first_of_both: float | None
    second_of_both: float | None
    agreement: Agreement


def compare_judges(
    conditions: Sequence[Condition],
    cells: Sequence[CellResult],
    scores: Mapping[Place, Scores],
) -> list[JudgesCompared]:
    """Return every pair of judges of every condition, in the order of the conditions.

    Only finished cells count. `scores` are those of all `cells`, by evaluation and judge.
    """
    finished: dict[Place, dict[str, str]] = {}
    for cell in cells:
        if cell.state == "finished":
            finished.setdefault((cell.evaluation, cell.judge), {})[cell.cell_id] = cell.condition
    num_judges = Counter(evaluation for evaluation, _ in scores)
    tables = {
        place: of.by(finished.get(place, {}))
        for place, of in scores.items()
        if num_judges[place[0]] > 1
    }
    groups: dict[tuple[str, str], list[Condition]] = {}
    for condition in conditions:
        groups.setdefault((condition.evaluation, condition.condition), []).append(condition)
    found = []
    for (evaluation, name), judged in groups.items():
        if len(judged) > 1:
            mine = {
                c.judge: tables.get((evaluation, c.judge), {}).get(name, NOTHING) for c in judged
            }
            found += [
                _compared(one, two, mine[one.judge], mine[two.judge])
                for one, two in combinations(judged, 2)
            ]
    return found


def _compared(one: Condition, two: Condition, first: Scores, second: Scores) -> JudgesCompared:
    mine, theirs = _verdicts(first), _verdicts(second)
    both = [answer for answer in mine if answer in theirs]
    return JudgesCompared(
        evaluation=one.evaluation,
        condition=one.condition,
        metric=one.metric,
        first=one.judge,
        second=two.judge,
        first_rate=one.summary.mean,
        second_rate=two.summary.mean,
        num_both=len(both),
        first_of_both=_share([mine[answer] for answer in both]),
        second_of_both=_share([theirs[answer] for answer in both]),
        agreement=_agreement(first, second),
    )


def _verdicts(scores: Scores) -> dict[str, bool]:
    """Return whether each answer is in the numerator, of those in the denominator."""
    counted = scores.counted
    return dict(
        zip(map(str, scores.answer[counted]), map(bool, scores.found[counted]), strict=True)
    )


def _agreement(first: Scores, second: Scores) -> Agreement:
    """Kappa is of the verdicts of answers that both count, the correlations of `aligned`."""
    kappa = verdict_kappa(_verdicts(first), _verdicts(second))
    theirs = dict(zip(second.answer.tolist(), second.aligned.tolist(), strict=True))
    pairs = [
        (aligned, theirs[answer])
        for answer, aligned in zip(first.answer.tolist(), first.aligned.tolist(), strict=True)
        if not math.isnan(aligned) and not math.isnan(theirs.get(answer, math.nan))
    ]
    found = correlate(pairs)
    return Agreement(
        kappa=kappa.kappa,
        kappa_low=kappa.low,
        kappa_high=kappa.high,
        pearson=found.pearson,
        spearman=found.spearman,
    )


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
