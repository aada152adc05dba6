"""How often the interval of a difference holds the truth, and its test finds what is not there.

    python tests/benchmarks/differences.py [TABLES]        default: 2,000 for each line

Two conditions of as many seeds; rates of seeds are beta-distributed with the mean and SD of each
side (SD 0: all seeds have one rate; none: an untuned model), 8 questions x 50 answers. `held` is
the share of 95 % intervals that hold the true difference, `found` the share of p below 0.05:
without a difference those are errors. `equal` is the share of margins of equivalence that are
smaller than the true difference. Welch's t is beside it.
"""

import sys
from typing import Any

import numpy as np
from scipy import stats

from em.contrasts import contrast
from em.crossed import Crossed

QUESTIONS, SAMPLES = 8, 50
Rates = tuple[float, float | None]
SIDES: tuple[tuple[Rates, Rates], ...] = (  # mean and SD of either side
    ((0.20, 0.12), (0.002, 0.0)),
    ((0.20, 0.12), (0.20, 0.12)),
    ((0.05, 0.08), (0.05, 0.08)),
    ((0.05, 0.04), (0.01, 0.01)),
    ((0.02, 0.04), (0.02, 0.04)),
    ((0.02, 0.04), (0.002, 0.0)),
    ((0.005, 0.01), (0.005, 0.01)),
    ((0.005, 0.01), (0.0005, 0.0)),
    ((0.40, 0.05), (0.30, 0.05)),
    ((0.20, 0.12), (0.002, None)),
    ((0.05, 0.04), (0.01, None)),
    ((0.02, 0.04), (0.002, None)),
    ((0.005, 0.01), (0.0005, None)),
)


def drawn(mean: float, spread: float | None, seeds: int, rng: np.random.Generator) -> Crossed:
    """Return one side's hits."""
    size = mean * (1 - mean) / spread**2 - 1 if spread else 0.0
    rates = rng.beta(mean * size, (1 - mean) * size, seeds) if spread else np.full(seeds, mean)
    hits = rng.binomial(SAMPLES, np.broadcast_to(rates[:, None], (seeds, QUESTIONS))).astype(float)
    return Crossed(
        units=tuple(map(str, range(seeds))),
        questions=tuple(map(str, range(QUESTIONS))),
        num=np.full(hits.shape, SAMPLES),
        total=hits,
        squares=hits,
        one_model=spread is None,
    )


def line(first: Rates, second: Rates, seeds: int, tables: int) -> str:
    """Return the line of one design."""
    rng, true = np.random.default_rng(seeds), first[0] - second[0]
    told: dict[str, list[bool]] = {name: [] for name in ("held", "found", "equal", "t", "t found")}
    for _ in range(tables):
        one, two = drawn(*first, seeds, rng), drawn(*second, seeds, rng)
        found = contrast(one, two, names=("a", "b"))
        low, high = found.fixed.low, found.fixed.high
        told["held"].append(low is not None and high is not None and low <= true <= high)
        told["found"].append(found.p is not None and found.p < 0.05)
        told["equal"].append(
            found.equivalent_within is not None and found.equivalent_within < abs(true)
        )
        held, seen = _welch(one, two, true)
        told["t"].append(held)
        told["t found"].append(seen)
    share = {name: 100 * float(np.mean(values)) for name, values in told.items()}
    return (
        f"{_told(first)}  {_told(second)} {seeds:3} seeds   "
        f"held {share['held']:5.1f}  found {share['found']:5.1f}  equal {share['equal']:4.1f}   "
        f"Welch: held {share['t']:5.1f}  found {share['t found']:5.1f}"
    )


def _told(rates: Rates) -> str:
    mean, spread = rates
    return f"{mean:6.4f} " + ("untuned" if spread is None else f"± {spread:5.3f}")


def _welch(one: Crossed, two: Crossed, true: float) -> tuple[bool, bool]:
    left, right = one.means.mean(axis=1), two.means.mean(axis=1)
    if np.ptp(left) + np.ptp(right) == 0:
        return False, False
    test: Any = stats.ttest_ind(left, right, equal_var=False)
    bounds = test.confidence_interval(0.95)
    return bool(bounds.low <= true <= bounds.high), bool(test.pvalue < 0.05)


def main(tables: int) -> None:
    """Print the table."""
    print(f"mean ± SD of seeds on both sides; shares in %, of {tables} tables")
    for first, second in SIDES:
        for seeds in (3, 6, 10):
            print(line(first, second, seeds, tables), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
