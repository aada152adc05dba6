"""From how many skewed seeds on a t interval covers, beside the hierarchical model's.

    python tests/benchmarks/many_seeds.py        about a minute

Rates of seeds from a beta distribution, 400 answers each; by mean and number of seeds: coverage and
median width of both intervals, and in how many draws em.intervals takes t.
"""

import numpy as np

from em.hierarchical import hierarchical_limits
from em.intervals import near_normal, t_limits

DRAWS, ANSWERS, SEED = 1_000, 400, 1
SEEDS = (10, 20, 30, 60, 100, 300, 600, 1000)
REGIMES = ((0.168, 0.14), (0.05, 0.08), (0.02, 0.04), (0.005, 0.012))


def main() -> None:
    """Print one line for each mean and number of seeds."""
    draws = np.random.default_rng(SEED)
    print(f"coverage and median width at 95 %; t of {DRAWS} draws, the model's of fewer")
    for mean, sd in REGIMES:
        shape = mean * (1 - mean) / sd**2 - 1
        for seeds in SEEDS:
            rates = draws.beta(mean * shape, (1 - mean) * shape, (DRAWS, seeds))
            hits = draws.binomial(ANSWERS, rates)
            low, high = t_limits(hits / ANSWERS)
            few = hits[: 60 if seeds <= 100 else 12].astype(float)  # it takes long
            least, most = hierarchical_limits(few, np.full(seeds, float(ANSWERS)))
            print(
                f"mean {mean:5.3f} SD {sd:5.3f} {seeds:5} seeds   "
                f"t {np.mean((low <= mean) & (mean <= high)):6.1%} {np.median(high - low):.4f}   "
                f"model {np.mean((least <= mean) & (mean <= most)):6.1%} of {len(few):3} "
                f"{np.median(most - least):.4f}   "
                f"t is taken in {np.mean(near_normal(hits / ANSWERS)):4.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
