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

import numpy as np
from numpy.typing import NDArray

from em.crossed import Crossed, Floats
from em.quantiles import chi2_quantile, f_quantile, t_quantile
from em.record import Record

SEED, QUESTION, PAIR, SAMPLING = "seed", "question", "seed x question", "sampling"
ONE_LEVEL = "not identifiable: one level"
NO_REPEATS = "not identifiable: one sample for each seed and question, so it is in the pairing"
LEVEL = 0.95
MOST_OF_A_SHARE = 0.25  # no variance of values between 0 and 1 is larger


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


def components(table: Crossed) -> list[Component]:
    """Return the components of one condition; factors that move together are one, and named so.

    The variances are of a single value; their sum is that of a value of a new seed and question.
    """
    table = table.present()
    return _with_intervals(estimates(table), table)


def estimates(table: Crossed) -> list[Component]:
    """Return the same without intervals, which take longer."""
    table = table.present()
    labels, notes = _labels(table)
    rows, columns = np.nonzero(table.filled)
    coded = {name: codes[rows] for name, codes in labels.items()}
    if table.units and QUESTION not in coded:
        coded[QUESTION] = columns
    classes = pair_classes(table.means[rows, columns], table.noise[rows, columns], coded)
    found = _solve(classes, list(coded))
    said = [_component(name, found.get(name), coded[name]) for name in coded if name != QUESTION]
    said += notes
    said.append(_component(QUESTION, found.get(QUESTION), columns))
    said.append(_interaction(found.get(PAIR), table))
    said.append(_sampling(table))
    return said


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


def _labels(table: Crossed) -> tuple[dict[str, NDArray[np.integer]], list[Component]]:
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


# --- intervals ----------------------------------------------------------------------------------


def _with_intervals(found: list[Component], table: Crossed) -> list[Component]:
    by_name = {component.name: component for component in found}
    num_units, num_questions = table.filled.shape
    pair = by_name[PAIR].estimate
    noise = float(table.noise[table.filled].mean()) if table.filled.any() else math.nan
    rest = (pair or 0.0) + (0.0 if math.isnan(noise) else noise)
    known = min(num_units, num_questions) > 1
    freedom = max(1, int(table.filled.sum()) - num_units - num_questions + 1) if known else 0
    # How many questions a seed's mean is of, and seeds a question's, where some are missing.
    questions, seeds = _harmonic(table.filled.sum(axis=1)), _harmonic(table.filled.sum(axis=0))
    done = []
    for component in found:
        low = high = None
        value = component.estimate
        if value is None or not known:
            pass
        elif component.name == SAMPLING:
            low, high = _jackknifed(table)
        elif component.name == PAIR:
            low, high = _chi_squared(rest, freedom, less=rest - value)
        elif component.name == QUESTION:
            low, high = _difference(seeds * value + rest, num_questions - 1, rest, freedom, seeds)
        elif component.levels == num_units:
            low, high = _difference(
                questions * value + rest, num_units - 1, rest, freedom, questions
            )
        else:  # a crossed factor: the rest of its levels' means is taken as known
            others = _rest_of_levels(component, found, table)
            low, high = _chi_squared(value + others, component.levels - 1, less=others)
        if table.binary and low is not None and high is not None:
            low, high = min(low, MOST_OF_A_SHARE), min(high, MOST_OF_A_SHARE)
        done.append(component.model_copy(update={"low": low, "high": high}))
    return done


def _harmonic(counts: NDArray[np.integer]) -> float:
    positive = counts[counts > 0]
    return float(len(positive) / (1.0 / positive).sum()) if len(positive) else 1.0


def _rest_of_levels(component: Component, found: Sequence[Component], table: Crossed) -> float:
    """Return the variance that the mean of one level of a factor has from units below it."""
    units = next((c for c in found if c.levels == len(table.units) and c.name != QUESTION), None)
    below = (units.reported or 0.0) if units is not None else 0.0
    return below * component.levels / len(table.units)


def _chi_squared(mean_square: float, freedom: int, *, less: float) -> tuple[float, float]:
    """Return the interval of a mean square's expectation, less a part that is taken as known."""
    tails = (chi2_quantile(share, freedom) for share in (0.5 + LEVEL / 2, 0.5 - LEVEL / 2))
    low, high = (max(0.0, mean_square * freedom / tail - less) for tail in tails)
    return low, high


def _difference(
    first: float, first_freedom: int, second: float, second_freedom: int, per: float
) -> tuple[float, float]:
    """Return the interval of (E first - E second) / per for two mean squares.

    Ting, Burdick, Graybill, Jeyaratnam and Lu (1990), J. Stat. Comput. Simul. 35:135; it takes
    effects as normal.
    """
    tail = 0.5 - LEVEL / 2

    def over(freedom: int, share: float) -> float:
        return chi2_quantile(share, freedom) / freedom

    def side(share: float) -> float:
        """The half-width below (share 1 - tail) or above (share tail) the difference."""
        mine, its = over(first_freedom, share), over(second_freedom, 1 - share)
        ratio = f_quantile(share, first_freedom, second_freedom)
        g, h = abs(1 - 1 / mine), abs(1 / its - 1)
        mixed = ((ratio - 1) ** 2 - g**2 * ratio**2 - h**2) / ratio
        squared = g**2 * first**2 + h**2 * second**2 + mixed * first * second
        return math.sqrt(max(0.0, squared))

    difference = first - second
    low, high = difference - side(1 - tail), difference + side(tail)
    return max(0.0, low / per), max(0.0, high / per)


def _jackknifed(table: Crossed) -> tuple[float | None, float | None]:
    """Return the t interval of the mean sampling variance over questions: they differ the most."""
    known = np.isfinite(table.within)
    columns = known.any(axis=0)
    if columns.sum() < 2:
        return None, None
    by_question = np.nanmean(np.where(known, table.within, np.nan)[:, columns], axis=0)
    half = (
        float(t_quantile(0.5 + LEVEL / 2, len(by_question) - 1))
        * float(by_question.std(ddof=1))
        / math.sqrt(len(by_question))
    )
    middle = float(table.within[known].mean())
    return max(0.0, middle - half), middle + half
