"""What more seeds, questions and samples would buy each analysed condition, in words.

Knows nothing of the command line.
"""

from collections.abc import Sequence
from typing import NamedTuple

from em.condition import CLAIMS, ConditionAnalysis, design_of, variances_of
from em.intervals import T
from em.power import (
    Allocation,
    Needed,
    best_answers,
    best_split,
    detectable,
    half_width,
    needed,
    one_more,
    seed_sd,
    seeds_to_see,
)
from em.record import Record

ROUGH = (
    "roughly: these figures take seeds as near normal, and its seeds crowd at 0 or 1, share levels "
    "or are one model, so that its interval is another and wider"
)


class Costs(NamedTuple):
    """Of one trained cell, of one judged answer, and what may be spent on a condition."""

    train: float
    answer: float
    budget: float


class Told(Record):
    """One condition's power."""

    condition: str
    judge: str
    half_width_fixed: float | None
    half_width_random: float | None
    needs: tuple[Needed, ...]
    one_more: dict[str, dict[str, float]]
    detectable: float | None
    seeds_for_difference: int | None
    best: Allocation | None
    best_answers: float | None
    lines: tuple[str, ...]


def costs(train: float | None, answer: float | None, budget: float | None) -> Costs | None:
    """Return the costs where all are given. Raises ValueError where one is not above 0."""
    if train is None or answer is None or budget is None:
        return None
    if min(train, answer, budget) <= 0:
        raise ValueError("costs and budget must be above 0")
    return Costs(train, answer, budget)


def powers(
    conditions: Sequence[ConditionAnalysis],
    *,
    wanted: float,
    difference: float | None = None,
    prices: Costs | None = None,
) -> list[Told]:
    """Return the power of each condition for a half-width `wanted` and a `difference` to be found.

    A difference is found between two conditions that vary alike. Raises ValueError where no
    condition has what power is computed from.
    """
    found = [_told(c, wanted, difference, prices) for c in conditions]
    known = [told for told in found if told is not None]
    if not known:
        raise ValueError(
            "no condition has components to compute power from: that takes two seeds, two "
            "questions and two samples of each"
        )
    return known


def _told(
    c: ConditionAnalysis, wanted: float, difference: float | None, prices: Costs | None
) -> Told | None:
    parts = variances_of(c.components)
    if parts is None:
        return None
    design = design_of(c)
    needs = tuple(needed(parts, design, wanted, claim) for claim in CLAIMS)
    more = {claim: one_more(parts, design, claim) for claim in CLAIMS}
    sd = seed_sd(parts, design)
    found = detectable(sd, sd, design.seeds)
    seeds = seeds_to_see(difference, sd, sd) if difference else None
    widths = {claim: half_width(parts, design, claim) for claim in CLAIMS}
    best = (
        best_split(
            parts, design.questions, cost_train=prices.train, cost_answer=prices.answer,
            budget=prices.budget,
        )
        if prices
        else None
    )  # fmt: skip
    answers = best_answers(parts, design.questions, prices.train, prices.answer) if prices else None
    said = [
        f"{c.condition}" + (f", judged by {c.judge}" if c.judge else "")
        + f": {design.seeds} seeds x {design.questions} questions x {design.samples} samples",
        f"  expected half-width: these questions {_points(widths['fixed'])}, new questions "
        f"{_points(widths['random'])}",
        *(f"  {need.text}" for need in needs),
    ]  # fmt: skip
    if c.fixed.method != T:
        said.append(f"  {ROUGH}")
    for claim in CLAIMS:
        name = "these questions" if claim == "fixed" else "new questions"
        said.append(
            f"  one more ({name}): seed {_points(more[claim]['seeds'])}, question "
            f"{_points(more[claim]['questions'])}, sample {_points(more[claim]['samples'])}"
        )
    if found is not None:
        said.append(
            f"  between two such conditions a difference of {100 * found:.1f} points is found with "
            "80 % power (Welch, two-sided 5 %)"
        )
    if difference:
        take = f"{seeds} seeds each" if seeds else "more seeds than can be had"
        said.append(f"  a difference of {100 * difference:g} points takes {take}")
    if prices:
        said.append(_split(best, answers, prices))
    return Told(
        condition=c.condition, judge=c.judge,
        half_width_fixed=_finite(widths["fixed"]), half_width_random=_finite(widths["random"]),
        needs=needs, one_more={k: {n: w for n, w in v.items() if w != float("inf")}
                               for k, v in more.items()},
        detectable=found, seeds_for_difference=seeds, best=best,
        best_answers=_finite(answers), lines=tuple(said),
    )  # fmt: skip


def _split(best: Allocation | None, answers: float | None, prices: Costs) -> str:
    if best is None:
        return f"  a budget of {prices.budget:g} does not pay for two seeds"
    design = best.design
    each = "" if answers is None or answers == float("inf") else (
        f"; the best number of answers of a seed is about {answers:.0f}, whatever the budget"
    )  # fmt: skip
    return (
        f"  best split of {prices.budget:g}: {design.seeds} seeds x {design.samples} samples of "
        f"each question, {_points(best.half_width)} (these questions){each}"
    )


def _points(width: float) -> str:
    return "none" if width == float("inf") else f"± {100 * width:.1f} points"


def _finite(value: float | None) -> float | None:
    return None if value is None or value == float("inf") else value
