"""The analysis of one table of values: every condition's rates, intervals, components and power.

All of it comes from one grouping of one table, and every number says what it is about. Knows
nothing of how a value came about, of sweeps or of how the numbers are shown.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from em.attribution import Attribution, Grid, attribution
from em.condition import Asked, ConditionAnalysis, analyse_condition
from em.contrasts import Contrast, adjusted, contrast
from em.crossed import Crossed
from em.grouping import Known, grouped
from em.quantiles import t_quantile
from em.record import Record
from em.seed_rates import Weights

ALL_PAIRS = 12  # conditions of which all pairs are compared


class Pooled(Record):
    """The mean of a component over conditions, with a t interval over them."""

    name: str
    variance: float
    low: float | None
    high: float | None
    conditions: int


class Analysis(Record):
    """What one table says."""

    what: str
    weights: Weights
    num_rows: int
    num_scored: int
    num_unscored: int
    notes: tuple[str, ...]
    conditions: tuple[ConditionAnalysis, ...]
    pooled: dict[str, tuple[Pooled, ...]] = Field(description="by judge")
    contrasts: dict[str, tuple[Contrast, ...]] = Field(description="by judge")
    judges: tuple[Contrast, ...] = Field(description="judges of one condition, compared")
    attribution: dict[str, Attribution] = Field(
        default_factory=dict, description="by judge, where conditions make a grid"
    )


class Pair(NamedTuple):
    """Two conditions to compare, and whether their seeds are really shared."""

    first: str
    second: str
    shared: bool


def analyse(
    table: pa.Table,
    *,
    what: str,
    asked: Asked | None = None,
    pairs: Sequence[Pair] | None = None,
    known: Known | None = None,
    grid: Grid | None = None,
) -> Analysis:
    """Return the analysis of a table with the columns of em.grouping; a null value is unscored.

    `pairs` are the conditions to compare; None: all pairs of few conditions, else each with the
    first. `grid` says which factors tell conditions apart; None: they are one factor's levels.
    Raises ValueError for a table that lacks a column.
    """
    asked = asked or Asked()
    groups = grouped(table, known)
    found = [analyse_condition(group, asked) for group in groups]
    tables = {(group.judge, group.condition): group.by_seed for group in groups}
    judges = list(dict.fromkeys(group.judge for group in groups))
    notes: list[str] = []
    names = list(dict.fromkeys(condition for _, condition in tables))
    grid = grid or Grid(factors=("condition",), levels={name: (name,) for name in names})
    return Analysis(
        what=what,
        weights=asked.weights,
        num_rows=table.num_rows,
        num_scored=sum(c.num_scored for c in found),
        num_unscored=sum(c.num_unscored for c in found),
        conditions=tuple(found),
        pooled={judge: _pooled([c for c in found if c.judge == judge]) for judge in judges},
        contrasts={judge: _contrasts(judge, tables, pairs, notes) for judge in judges},
        judges=tuple(adjusted(_between_judges(tables))),
        attribution={
            judge: whose
            for judge in judges
            if (whose := attribution(_of_judge(judge, tables), grid)) is not None
        },
        notes=(*dict.fromkeys(notes), *_said(found)),
    )


def compared(
    first: pa.Table, second: pa.Table, names: tuple[str, str], known: Known | None = None
) -> list[Contrast]:
    """Return how the same models differ between two tables, such as two forms of one question.

    Tables and what is `known` as those of `analyse`; of each condition and judge that both have,
    paired by question and seed. No p is held against others yet (see em.contrasts.adjusted).
    """
    tables = [
        {(group.condition, group.judge): group.by_seed for group in grouped(table, known)}
        for table in (first, second)
    ]
    return [
        contrast(
            tables[0][place], tables[1][place], pairing="models",
            names=(f"{_place(*place)}, {names[0]}", f"{_place(*place)}, {names[1]}"),
        )
        for place in tables[0]
        if place in tables[1]
    ]  # fmt: skip


def _contrasts(
    judge: str,
    tables: Mapping[tuple[str, str], Crossed],
    pairs: Sequence[Pair] | None,
    notes: list[str],
) -> tuple[Contrast, ...]:
    mine = _of_judge(judge, tables)
    chosen = _pairs(list(mine), notes) if pairs is None else pairs
    found = [
        contrast(
            mine[pair.first],
            mine[pair.second],
            names=(pair.first, pair.second),
            pairing="seeds" if pair.shared else "none",
        )
        for pair in chosen
        if pair.first in mine and pair.second in mine
    ]
    return tuple(adjusted(found))


def _of_judge(judge: str, tables: Mapping[tuple[str, str], Crossed]) -> dict[str, Crossed]:
    return {condition: table for (owner, condition), table in tables.items() if owner == judge}


def _pairs(conditions: Sequence[str], notes: list[str]) -> list[Pair]:
    if len(conditions) <= ALL_PAIRS:
        return [Pair(a, b, shared=False) for a, b in itertools.combinations(conditions, 2)]
    notes.append(
        f"{len(conditions)} conditions are too many to compare all pairs of: each is compared with "
        f"the first, {conditions[0]}"
    )
    return [Pair(other, conditions[0], shared=False) for other in conditions[1:]]


def _between_judges(tables: Mapping[tuple[str, str], Crossed]) -> list[Contrast]:
    """Return judges compared on one condition: they judge the same answers of the same seeds."""
    by_condition: dict[str, list[str]] = {}
    for judge, condition in tables:
        by_condition.setdefault(condition, []).append(judge)
    return [
        contrast(
            tables[a, condition], tables[b, condition],
            names=(f"{condition}, {a}", f"{condition}, {b}"), pairing="models",
        )
        for condition, judges in by_condition.items()
        for a, b in itertools.combinations(judges, 2)
    ]  # fmt: skip


def _pooled(found: Sequence[ConditionAnalysis]) -> tuple[Pooled, ...]:
    """Return each component's mean over conditions, in which negative estimates count as such."""
    values: dict[str, list[float]] = {}
    for condition in found:
        for part in condition.components:
            if part.estimate is not None:
                values.setdefault(part.name, []).append(part.estimate)
    pooled = []
    for name, estimates in values.items():
        mean, num = float(np.mean(estimates)), len(estimates)
        half = None
        if num > 2:
            spread = float(np.std(estimates, ddof=1)) / float(np.sqrt(num))
            half = float(t_quantile(0.975, num - 1)) * spread
        pooled.append(
            Pooled(
                name=name, variance=mean, low=None if half is None else max(0.0, mean - half),
                high=None if half is None else mean + half, conditions=num,
            )
        )  # fmt: skip
    return tuple(pooled)


def _place(condition: str, judge: str) -> str:
    return f"{condition}, judged by {judge}" if judge else condition


def _said(found: Sequence[ConditionAnalysis]) -> list[str]:
    """Return what a reader must know first: what is missing, and what cannot be told."""
    said = []
    for c in found:
        name = _place(c.condition, c.judge)
        if not c.num_scored:
            said.append(f"{name}: none of {c.num_rows} rows has a scored value: no rate (no zero)")
            continue
        if c.num_unscored:
            said.append(f"{name}: {c.num_unscored} of {c.num_rows} rows are unscored, left out")
        if c.num_left_out:
            said.append(
                f"{name}: {c.num_left_out} scored rows are of pairs of seed and question that have "
                "fewer than the definition asks for, left out"
            )
        if c.num_missing_pairs:
            said.append(
                f"{name}: {c.num_missing_pairs} of {c.num_pairs} pairs of seed and question have "
                "no scored value; means over questions come from an additive model there"
            )
        if c.num_seeds < 2:
            said.append(f"{name}: one seed: nothing is known of other seeds")
        if c.num_questions < 2:
            said.append(f"{name}: one question: nothing is known of other questions")
    return said
