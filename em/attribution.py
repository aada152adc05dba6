"""How much of the rates' variance is the model's, the data's, the seed's, the question's.

Conditions are a whole grid of levels, such as models x variants. Its levels are chosen, not drawn:
what is told is the variance among these, and speaks of no others (fixed effects); seeds and
questions are drawn. Pure functions of counts; knows nothing of what a level is.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from em.additive import seed_means
from em.component_intervals import chi_squared_limits
from em.crossed import Crossed, Floats
from em.quantiles import ALIKE, LEVEL, noncentrality
from em.record import Record
from em.variance import PAIR, QUESTION, SAMPLING, SEED, estimates

TOGETHER = " x "
Levels = tuple[str, ...]
"""Of one condition, a level of each grid factor."""


class Grid(Record):
    """The factors that tell conditions apart, and each condition's level of each."""

    factors: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]


class Share(Record):
    """One source of variance, of one answer and of a cell's rate on these questions.

    Estimates are unbiased and may be negative; `low` and `high` bound that of a cell's rate at
    95 %. None: `note` says why.
    """

    name: str
    levels: int
    of_answer: float | None
    of_rate: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Attribution(Record):
    """The sources of variance over a grid of conditions, under one judge.

    A cell is one seed of one condition; its rate is over `num_questions` questions, which weigh
    alike.
    """

    factors: tuple[str, ...]
    conditions: tuple[str, ...]
    left_out: tuple[str, ...]
    num_questions: int
    parts: tuple[Share, ...]

    @property
    def shares_of_rate(self) -> dict[str, float]:
        """Each source's share of the variance of a cell's rate; negative estimates count as 0."""
        return _shares({part.name: part.of_rate for part in self.parts})

    @property
    def shares_of_answer(self) -> dict[str, float]:
        """The same of the variance of one answer."""
        return _shares({part.name: part.of_answer for part in self.parts})


def _shares(variances: Mapping[str, float | None]) -> dict[str, float]:
    reported = {name: max(0.0, value) for name, value in variances.items() if value is not None}
    whole = sum(reported.values())
    return {name: value / whole for name, value in reported.items()} if whole else {}


def attribution(tables: Mapping[str, Crossed], grid: Grid) -> Attribution | None:
    """Return whose the variance is over the conditions in `tables`, or None where none compares.

    Conditions are left out, and named, that have one seed, seeds that share levels, or no place in
    the whole grid that most of the others make.
    """
    usable = {
        name: table.present()
        for name, table in tables.items()
        if name in grid.levels and not table.reused and len(table.present().units) > 1
    }
    chosen = _whole_grid({name: grid.levels[name] for name in usable})
    if len(chosen) < 2:
        return None
    asked = set.intersection(*(set(usable[name].questions) for name in chosen))
    if not asked:
        return None
    used = [usable[name].of_questions(sorted(asked)) for name in chosen]
    means = [seed_means(table) for table in used]
    if any(len(table.units) < 2 for table in used) or np.isnan(np.concatenate(means)).any():
        return None
    levels = [grid.levels[name] for name in chosen]
    parts = [*_of_grid(means, levels, grid.factors), *_within(used, means)]
    return Attribution(
        factors=grid.factors,
        conditions=tuple(chosen),
        left_out=tuple(name for name in tables if name not in chosen),
        num_questions=len(asked),
        parts=tuple(parts),
    )


def _whole_grid(levels: Mapping[str, Levels]) -> list[str]:
    """Return the conditions of a grid without gaps: levels that lack most are taken out first."""
    left = dict(levels)
    while left:
        kinds = [sorted(set(column)) for column in zip(*left.values(), strict=True)]
        if len(set(left.values())) == math.prod(map(len, kinds)):
            return list(left)
        # Of each level, the share of its places that are filled.
        filled = {
            (axis, level): sum(one[axis] == level for one in left.values())
            / math.prod(len(other) for place, other in enumerate(kinds) if place != axis)
            for axis, names in enumerate(kinds)
            for level in names
        }
        axis, level = min(filled, key=lambda place: (filled[place], place))
        left = {name: one for name, one in left.items() if one[axis] != level}
    return []


