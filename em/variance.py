"""What many cells say together: the mean over seeds and an interval for it.

Pure functions of numbers; knows nothing of cells, stores or how a rate came about.
"""

import math
from collections.abc import Sequence

from em.record import Record


class SeedSummary(Record):
    """Rates of one condition over its seeds. The interval covers new seeds on these questions."""

    num_seeds: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    level: float = 0.95
    covers: str


def summarise_seeds(rates: Sequence[float], *, level: float = 0.95) -> SeedSummary:
    """Return mean, SD (n - 1) and the t interval over seeds of `rates`, each in [0, 1].

    The interval is for the mean over new seeds with the questions fixed, cut to [0, 1]. One seed
    has no spread: SD and interval are None. Where all rates are equal the t interval has no width
    and would claim certainty, so it is None too.
    """
    n = len(rates)
    mean = math.fsum(rates) / n if n else None
    covers = f"t interval over {n} seeds, these questions fixed, nominal {level:.0%}"
    if n < 2 or mean is None:
        return SeedSummary(
            num_seeds=n, mean=mean, sd=None, low=None, high=None, level=level,
            covers="fewer than two seeds with a rate: no spread, no interval",
        )  # fmt: skip
    # Not `sd == 0`: the mean of equal rates may be off by its last bit.
    if min(rates) == max(rates):
        return SeedSummary(
            num_seeds=n, mean=rates[0], sd=0.0, low=None, high=None, level=level,
            covers="all seeds equal: a t interval has no width and says nothing here",
        )  # fmt: skip
    sd = math.sqrt(math.fsum((rate - mean) ** 2 for rate in rates) / (n - 1))
    from scipy.stats import t  # half a second, and only reports need it

    half = float(t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n)
    return SeedSummary(
        num_seeds=n, mean=mean, sd=sd, low=max(0.0, mean - half), high=min(1.0, mean + half),
        level=level, covers=covers,
    )  # fmt: skip


def exact_bounds(hits: int, answers: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share: `hits` of `answers` independent ones.

    Raises ValueError without answers.
    """
    from scipy.stats import binomtest

    if answers < 1:
        raise ValueError(f"a share of {answers} answers has no interval")
    found = binomtest(hits, answers).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)
