"""How much of the rates' variance is the model's, the data's, the seed's, the question's.

Conditions are a whole grid of levels, such as models x variants. Its levels are chosen, not drawn:
what is told is the variance over these, and speaks of no others (fixed effects); seeds and
questions are drawn. So the parts add up to the variance of the rate of a cell of the grid. Pure
functions of counts; knows nothing of what a level is.
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
TOO_FEW = "fewer than two conditions have two comparable seeds and a place in one grid"
NOT_ASKED = "no question is asked of all conditions of the grid"
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
    alike. Without parts: `why`.
    """

    factors: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    left_out: tuple[str, ...]
    num_questions: int = 0
    parts: tuple[Share, ...] = ()
    why: str = ""

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
    """Return whose the variance is over the conditions in `tables`; None for fewer than two.

    Conditions are left out, and named, that have one seed, seeds that share levels or no question
    that compares them, or no place in the whole grid that most of the others make.
    """
    if len(tables) < 2:
        return None
    usable = {
        name: table.present()
        for name, table in tables.items()
        if name in grid.levels and _is_usable(table.present())
    }
    chosen = _whole_grid({name: grid.levels[name] for name in usable})
    left_out = tuple(name for name in tables if name not in chosen)
    nothing = Attribution(factors=grid.factors, left_out=left_out)
    if len(chosen) < 2:
        return nothing.model_copy(update={"why": TOO_FEW})
    asked = set.intersection(*(set(usable[name].questions) for name in chosen))
    used = [usable[name].of_questions(sorted(asked)) for name in chosen]
    if not asked or not all(map(_is_usable, used)):
        return nothing.model_copy(update={"why": NOT_ASKED})
    means = [seed_means(table) for table in used]
    levels = [grid.levels[name] for name in chosen]
    return Attribution(
        factors=grid.factors,
        conditions=tuple(chosen),
        left_out=left_out,
        num_questions=len(asked),
        parts=(*_of_grid(means, levels, grid.factors), *_within(used, means)),
    )


def _is_usable(table: Crossed) -> bool:
    enough = len(table.units) > 1 and not table.reused
    return enough and not bool(np.isnan(seed_means(table)).any())


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
        # Of those that lack as much, the one that stands last.
        first = {place: number for number, place in enumerate(_in_order(left))}
        axis, level = min(filled, key=lambda place: (filled[place], -first[place]))
        left = {name: one for name, one in left.items() if one[axis] != level}
    return []


def _in_order(levels: Mapping[str, Levels]) -> list[tuple[int, str]]:
    """Return every axis and level, in the order in which conditions have them."""
    return list(dict.fromkeys((a, one[a]) for one in levels.values() for a in range(len(one))))


def _of_grid(
    means: Sequence[Floats], levels: Sequence[Levels], factors: Sequence[str]
) -> list[Share]:
    """Return the variance over each factor's levels, and of their combinations beside it.

    An analysis of variance of the conditions' means, whose errors are known from their seeds: of a
    sum of squares with as many degrees of freedom, E SS = conditions variance + freedom mean error.
    """
    rates = np.array([float(of.mean()) for of in means])
    error, of_error = _pooled([(float(of.var(ddof=1)) / len(of), len(of) - 1) for of in means])
    rest, num, found = float(((rates - rates.mean()) ** 2).sum()), len(rates), []
    left = num - 1
    for axis, name in enumerate(factors):
        kinds = sorted({one[axis] for one in levels})
        by = [rates[[one[axis] == kind for one in levels]].mean() for kind in kinds]
        squares = num / len(kinds) * float(((np.array(by) - rates.mean()) ** 2).sum())
        found.append(_share(name, len(kinds), squares, len(kinds) - 1, num, error, of_error))
        rest, left = rest - squares, left - (len(kinds) - 1)
    if len(factors) > 1 and left:
        name = TOGETHER.join(factors) if len(factors) == 2 else "their combinations"
        found.append(_share(name, num, rest, left, num, error, of_error))
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
    name: str, levels: int, squares: float, freedom: int, num: int, error: float, of_error: float
) -> Share:
    if not freedom:
        return Share(
            name=name, levels=levels, of_answer=None, of_rate=None,
            note="not identifiable: one level",
        )  # fmt: skip
    value = (squares - freedom * error) / num
    low = high = None
    note = ""
    if error > ALIKE**2:
        # variance = noncentrality error / conditions
        ratio, size = squares / freedom / error, error / num
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
