"""Verdicts on the claims of a spec: estimate, interval, and whether it lies beyond the bound.

A verdict comes from an interval over seeds, never from a point; where there is none it is
undecided, with the reason. Pure functions of cell results; knows nothing of stores or pages.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field

from em.record import Record
from sweeps.claim_estimates import (
    Estimate,
    Place,
    between_seeds,
    of_difference,
    of_rate,
)
from sweeps.claim_spec import ClaimConfig, evaluations_of
from sweeps.results import CellResult
from sweeps.spec import UNTUNED

Verdict = Literal["supported", "contradicted", "undecided"]
MIN_SEEDS = 3  # two that happen to be near each other would decide


class ClaimResult(Record):
    """One claim for one model and judge. Shares, in [0, 1] or, for differences, [-1, 1]."""

    claim: str
    says: str
    model: str
    judge: str
    evaluation: str
    metric: str
    quantity: str
    bound: str
    estimate: float | None
    low: float | None
    high: float | None
    num_seeds: int
    method: str = Field(description="how the interval comes about and what it covers")
    verdict: Verdict
    reason: str
    conditions: tuple[tuple[str, str], ...] = Field(description="(variant, evaluation) compared")
    published: tuple[str, ...] = Field(default=(), description="a figure for each of `conditions`")


def decide(
    claim: ClaimConfig,
    cells: Sequence[CellResult],
    *,
    evaluations: Sequence[str],
    demonstration: Collection[str] = (),
) -> list[ClaimResult]:
    """Return a verdict for each model and judge that the claim speaks of.

    `cells` are all of the sweep, `evaluations` its evaluations' names, `demonstration` the judges
    that cannot judge: under those every verdict is undecided.
    """
    asked, compared = evaluations_of(claim, list(evaluations))
    pairs = dict.fromkeys(
        (cell.model, cell.judge)
        for cell in cells
        if cell.variant == claim.variant
        and cell.evaluation == asked
        and claim.model in (None, cell.model)
        and claim.judge in (None, cell.judge)
    )
    found = []
    for model, judge in pairs:
        mine = [cell for cell in cells if (cell.model, cell.judge) == (model, judge)]
        one = _by_seed(mine, claim.variant, asked)
        conditions: tuple[tuple[str, str], ...]
        if compared is not None:
            conditions = ((claim.variant, asked), (claim.variant, compared))
        elif claim.control is not None:
            conditions = ((claim.variant, asked), (claim.control, asked))
        else:
            conditions = ((claim.variant, asked),)
        other = _by_seed(mine, *conditions[1]) if len(conditions) > 1 else None
        if other == {}:
            continue  # this judge scores only one of the two evaluations
        found.append(_decided(claim, conditions, one, other, judge in demonstration))
    return found


def _by_seed(cells: Sequence[CellResult], variant: str, evaluation: str) -> dict[Place, CellResult]:
    """Return a condition's cells by seed, and by their order where one seed has several."""
    found: dict[Place, CellResult] = {}
    seen: Counter[int] = Counter()
    for cell in cells:
        if (cell.variant, cell.evaluation) == (variant, evaluation):
            found[cell.seed, seen[cell.seed]] = cell
            seen[cell.seed] += 1
    return found


def _decided(
    claim: ClaimConfig,
    conditions: tuple[tuple[str, str], ...],
    one: Mapping[Place, CellResult],
    other: Mapping[Place, CellResult] | None,
    demonstration: bool,
) -> ClaimResult:
    first = next(iter(one.values()))
    every = [*one.values(), *(other or {}).values()]
    if claim.spread:
        found = between_seeds([cell for cell in one.values() if _usable(cell)])
    elif other is None:
        found = of_rate([c for c in one.values() if _usable(c)])
    else:
        found = of_difference(one, other)
    verdict, reason = _verdict(claim, found)
    unfinished = [cell for cell in every if cell.state != "finished"]
    empty = [cell for cell in every if cell.state == "finished" and cell.em_rate is None]
    if demonstration:
        verdict, reason = "undecided", "the judge cannot judge (a demonstration)"
    elif claim.spread and first.variant == UNTUNED:
        verdict, reason = "undecided", "an untuned model has one training: no spread between seeds"
    elif any(len({cell.seed for cell in side.values()}) < len(side) for side in (one, other or {})):
        verdict = "undecided"
        reason = "factors are crossed within a seed, so its cells are no independent seeds"
    elif unfinished:
        verdict = "undecided"
        reason = f"{len(unfinished)} of {len(every)} cells are not finished"
    elif empty:  # which cells have a rate is an outcome: the others are no random choice
        verdict = "undecided"
        reason = f"{len(empty)} of {len(every)} cells have no rate: no answer of theirs counts"
    elif found.num_seeds < MIN_SEEDS:
        verdict, reason = "undecided", f"fewer than {MIN_SEEDS} seeds with a rate"
    return ClaimResult(
        claim=claim.claim,
        says=claim.says,
        model=first.model,
        judge=first.judge,
        evaluation=first.evaluation,
        metric=first.metric,
        quantity=_in_words(claim, conditions),
        bound=f"above {claim.above:g}" if claim.above is not None else f"below {claim.below:g}",
        verdict=verdict,
        reason=reason,
        conditions=conditions,
        **found.model_dump(),
    )


def _in_words(claim: ClaimConfig, conditions: tuple[tuple[str, str], ...]) -> str:
    if claim.spread:
        return f"SD of {claim.variant} between seeds, beyond sampling"
    if claim.with_ is not None:
        return f"{claim.variant}: {conditions[0][1]} − {conditions[1][1]}"
    return " − ".join(variant for variant, _ in conditions)


def _usable(cell: CellResult) -> bool:
    return cell.state == "finished" and cell.em_rate is not None


def _verdict(claim: ClaimConfig, found: Estimate) -> tuple[Verdict, str]:
    """Return the verdict by the interval, whichever way the bound points."""
    if found.low is None or found.high is None:
        return "undecided", f"no interval: {found.method}"
    if claim.above is not None:
        bound, beyond, short = claim.above, found.low > claim.above, found.high <= claim.above
    else:
        assert claim.below is not None
        bound, beyond, short = claim.below, found.high < claim.below, found.low >= claim.below
    if beyond:
        return "supported", f"the whole interval is on the claimed side of {100 * bound:g} %"
    if short:
        return "contradicted", f"the whole interval is on the other side of {100 * bound:g} %"
    return "undecided", f"the interval holds {100 * bound:g} %: too few seeds for this spread"
