"""How often the intervals of the model's, the data's and the seed's variance hold the truth.

    python tests/benchmarks/attribution.py [TABLES]        default: 1,000 for each line

Two models x four variants, one of them untuned (no variance between seeds); rates of seeds are
beta-distributed, 8 questions x 50 answers, no interaction of seed and question. Prints the true
variance, the mean of its estimates, and the share of intervals that hold it.
"""

import itertools
import sys
from collections.abc import Mapping

import numpy as np

from em.attribution import Grid, attribution
from em.crossed import Crossed
from em.variance import SEED

QUESTIONS, SAMPLES = 8, 50
UNTUNED = "none"
MODELS, VARIANTS = ("first", "second"), ("insecure", "secure", "educational", UNTUNED)
RATES = np.array([[0.20, 0.01, 0.02, 0.002], [0.08, 0.01, 0.01, 0.004]])
REGIMES: Mapping[str, tuple[np.ndarray, float]] = {
    # name: rates, and the concentration of the beta distribution that seeds come from
    "near the middle": (0.30 + 0.4 * RATES, 30.0),
    "wide seeds": (0.30 + 0.4 * RATES, 8.0),
    "as published": (RATES, 8.0),
    "rare": (RATES / 10, 8.0),
}
BOTH = "model x variant"


def truth(rates: np.ndarray, concentration: float) -> dict[str, float]:
    """Return each source's part of the variance of a cell's rate over the grid."""
    of_model = rates.mean(axis=1) - rates.mean()
    of_variant = rates.mean(axis=0) - rates.mean()
    rest = rates - rates.mean() - of_model[:, None] - of_variant[None, :]
    seeds = rates * (1 - rates) / (concentration + 1)
    seeds[:, VARIANTS.index(UNTUNED)] = 0.0
    return {
        "model": float((of_model**2).mean()),
        "variant": float((of_variant**2).mean()),
        BOTH: float((rest**2).mean()),
        SEED: float(seeds.mean()),
    }


def table(
    rate: float, concentration: float | None, seeds: int, rng: np.random.Generator
) -> Crossed:
    """Return one condition's counts; without a concentration all seeds are one model."""
    shape = (seeds, QUESTIONS)
    of_seed = (
        np.full(seeds, rate)
        if concentration is None
        else rng.beta(rate * concentration, (1 - rate) * concentration, seeds)
    )
    hits = rng.binomial(SAMPLES, np.broadcast_to(of_seed[:, None], shape)).astype(float)
    return Crossed(
        units=tuple(map(str, range(seeds))),
        questions=tuple(map(str, range(QUESTIONS))),
        num=np.full(shape, SAMPLES),
        total=hits,
        squares=hits,
    )


def line(regime: str, seeds: int, tables: int) -> str:
    """Return the line of one design."""
    rates, concentration = REGIMES[regime]
    grid = Grid(
        factors=("model", "variant"),
        levels={f"{m} {v}": (m, v) for m, v in itertools.product(MODELS, VARIANTS)},
    )
    true, rng = truth(rates, concentration), np.random.default_rng(seeds)
    held: dict[str, list[bool]] = {name: [] for name in true}
    estimates: dict[str, list[float]] = {name: [] for name in true}
    for _ in range(tables):
        made = {
            name: table(
                rates[MODELS.index(model), VARIANTS.index(variant)],
                None if variant == UNTUNED else concentration,
                seeds,
                rng,
            )
            for name, (model, variant) in grid.levels.items()
        }
        found = attribution(made, grid)
        for part in found.parts if found else ():
            if part.name in true and part.of_rate is not None:
                estimates[part.name].append(part.of_rate)
                if part.low is not None and part.high is not None:
                    held[part.name].append(part.low <= true[part.name] <= part.high)
    told = (
        f"{name} {value:.5f} ({np.mean(estimates[name]):.5f}) {100 * np.mean(held[name]):.0f} %"
        for name, value in true.items()
    )
    return f"{regime:16} {seeds:2} seeds   " + "   ".join(told)


def main(tables: int) -> None:
    """Print the table."""
    print(f"variance of a cell's rate: true (mean estimate) held by its 95 % interval; {tables}")
    for regime in REGIMES:
        for seeds in (3, 5, 10):
            print(line(regime, seeds, tables), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