def _of_grid(
    means: Sequence[Floats], levels: Sequence[Levels], factors: Sequence[str]
) -> list[Share]:
    """Return the variance among each factor's levels, and of their combinations beside it.

    The analysis of variance of the conditions' means with known errors (Searle, Casella and
    McCulloch 1992, Variance Components, ch. 4): E MS = theta (places / levels) + mean error.
    """
    rates = np.array([float(of.mean()) for of in means])
    error, of_error = _pooled([(float(of.var(ddof=1)) / len(of), len(of) - 1) for of in means])
    rest, num, found = float(((rates - rates.mean()) ** 2).sum()), len(rates), []
    left = num - 1
    for axis, name in enumerate(factors):
        kinds = sorted({one[axis] for one in levels})
        by = [rates[[one[axis] == kind for one in levels]].mean() for kind in kinds]
        squares = num / len(kinds) * float(((np.array(by) - rates.mean()) ** 2).sum())
        found.append(_share(name, len(kinds), squares, len(kinds) - 1, num / len(kinds), error,
                            of_error))  # fmt: skip
        rest, left = rest - squares, left - (len(kinds) - 1)
    if len(factors) > 1 and left:
        name = TOGETHER.join(factors) if len(factors) == 2 else "their combinations"
        found.append(_share(name, num, rest, left, 1.0, error, of_error))
    return found


def _pooled(variances: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the mean of variances and its degrees of freedom (Satterthwaite), from those of each.

    Conditions differ: controls hardly vary, so that those that do decide.
    """
    each = np.array([variance for variance, _ in variances])
    freedom = np.array([number for _, number in variances])
    spread = float((each**2 / freedom).sum())
    return float(each.mean()), float(each.sum()) ** 2 / spread if spread else math.inf


def _share(
    name: str, levels: int, squares: float, freedom: int, per: float, error: float, of_error: float
) -> Share:
    if not freedom:
        return Share(
            name=name, levels=levels, of_answer=None, of_rate=None,
            note="not identifiable: one level",
        )  # fmt: skip
    value = (squares / freedom - error) / per
    low = high = None
    note = ""
    if error > ALIKE**2:
        # theta = noncentrality error / (freedom per)
        ratio, size = squares / freedom / error, error / (freedom * per)
        low, high = (
            size * noncentrality(share, freedom, of_error, ratio)
            for share in (0.5 + LEVEL / 2, 0.5 - LEVEL / 2)
        )
    else:
        note = "no interval: the seeds of each condition are alike"
    return Share(
        name=name, levels=levels, of_answer=value, of_rate=value, low=low, high=high, note=note
    )


def _within(tables: Sequence[Crossed], means: Sequence[Floats]) -> list[Share]:
    """Return what is within a condition, as means over the conditions."""
    num = len(tables[0].questions)
    known = [{part.name: part for part in estimates(table)} for table in tables]

    def mean(name: str) -> float | None:
        values = [parts[name].estimate for parts in known]
        there = [value for value in values if value is not None]
        return float(np.mean(there)) if len(there) == len(values) else None

    seeds = [
        [part for part in parts.values() if part.name not in (QUESTION, PAIR, SAMPLING)]
        for parts in known
    ]
    by_seed = float(np.mean([sum(p.estimate or 0.0 for p in parts) for parts in seeds]))
    noise = float(np.mean([(t.noise.sum(axis=1) / t.filled.sum(axis=1) ** 2).mean()
                           for t in tables]))  # fmt: skip
    pairing, sampling = mean(PAIR), mean(SAMPLING)
    count = sum(len(table.units) for table in tables)
    whole, freedom = _pooled([(float(of.var(ddof=1)), len(of) - 1) for of in means])
    low, high = chi_squared_limits(whole, freedom, less=whole - by_seed) if whole else (None, None)
    return [
        Share(name=SEED, levels=count, of_answer=by_seed, of_rate=by_seed, low=low, high=high),
        Share(
            name=PAIR, levels=count * num, of_answer=pairing,
            of_rate=None if pairing is None else pairing / num,
        ),
        Share(
            name=QUESTION, levels=num, of_answer=mean(QUESTION), of_rate=0.0,
            note="of a rate none: all cells are asked these questions",
        ),
        Share(name=SAMPLING, levels=0, of_answer=sampling, of_rate=noise),
    ]  # fmt: skip
