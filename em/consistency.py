"""In how many seeds an effect is present, how sure that is, and what it says of the next seed.

Pure functions of counts; knows nothing of what the effect is.
"""

from collections.abc import Sequence

from em.contrasts import holm
from em.intervals import exact_bounds, exact_bounds_of
from em.record import Record

FLOOR = 0.01  # a rate that nobody would call an effect; the published controls lie below it
SURE = 0.05


class SeedShown(Record):
    """One seed: its rate with exact bounds, and whether it is above the floor beyond chance."""

    seed: str
    hits: int
    answers: int
    low: float
    high: float
    p: float
    shown: bool


class Consistency(Record):
    """`showing` seeds of `seeds` have a rate above `floor`, by exact tests held together (Holm).

    `chance` is that of a new seed to show it ((k + 1/2) / (n + 1), Jeffreys), with exact bounds.
    """

    floor: float
    seeds: int
    showing: int
    chance: float
    low: float
    high: float
    by_seed: tuple[SeedShown, ...]


def consistency(
    seeds: Sequence[str], hits: Sequence[int], answers: Sequence[int], *, floor: float = FLOOR
) -> Consistency | None:
    """Return how consistent the effect is; None without a seed that has answers."""
    import numpy as np
    from scipy.special import bdtrc

    there = [(s, h, n) for s, h, n in zip(seeds, hits, answers, strict=True) if n]
    if not there:
        return None
    names, counts, totals = zip(*there, strict=True)
    # The chance of as many hits or more at the floor.
    tests = np.where(np.array(counts) > 0, bdtrc(np.array(counts) - 1.0, totals, floor), 1.0)
    shown = [p <= SURE for p in holm(list(tests))]
    lows, highs = exact_bounds_of(counts, totals)
    by_seed = tuple(
        SeedShown(seed=s, hits=h, answers=n, low=low, high=high, p=float(p), shown=bool(is_shown))
        for s, h, n, low, high, p, is_shown in zip(
            names, counts, totals, lows, highs, tests, shown, strict=True
        )
    )
    showing = sum(one.shown for one in by_seed)
    low, high = exact_bounds(showing, len(by_seed))  # with none of three the upper one is 0.71
    return Consistency(
        floor=floor, seeds=len(by_seed), showing=showing,
        chance=(showing + 0.5) / (len(by_seed) + 1), low=low, high=high, by_seed=by_seed,
    )  # fmt: skip
