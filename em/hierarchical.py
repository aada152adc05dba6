"""Bounds for the mean rate of new seeds, whose rates are from a beta distribution.

Where seeds crowd at 0 a t interval may cover half of what it says. Knows nothing of which model is
chosen where (see em.intervals).
"""

from functools import lru_cache

import numpy as np

from em.crossed import Floats
from em.quantiles import LEVEL

# The grid of the hierarchical model: logit of the mean rate, logit of the seeds' intraclass
# correlation.
MEAN_GRID, SPREAD_GRID = (-10.0, 10.0, 161), (-7.0, 2.2, 41)


def hierarchical_limits(hits: Floats, answers: Floats) -> tuple[Floats, Floats]:
    """Return the equal-tailed posterior bounds of the mean of the seeds' beta distribution.

    `hits` have the shape (tables, seeds), `answers` (seeds,). The prior is beta(1/2, 1/2) for the
    mean and beta(1/2, 1) for the intraclass correlation: of those tried the one whose bounds cover
    at least 90 % with 3 to 10 seeds at every rate (see the benchmark). A posterior summed on a grid
    draws nothing.
    """
    axis = np.linspace(*MEAN_GRID)
    likelihood = np.broadcast_to(_log_prior(), (len(hits), *_log_prior().shape)).copy()
    for seed, num in enumerate(answers):
        different, place = np.unique(hits[:, seed], return_inverse=True)
        likelihood += np.stack([_log_likelihood(float(h), float(num)) for h in different])[place]
    likelihood -= likelihood.max(axis=(1, 2), keepdims=True)
    density = np.exp(likelihood).sum(axis=2)
    shares = np.cumsum(density, axis=1)
    shares = (shares - density / 2) / shares[:, -1:]
    tails = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
    bounds = np.array([np.interp(tails, row, axis) for row in shares])
    low, high = 1 / (1 + np.exp(-bounds.T))
    return low, high


@lru_cache(maxsize=1)
def _shapes() -> tuple[Floats, Floats]:
    """Return the two parameters of the beta distribution at every point of the grid."""
    mean = 1 / (1 + np.exp(-np.linspace(*MEAN_GRID)))[:, None]
    correlation = 1 / (1 + np.exp(-np.linspace(*SPREAD_GRID)))[None, :]
    size = 1 / correlation - 1
    return mean * size, (1 - mean) * size


@lru_cache(maxsize=1)
def _log_prior() -> Floats:
    """Return the prior's logarithm at every point, as a density of the two logits."""
    mean = 1 / (1 + np.exp(-np.linspace(*MEAN_GRID)))[:, None]
    correlation = 1 / (1 + np.exp(-np.linspace(*SPREAD_GRID)))[None, :]
    prior: Floats = (
        0.5 * np.log(mean * (1 - mean)) + 0.5 * np.log(correlation) + np.log1p(-correlation)
    )
    return prior


@lru_cache(maxsize=4096)
def _log_likelihood(hits: float, num: float) -> Floats:
    """Return a seed's beta-binomial log-likelihood at every point, but for a constant."""
    from scipy.special import betaln

    first, second = _shapes()
    found: Floats = betaln(first + hits, second + num - hits) - betaln(first, second)
    return found
