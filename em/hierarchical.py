"""Bounds for the mean rate of new seeds, whose rates are from a beta distribution.

Where seeds crowd at 0 a t interval may cover half of what it says. Knows nothing of which model is
chosen where (see em.intervals and em.contrasts).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from em.crossed import Floats
from em.quantiles import LEVEL, beta_quantile, t_quantile

# The grid of the hierarchical model: logit of the mean rate, logit of the seeds' intraclass
# correlation.
MEAN_GRID, SPREAD_GRID = (-10.0, 10.0, 161), (-7.0, 2.2, 41)

POINTS = 201  # that stand for a posterior
SHARES = (np.arange(POINTS) + 0.5) / POINTS


def hierarchical_limits(hits: Floats, answers: Floats) -> tuple[Floats, Floats]:
    """Return the equal-tailed posterior bounds of the mean of the seeds' beta distribution.

    `hits` have the shape (tables, seeds), `answers` (seeds,). The prior is beta(1/2, 1/2) for the
    mean and beta(1/2, 1) for the intraclass correlation: of those tried the one whose bounds cover
    at least 90 % with 3 to 10 seeds at every rate (see the benchmark). A posterior summed on a grid
    draws nothing.
    """
    shares = _below(mean_posterior(hits, answers))
    tails = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
    bounds = np.array([np.interp(tails, row, np.linspace(*MEAN_GRID)) for row in shares])
    low, high = 1 / (1 + np.exp(-bounds.T))
    return low, high


def variance_limits(hits: Floats, answers: Floats) -> tuple[float, float]:
    """Return the equal-tailed posterior bounds of the variance of the seeds' beta distribution.

    `hits` and `answers` have the shape (seeds,); the prior is that of hierarchical_limits.
    """
    mean, correlation = _axes()
    variances = (mean * (1 - mean) * correlation).ravel()
    order = np.argsort(variances)
    found = _posterior(hits[None, :], answers)[0].ravel()[order]
    tails = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
    low, high = np.interp(tails, _below(found[None, :])[0], variances[order])
    return float(low), float(high)


def mean_posterior(hits: Floats, answers: Floats) -> Floats:
    """Return the probability of each mean on the grid, shape (tables, means); rows sum to 1."""
    found: Floats = _posterior(hits, answers).sum(axis=2)
    return found


def _posterior(hits: Floats, answers: Floats) -> Floats:
    """Return the probability of each point of the grid: (tables, means, correlations)."""
    likelihood = np.broadcast_to(_log_prior(), (len(hits), *_log_prior().shape)).copy()
    for seed, num in enumerate(answers):
        different, place = np.unique(hits[:, seed], return_inverse=True)
        likelihood += np.stack([_log_likelihood(float(h), float(num)) for h in different])[place]
    likelihood -= likelihood.max(axis=(1, 2), keepdims=True)
    density = np.exp(likelihood)
    found: Floats = density / density.sum(axis=(1, 2), keepdims=True)
    return found


def over_seeds(rates: Floats, answers: Floats) -> Floats:
    """Return equally probable values of the mean rate over new seeds, shape (POINTS,).

    `rates` of seeds and the number of their `answers` have the shape (seeds,).
    """
    below = _below(mean_posterior((rates * answers)[None, :], answers))[0]
    logits = np.interp(SHARES, below, np.linspace(*MEAN_GRID))
    found: Floats = 1 / (1 + np.exp(-logits))
    return found


def near_normal_seeds(rates: Floats) -> Floats:
    """Return the same of seeds that lie near normal: by Student's t."""
    error = float(rates.std(ddof=1)) / math.sqrt(len(rates))
    found: Floats = rates.mean() + t_quantile(SHARES, len(rates) - 1) * error
    return found


def of_one_model(rate: float, answers: float) -> Floats:
    """Return the same of one model's rate over new answers, by Jeffreys' prior."""
    hits = rate * answers
    found: Floats = beta_quantile(SHARES, hits + 0.5, answers - hits + 0.5)
    return found


class Difference(NamedTuple):
    """The posterior of a difference: equally probable `values`, in rising order."""

    values: Floats

    def bounds(self, level: float) -> tuple[float, float]:
        """Return the equal-tailed bounds at `level`."""
        low, high = np.quantile(self.values, (0.5 - level / 2, 0.5 + level / 2))
        return float(low), float(high)

    @property
    def tail(self) -> float:
        """Twice the smaller of the probabilities to lie on either side of 0."""
        under = float(np.mean(self.values < 0) + np.mean(self.values == 0) / 2)
        return min(1.0, 2 * min(under, 1 - under))


def difference(first: Floats, second: Floats) -> Difference:
    """Return the posterior of the first rate less the second, which are taken as independent."""
    return Difference(np.sort((first[:, None] - second[None, :]).ravel()))


def _below(probabilities: Floats) -> Floats:
    """Return the probability below each point of a grid, of rows that sum to 1."""
    found: Floats = np.cumsum(probabilities, axis=1) - probabilities / 2
    return found


def _axes() -> tuple[Floats, Floats]:
    """Return means as a column and correlations as a row."""
    mean: Floats = 1 / (1 + np.exp(-np.linspace(*MEAN_GRID)))
    correlation: Floats = 1 / (1 + np.exp(-np.linspace(*SPREAD_GRID)))
    return mean[:, None], correlation[None, :]


@lru_cache(maxsize=1)
def _shapes() -> tuple[Floats, Floats]:
    """Return the two parameters of the beta distribution at every point of the grid."""
    mean, correlation = _axes()
    size = 1 / correlation - 1
    return mean * size, (1 - mean) * size


@lru_cache(maxsize=1)
def _log_prior() -> Floats:
    """Return the prior's logarithm at every point, as a density of the two logits."""
    mean, correlation = _axes()
    prior: Floats = (
        0.5 * np.log(mean * (1 - mean)) + 0.5 * np.log(correlation) + np.log1p(-correlation)
    )
    return prior


@lru_cache(maxsize=512)  # of 53 kB each
def _log_likelihood(hits: float, num: float) -> Floats:
    """Return a seed's beta-binomial log-likelihood at every point, but for a constant."""
    from scipy.special import betaln

    first, second = _shapes()
    found: Floats = betaln(first + hits, second + num - hits) - betaln(first, second)
    return found
