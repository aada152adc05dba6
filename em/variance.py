"""How much of the variance of values is the seed's, the question's, the pairing's, the sampling's.

Unbiased moment estimators for crossed random factors, with any number of samples a pair and pairs
missing at random: half the mean squared difference of two pair means estimates the sum of the
components in which the two differ (Koch 1968, Technometrics 10:551; on whole tables the analysis of
variance). An estimate may be negative and is given as it is. Pure functions of arrays; knows
nothing of cells, stores or judges.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from em.crossed import Crossed, Floats
from em.record import Record

SEED, QUESTION, PAIR, SAMPLING = "seed", "question", "seed x question", "sampling"
ONE_MODEL = "none: all seeds are one model, and only its answers are drawn anew"
ROUNDING = 1e-12  # what is smaller, beside the squares of the values, is arithmetic's
ONE_LEVEL = "not identifiable: one level"
NO_REPEATS = "not identifiable: one sample for each seed and question, so it is in the pairing"


class Component(Record):
    """One source of variance. `estimate` is unbiased and may be negative; None: see `note`.

    `reported` is the estimate, but 0 where it is negative; `sd` its root. `low` and `high` bound
    the variance at 95 %.
    """

    name: str
    estimate: float | None
    reported: float | None
    sd: float | None
    low: float | None = None
    high: float | None = None
    levels: int
    note: str = ""


class PairClass(NamedTuple):
    """The pairs of observations that agree in exactly the labels `same`."""

    same: frozenset[str]
    num_pairs: float
    half_square: float
    """Half the mean squared difference, less what sampling adds to it."""


def estimates(table: Crossed) -> list[Component]:
    """Return the components of one condition; factors that move together are one, and named so.

    The variances are of a single value; their sum is that of a value of a new seed and question.
    Intervals are in em.component_intervals.
    """
    table = table.present()
    if table not in _KNOWN:  # each contrast of a condition asks again
        _KNOWN[table] = _estimates(table)
    return list(_KNOWN[table])


_KNOWN: WeakKeyDictionary[Crossed, list[Component]] = WeakKeyDictionary()


def _estimates(table: Crossed) -> list[Component]:
    labels, notes = _labels_and_notes(table)
    rows, columns = np.nonzero(table.filled)
    coded = {name: codes[rows] for name, codes in labels.items()}
    if table.units and QUESTION not in coded:
        coded[QUESTION] = columns
    classes = pair_classes(table.means[rows, columns], table.noise[rows, columns], coded)
    found = _solve(classes, list(coded))
    if len(rows):
        scale = ROUNDING * float(
            (table.means[rows, columns] ** 2 + table.noise[rows, columns]).max()
        )
        found = {name: 0.0 if abs(value) < scale else value for name, value in found.items()}
    said = [
        _told(name, None, 1, ONE_MODEL)
        if table.one_model
        else _component(name, found.get(name), codes)
        for name, codes in coded.items()
        if name != QUESTION
    ]
    said += notes
    said.append(_component(QUESTION, found.get(QUESTION), columns))
    said.append(_interaction(found.get(PAIR), table))
    said.append(_sampling(table))
    return said


def seed_variance(parts: Sequence[Component]) -> float:
    """Return the variance between seeds, over all their factors; what is not known counts as 0."""
    others = (QUESTION, PAIR, SAMPLING)
    return sum(part.reported or 0.0 for part in parts if part.name not in others)


def pair_classes(
    means: Floats, noise: Floats, labels: Mapping[str, NDArray[np.integer]]
) -> list[PairClass]:
    """Return all kinds of pairs of observations, by the labels in which they agree.

    `means` and `noise` (their sampling variances) have the shape (observations,), as has each of
    `labels`. The cost grows with observations x 2^labels, not with pairs.
    """
    names = list(labels)
    at_least: dict[frozenset[str], NDArray[np.float64]] = {}
    centred = means - means.mean() if len(means) else means
    for size in range(len(names) + 1):
        for chosen in itertools.combinations(names, size):
            at_least[frozenset(chosen)] = _pair_sums(centred, noise, [labels[n] for n in chosen])
    found = []
    # Those that agree in exactly these: inclusion and exclusion over those that agree in more.
    for same, sums in at_least.items():
        exact = sums.copy()
        for more, others in at_least.items():
            if same < more:
                exact += (-1.0) ** (len(more) - len(same)) * others
        pairs, squares, both = exact
        if pairs > 0.5:  # counts are whole numbers
            found.append(PairClass(same, float(pairs), float((squares - both) / (2 * pairs))))
    return found


def _pair_sums(
    means: Floats, noise: Floats, labels: Sequence[NDArray[np.integer]]
) -> NDArray[np.float64]:
    """Return number, squared differences and noise summed over pairs that agree in all labels."""
    if labels:
        _, group = np.unique(np.stack(labels), axis=1, return_inverse=True)
        group = group.ravel()
    else:
        group = np.zeros(len(means), dtype=np.int64)

    def by(weights: Floats | None) -> Floats:
        return np.bincount(group, weights=weights).astype(np.float64)

    num, total, squares, noises = by(None), by(means), by(means**2), by(noise)
    return np.array(
        [
            (num * (num - 1) / 2).sum(),
            (num * squares - total**2).sum(),
            ((num - 1) * noises).sum(),
        ]
    )


def _solve(classes: Sequence[PairClass], names: Sequence[str]) -> dict[str, float]:
    """Return the components by least squares over the kinds of pairs; those alone that are known.

    A pair differs in PAIR always: no two observations are of one seed and question.
    """
    unknown = [*names, PAIR]
    design = np.array([[*(name not in c.same for name in names), True] for c in classes], float)
    if not len(design):
        return {}
    weights = np.sqrt([c.num_pairs for c in classes])
    wanted = np.array([c.half_square for c in classes])
    found, *_ = np.linalg.lstsq(design * weights[:, None], wanted * weights, rcond=None)
    # A component is known where no other solution gives it another value.
    _, sizes, basis = np.linalg.svd(design)
    free = basis[int((sizes > 1e-9 * sizes.max()).sum()) :]
    known = np.abs(free).max(axis=0, initial=0.0) < 1e-9
    return {n: float(v) for n, v, ok in zip(unknown, found, known, strict=True) if ok}


def unit_labels(table: Crossed) -> dict[str, NDArray[np.integer]]:
    """Return what tells units apart: by each seed factor (those that move together are one), and
    by the seed, or what is left of it; a number for each unit."""
    return _labels_and_notes(table)[0]


def _labels_and_notes(table: Crossed) -> tuple[dict[str, NDArray[np.integer]], list[Component]]:
    """Return what tells units apart, by name, and components that cannot be known.

    Factors that move together are one label; what tells every unit apart is the seed's.
    """
    num = len(table.units)
    units = np.arange(num)
    moved: dict[tuple[int, ...], list[str]] = {}
    fixed: list[str] = []
    for name, levels in table.factors.items():
        _, codes = np.unique(np.asarray(levels, dtype=object).astype(str), return_inverse=True)
        first: dict[int, int] = {}
        pattern = tuple(first.setdefault(int(code), len(first)) for code in codes)
        if len(first) < 2 and num > 1:
            fixed.append(name)
        elif len(first) < num:
            moved.setdefault(pattern, []).append(name)
        else:
            moved.setdefault(tuple(range(num)), []).append(name)
    alone = moved.pop(tuple(range(num)), [])
    labels: dict[str, NDArray[np.integer]] = {
        _together(names): np.array(pattern) for pattern, names in moved.items()
    }
    rest = "rest of the seed" if labels else SEED
    labels[f"{rest} ({_together(alone)})" if alone else rest] = units
    return labels, [
        Component(name=name, estimate=None, reported=None, sd=None, levels=1, note=ONE_LEVEL)
        for name in fixed
    ]


def _together(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{' + '.join(names)}, aliased"


def _component(name: str, estimate: float | None, codes: NDArray[np.integer]) -> Component:
    levels = len(np.unique(codes))
    note = ""
    if levels < 2:
        estimate, note = None, ONE_LEVEL
    elif estimate is None and name == QUESTION:
        note = "not identifiable with one seed: it is not to be told from the pairing"
    elif estimate is None:
        note = "not identifiable: it moves with others in this design"
    return _told(name, estimate, levels, note)


def _told(name: str, estimate: float | None, levels: int, note: str = "") -> Component:
    if estimate is not None and not math.isfinite(estimate):
        estimate, note = None, note or "not identifiable in this design"
    reported = None if estimate is None else max(0.0, estimate)
    if estimate is not None and estimate < 0:
        note = f"the unbiased estimate is negative ({estimate:.2g}): reported as 0"
    return Component(
        name=name, estimate=estimate, reported=reported,
        sd=None if reported is None else math.sqrt(reported), levels=levels, note=note,
    )  # fmt: skip


def _interaction(estimate: float | None, table: Crossed) -> Component:
    levels = int(table.filled.sum())
    if min(table.filled.shape, default=0) < 2:
        return _told(PAIR, None, levels, "not identifiable: one seed or one question")
    if not (table.num > 1).any():
        return _told(PAIR, None, levels, NO_REPEATS)
    return _told(PAIR, estimate, levels)


def _sampling(table: Crossed) -> Component:
    """Return the mean variance between the samples of one seed and question, pairs alike."""
    known = np.isfinite(table.within)
    if not known.any():
        return _told(SAMPLING, None, 0, NO_REPEATS)
    return _told(SAMPLING, float(table.within[known].mean()), int(table.num[known].sum()))
