"""One condition under one judge: its rates, intervals, components, consistency and power.

Pure functions of its counts; knows nothing of other conditions.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from em.additive import seed_means
from em.component_intervals import components
from em.consistency import FLOOR, Consistency, consistency
from em.coverage import with_coverage_over_questions
from em.crossed import Crossed
from em.grouping import Group
from em.intervals import (
    Interval,
    T,
    exact_bounds,
    random_questions,
)
from em.mixed import LogitComponent, logit_components
from em.power import Claim, Design, Needed, Variances, half_width, needed
from em.record import Record
from em.seed_rates import Weights, by_seed, fixed_interval
from em.variance import PAIR, QUESTION, SAMPLING, Component, seed_variance

HALF_WIDTH = 0.03  # that the power curve speaks of
CURVE = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50)
CLAIMS: tuple[Claim, ...] = ("fixed", "random")


class Bounds(Record):
    """Exact bounds with what they are about."""

    low: float
    high: float
    about: str


class SeedValue(Record):
    """One seed: its mean, and of how many values."""

    seed: str
    mean: float
    num: int


class Cell(Record):
    """One question of one condition, over all its seeds."""

    question: str
    mean: float
    num: int


class Point(Record):
    """Expected half-widths of a design; None where there is none."""

    seeds: int
    fixed: float | None
    random: float | None


class ConditionAnalysis(Record):
    """One condition under one judge. Means are of scored values alone, None where there is none."""

    condition: str
    judge: str
    num_rows: int
    num_scored: int
    num_unscored: int
    num_left_out: int = Field(default=0, description="scored, of pairs with too few of them")
    num_seeds: int
    num_questions: int
    num_pairs: int = Field(description="of a seed (or a cell of it) and a question that were asked")
    num_missing_pairs: int = Field(description="those without a scored value")
    binary: bool
    by_answers: float | None
    by_questions: float | None
    seeds: tuple[SeedValue, ...]
    questions: tuple[Cell, ...]
    fixed: Interval
    random: Interval
    exact: tuple[Bounds, ...] = ()
    components: tuple[Component, ...]
    logit: tuple[LogitComponent, ...] = Field(default=(), description="where it was asked for")
    no_logit: str = Field(default="", description="why there is none, where it was asked for")
    consistency: Consistency | None
    needs: tuple[Needed, ...]
    curve: tuple[Point, ...]


class Asked(Record):
    """How conditions are analysed: the weighting, and what is asked of it."""

    weights: Weights = "answers"
    floor: float = Field(default=FLOOR, description="a rate above which a seed shows the effect")
    simulate: bool = Field(default=True, description="give intervals their simulated coverage")
    logit: bool = Field(default=False, description="components on the logit scale, too")
    wanted: float = Field(default=HALF_WIDTH, description="half-width that `needs` speaks of")


def analyse_condition(group: Group, asked: Asked) -> ConditionAnalysis:
    """Return all that one condition says."""
    table = group.counts.present()
    parts = components(group.counts)
    seeds, totals, nums = by_seed(table, group.seed_of, asked.weights)
    fixed = fixed_interval(group, parts, asked.weights, simulate=asked.simulate)
    over = random_questions(group.by_seed)
    if asked.simulate and table.binary and table.num_values:
        over = with_coverage_over_questions(over, group.by_seed, parts)
    num = table.num_values
    variances = variances_of(parts)
    pairs = int(table.filled.sum())
    design = _design(len(seeds), len(table.questions), pairs, num)
    logit, no_logit = _logit(table) if asked.logit else ((), "")
    return ConditionAnalysis(
        condition=group.condition,
        judge=group.judge,
        num_rows=group.num_rows,
        num_scored=num,
        num_unscored=group.num_rows - num - group.num_left_out,
        num_left_out=group.num_left_out,
        num_seeds=len(seeds),
        num_questions=len(table.questions),
        num_pairs=group.counts.filled.size,
        num_missing_pairs=group.counts.filled.size - pairs,
        binary=table.binary,
        by_answers=float(table.total.sum()) / num if num else None,
        by_questions=_finite(float(seed_means(table).mean())) if num else None,
        seeds=tuple(
            SeedValue(seed=seed, mean=float(t / n), num=int(n))
            for seed, t, n in zip(seeds, totals, nums, strict=True)
        ),
        questions=_cells(table),
        fixed=fixed,
        random=over,
        exact=_exact(table, len(seeds)),
        components=tuple(parts),
        logit=logit,
        no_logit=no_logit,
        consistency=_consistency(table, group.seed_of, asked.floor),
        needs=tuple(needed(variances, design, asked.wanted, claim) for claim in CLAIMS)
        if variances and table.binary and fixed.method == T
        else (),
        curve=_curve(variances, design) if variances and fixed.method == T else (),
    )


def _logit(table: Crossed) -> tuple[tuple[LogitComponent, ...], str]:
    try:
        return tuple(logit_components(table)), ""
    except ValueError as error:
        return (), str(error)


def design_of(condition: ConditionAnalysis) -> Design:
    """Return how many seeds, questions and samples an analysed condition has."""
    pairs = condition.num_pairs - condition.num_missing_pairs
    return _design(condition.num_seeds, condition.num_questions, pairs, condition.num_scored)


def _design(seeds: int, questions: int, pairs: int, num: int) -> Design:
    return Design(
        seeds=seeds, questions=max(1, questions), samples=max(1, round(num / max(1, pairs)))
    )


def _finite(value: float) -> float | None:
    """Return a number, or None for what is none."""
    return value if np.isfinite(value) else None


def _cells(table: Crossed) -> tuple[Cell, ...]:
    totals, nums = table.total.sum(axis=0), table.num.sum(axis=0)
    return tuple(
        Cell(question=question, mean=float(total / num), num=int(num))
        for question, total, num in zip(table.questions, totals, nums, strict=True)
    )


def _consistency(table: Crossed, seed_of: Mapping[str, str], floor: float) -> Consistency | None:
    if not table.binary or not table.num_values or table.one_model:
        return None
    seeds, hits, nums = by_seed(table, seed_of, "answers")
    return consistency(seeds, [round(h) for h in hits], [int(n) for n in nums], floor=floor)


def variances_of(parts: Sequence[Component]) -> Variances | None:
    """Return what power needs to know; None where sampling and pairing cannot be told apart."""
    known = {part.name: part.reported for part in parts}
    if known.get(SAMPLING) is None or known.get(PAIR) is None:
        return None
    return Variances(
        seed=seed_variance(parts), question=known.get(QUESTION) or 0.0, pairing=known[PAIR] or 0.0,
        sampling=known[SAMPLING] or 0.0,
    )  # fmt: skip


def _curve(variances: Variances, design: Design) -> tuple[Point, ...]:
    points = sorted({*CURVE, design.seeds} - {0, 1})

    def width(seeds: int, claim: Literal["fixed", "random"]) -> float | None:
        found = half_width(variances, design.model_copy(update={"seeds": seeds}), claim)
        return found if np.isfinite(found) else None

    return tuple(Point(seeds=n, fixed=width(n, "fixed"), random=width(n, "random")) for n in points)


def _these(num_seeds: int) -> str:
    return "this one model" if num_seeds == 1 else f"these {num_seeds} seeds' models"


def _exact(table: Crossed, num_seeds: int) -> tuple[Bounds, ...]:
    """Return exact bounds where all values are 0, or all are 1: others say little there."""
    if not table.binary or not table.num_values or table.one_model:
        return ()
    hits, num = int(table.total.sum()), table.num_values
    if hits not in (0, num) and num_seeds > 1:
        return ()
    low, high = exact_bounds(hits, num)
    said = f"{hits} of {num} answers of {_these(num_seeds)}"
    answers = Bounds(low=low, high=high, about=f"the next answer of {_these(num_seeds)} ({said})")
    if hits not in (0, num):
        return (answers,)
    showing = 0 if hits == 0 else num_seeds
    new = exact_bounds(showing, num_seeds)
    return (
        answers,
        Bounds(
            low=new[0], high=new[1],
            about=f"the chance that a new seed shows it ({showing} of {num_seeds} seeds do)",
        ),
    )  # fmt: skip
