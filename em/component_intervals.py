"""Components of variance with an interval each.

Effects are taken as normal. Those of shares are not: seeds that crowd at 0 or 1 are taken from a
beta distribution, and of questions each is left out in turn. Knows nothing of how a component is
estimated (see em.variance).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from em.additive import seed_means
from em.crossed import Crossed, Floats
from em.hierarchical import variance_limits
from em.intervals import mean_squares, near_normal
from em.quantiles import LEVEL, chi2_quantile, f_quantile, t_quantile
from em.variance import PAIR, QUESTION, SAMPLING, Component, estimates

LEAST_QUESTIONS = 4  # of which each is left out in turn
RARE = 0.1  # a share nearer to 0 or 1
MOST_OF_A_SHARE = 0.25  # no variance of values between 0 and 1 is larger


def components(table: Crossed) -> list[Component]:
    """Return the components of one condition, as em.variance.estimates, with 95 % intervals."""
    table = table.present()
    return _with_intervals(estimates(table), table)


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
    left_out = _leaving_out_questions(table)
    done = []
    for component in found:
        low = high = None
        value = component.estimate
        if value is None or not known:
            pass
        elif component.name == SAMPLING:
            low, high = _jackknifed(table)
        elif component.name in left_out and value > 0:
            low, high = _log_jackknifed(value, left_out[component.name])
        elif component.name in (PAIR, QUESTION) and _is_rare(table):
            pass  # it hangs on single questions, and nothing that was tried holds it
        elif component.name == PAIR:
            low, high = chi_squared_limits(rest, freedom, less=rest - value)
        elif component.name == QUESTION:
            low, high = _difference(seeds * value + rest, num_questions - 1, rest, freedom, seeds)
        elif component.levels == num_units and _is_skewed(table):
            low, high = _of_skewed_seeds(table, pair or 0.0)
        elif component.levels == num_units:
            low, high = _difference(
                questions * value + rest, num_units - 1, rest, freedom, questions
            )
        else:  # a crossed factor: the rest of its levels' means is taken as known
            others = _rest_of_levels(component, found, table)
            low, high = chi_squared_limits(value + others, component.levels - 1, less=others)
        if low == high:  # no value differs from another: nothing tells how much they may
            low = high = None
        if table.binary and low is not None and high is not None:
            low, high = min(low, MOST_OF_A_SHARE), min(high, MOST_OF_A_SHARE)
        done.append(component.model_copy(update={"low": low, "high": high}))
    return done


def _is_rare(table: Crossed) -> bool:
    """Whether shares lie near 0 or 1 as a whole."""
    mean = float(table.total.sum()) / max(1, table.num_values)
    return table.binary and min(mean, 1 - mean) < RARE


def _leaving_out_questions(table: Crossed) -> dict[str, Floats]:
    """Return estimates without each question, where all of them are above 0; of whole tables."""
    num_units, num = table.filled.shape
    if not (table.binary and table.filled.all() and num_units > 1 and num >= LEAST_QUESTIONS):
        return {}
    kept = np.array([np.delete(np.arange(num), place) for place in range(num)])
    means = np.moveaxis(table.means[:, kept], 0, 1)  # (left out, units, questions)
    _, by_question, pairing = mean_squares(means)
    noise = table.noise[:, kept].mean(axis=(0, 2))
    found = {QUESTION: (by_question - pairing) / num_units, PAIR: pairing - noise}
    return {name: values for name, values in found.items() if (values > 0).all()}


def _log_jackknifed(whole: float, left_out: Floats) -> tuple[float, float]:
    """Return the jackknife's t interval on the scale of logarithms.

    Arvesen (1969), Ann. Math. Stat. 40:2076: variances that are not of normal effects.
    """
    num = len(left_out)
    pseudo = num * math.log(whole) - (num - 1) * np.log(left_out)
    half = float(t_quantile(0.5 + LEVEL / 2, num - 1)) * float(pseudo.std(ddof=1)) / math.sqrt(num)
    middle = float(pseudo.mean())
    return math.exp(middle - half), math.exp(min(middle + half, 0.0))


def _is_skewed(table: Crossed) -> bool:
    """Whether shares crowd at 0 or 1: an interval that takes seeds as normal covers half there."""
    plain = table.binary and not table.factors and not table.one_model
    return plain and not bool(near_normal(seed_means(table)[None, :])[0])


def _of_skewed_seeds(table: Crossed, pair: float) -> tuple[float | None, float | None]:
    """Return the bounds of seeds from a beta distribution, less their pairing with questions."""
    rates, answers = seed_means(table), table.effective
    if np.isnan(rates).any():
        return None, None
    low, high = variance_limits(rates * answers, answers)
    return max(0.0, low - max(0.0, pair) / len(table.questions)), high


def _harmonic(counts: NDArray[np.integer]) -> float:
    positive = counts[counts > 0]
    return float(len(positive) / (1.0 / positive).sum()) if len(positive) else 1.0


def _rest_of_levels(component: Component, found: Sequence[Component], table: Crossed) -> float:
    """Return the variance that the mean of one level of a factor has from units below it."""
    units = next((c for c in found if c.levels == len(table.units) and c.name != QUESTION), None)
    below = (units.reported or 0.0) if units is not None else 0.0
    return below * component.levels / len(table.units)


def chi_squared_limits(mean_square: float, freedom: float, *, less: float) -> tuple[float, float]:
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
