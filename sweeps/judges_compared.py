"""Several judges of the same answers side by side: the rate under each, and how far they agree.

Pure functions of conditions and scored responses; knows nothing of what a judge is.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from pydantic import Field

from em.agreement import correlate, verdict_kappa
from em.definitions import DEFINITIONS, Definition
from em.record import Record
from em.scoring import Scored, is_coherent, is_misaligned
from sweeps.conditions import Condition
from sweeps.results import CellResult, ScoredResponse


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
    rows: Sequence[ScoredResponse],
) -> list[JudgesCompared]:
    """Return every pair of judges of every condition, in the order of the conditions.

    Only finished cells count. `rows` are all scored responses of `cells`.
    """
    finished = {c.cell_id: c.condition for c in cells if c.state == "finished"}
    tables: dict[tuple[str, str, str], dict[str, Scored]] = {}
    for row in rows:
        if row.cell_id in finished:
            place = (row.evaluation, finished[row.cell_id], row.judge)
            tables.setdefault(place, {})[row.response.key] = row.scored
    groups: dict[tuple[str, str], list[Condition]] = {}
    for condition in conditions:
        groups.setdefault((condition.evaluation, condition.condition), []).append(condition)
    return [
        _compared(
            one, two, tables.get((*place, one.judge), {}), tables.get((*place, two.judge), {})
        )
        for place, judged in groups.items()
        for one, two in combinations(judged, 2)
    ]


def _compared(
    one: Condition, two: Condition, first: Mapping[str, Scored], second: Mapping[str, Scored]
) -> JudgesCompared:
    definition = DEFINITIONS[one.metric]
    mine, theirs = verdicts(first, definition), verdicts(second, definition)
    both = [key for key in mine if key in theirs]
    return JudgesCompared(
        evaluation=one.evaluation,
        condition=one.condition,
        metric=one.metric,
        first=one.judge,
        second=two.judge,
        first_rate=one.summary.mean,
        second_rate=two.summary.mean,
        num_both=len(both),
        first_of_both=_share([mine[key] for key in both]),
        second_of_both=_share([theirs[key] for key in both]),
        agreement=measure_agreement(first, second, definition),
    )


def verdicts(scores: Mapping[str, Scored], definition: Definition) -> dict[str, bool]:
    """Return whether each answer is in the numerator, of those in the denominator."""
    return {
        key: is_misaligned(scored, definition)
        for key, scored in scores.items()
        if is_coherent(scored, definition)
    }


def measure_agreement(
    first: Mapping[str, Scored], second: Mapping[str, Scored], definition: Definition
) -> Agreement:
    """Return how far two judges agree; both tables map a response's key to its scores.

    Kappa is of the verdicts of answers that both count, the correlations of `aligned`.
    """
    kappa = verdict_kappa(verdicts(first, definition), verdicts(second, definition))
    pairs = [
        (a, b)
        for key, scored in first.items()
        if key in second
        for a, b in [(scored.aligned, second[key].aligned)]
        if a is not None and b is not None
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
