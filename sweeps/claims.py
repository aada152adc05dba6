"""Verdicts on the claims of a spec: estimate, interval, and whether it lies beyond the bound.

A verdict comes from an interval over seeds, never from a point; where there is none it is
undecided, with the reason. Pure functions of cell results; knows nothing of stores or pages.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field

from em.definitions import DEFINITIONS
from em.intervals import SeedSummary, exact_bounds, fixed_questions, summarise_seeds
from em.record import Record
from sweeps.claim_spec import ClaimConfig, evaluations_of
from sweeps.results import CellResult
from sweeps.spec import UNTUNED

Verdict = Literal["supported", "contradicted", "undecided"]
MIN_SEEDS = 3  # two that happen to be near each other would decide
# Seeds that differ by less differ by the rounding of a division only.
DIGITS = 12
Place = tuple[int, int]  # a cell's seed, and its number among the cells of that seed


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


class _Estimate(Record):
    estimate: float | None
    low: float | None = None
    high: float | None = None
    num_seeds: int
    method: str


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
        found = _of_rate([c for c in one.values() if _usable(c)])
    else:
        found = _of_differences(differences(one, other))
    if other is None and not claim.spread:
        found = _of_answers([c for c in one.values() if _usable(c)]) or found
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


def differences(one: Mapping[Place, CellResult], other: Mapping[Place, CellResult]) -> list[float]:
    """Return rate minus rate of the seeds that both have, finished and with a rate.

    Cells of one seed share their seeds of adapter start, row order and row choice where both are
    tuned. Against an untuned cell nothing is shared, and the interval is only the wider for it.
    """
    pairs = [(one[seed], other[seed]) for seed in one if seed in other]
    return [
        a.em_rate - b.em_rate
        for a, b in pairs
        if a.state == b.state == "finished" and a.em_rate is not None and b.em_rate is not None
    ]


def _of_rate(cells: Sequence[CellResult]) -> _Estimate:
    """Return the rate of new seeds on these questions, as the report's own interval has it."""
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    hits, answers = [], []
    for seed in seeds:
        mine = [(c.em_rate or 0.0, c.counts.coherent) for c in cells if c.seed == seed]
        hits.append(math.fsum(rate * num for rate, num in mine))
        answers.append(sum(num for _, num in mine))
    found = fixed_questions(hits, answers, weights="each seed's rate by its definition")
    return _Estimate(
        estimate=None if found.estimate is None else round(found.estimate, DIGITS),
        low=found.low,
        high=found.high,
        num_seeds=len(seeds),
        method=f"{found.method}: {found.covers}, nominal {found.level:.0%}"
        if found.low is not None
        else found.covers,
    )


def _of_differences(differences_by_seed: Sequence[float]) -> _Estimate:
    present = list(differences_by_seed)
    # A summary is of shares in [0, 1]: a difference is moved there and back, which is linear.
    moved = summarise_seeds([round((rate + 1) / 2, DIGITS) for rate in present])
    found = _estimate(moved)
    back = {
        name: None if value is None else round(2 * value - 1, DIGITS)
        for name in ("estimate", "low", "high")
        for value in [getattr(found, name)]
    }
    return found.model_copy(update={**back, "method": f"differences by seed; {found.method}"})


def _of_answers(cells: Sequence[CellResult]) -> _Estimate | None:
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
    return _Estimate(
        estimate=hits / answers,
        low=low,
        high=high,
        num_seeds=len({cell.seed for cell in cells}),
        method=f"exact (Clopper-Pearson) bounds for {answers} answers of these seeds' models, all "
        "alike: nothing of new seeds, nominal 95%",
    )


def _estimate(summary: SeedSummary) -> _Estimate:
    return _Estimate(
        estimate=summary.mean,
        low=summary.low,
        high=summary.high,
        num_seeds=summary.num_seeds,
        method=summary.covers,
    )


def between_seeds(cells: Sequence[CellResult], *, level: float = 0.95) -> _Estimate:
    """Return the SD between seeds, beyond sampling, with an interval. Each cell has a rate.

    Observed variance of the rates minus the mean sampling variance of a rate, not below zero. The
    interval is that of a normal variance (chi-squared, n - 1 degrees of freedom) less the same
    sampling variance: it takes seeds as normal and the sampling variance as known.
    """
    rates = [round(cell.em_rate, DIGITS) for cell in cells if cell.em_rate is not None]
    summary = summarise_seeds(rates)
    if summary.low is None or summary.sd is None:
        return _Estimate(estimate=None, num_seeds=len(rates), method=summary.covers)
    from scipy.stats import chi2  # half a second, and only reports need it

    noise = math.fsum(sampling_variance(cell) for cell in cells) / len(cells)
    freedom = len(rates) - 1
    tails = chi2.ppf([0.5 - level / 2, 0.5 + level / 2], freedom)
    observed = summary.sd**2

    def beyond(variance: float) -> float:
        return math.sqrt(max(0.0, variance - noise))

    return _Estimate(
        estimate=beyond(observed),
        low=beyond(observed * freedom / float(tails[1])),
        high=beyond(observed * freedom / float(tails[0])),
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


def _verdict(claim: ClaimConfig, found: _Estimate) -> tuple[Verdict, str]:
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
