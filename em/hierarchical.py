"""Bounds for the mean rate of new seeds, whose rates are from a beta distribution.

Where seeds crowd at 0 a t interval may cover half of what it says. Knows nothing of which model is
chosen where (see em.intervals and em.contrasts).
"""

from functools import lru_cache
from typing import NamedTuple

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
    shares = _below(mean_posterior(hits, answers))
    tails = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
    bounds = np.array([np.interp(tails, row, np.linspace(*MEAN_GRID)) for row in shares])
    low, high = 1 / (1 + np.exp(-bounds.T))
    return low, high


def mean_posterior(hits: Floats, answers: Floats) -> Floats:
    """Return the probability of each mean on the grid, shape (tables, means); rows sum to 1."""
    likelihood = np.broadcast_to(_log_prior(), (len(hits), *_log_prior().shape)).copy()
    for seed, num in enumerate(answers):
        different, place = np.unique(hits[:, seed], return_inverse=True)
        likelihood += np.stack([_log_likelihood(float(h), float(num)) for h in different])[place]
    likelihood -= likelihood.max(axis=(1, 2), keepdims=True)
    density = np.exp(likelihood).sum(axis=2)
    found: Floats = density / density.sum(axis=1, keepdims=True)
    return found


def rate_posterior(hits: float, answers: float) -> Floats:
    """Return the same of one model's rate by its answers alone (Jeffreys), shape (means,)."""
    mean = _means()
    log = (hits + 0.5) * np.log(mean) + (answers - hits + 0.5) * np.log1p(-mean)
    density = np.exp(log - log.max())
    found: Floats = density / density.sum()
    return found


def posterior(rates: Floats, answers: Floats, *, one_model: bool) -> Floats:
    """Return the posterior of a mean rate over new seeds, or of one model's over new answers.

    `rates` of seeds and the number of their `answers` have the shape (seeds,).
    """
    hits = rates * answers
    if one_model:
        return rate_posterior(float(hits.sum()), float(answers.sum()))
    found: Floats = mean_posterior(hits[None, :], answers)[0]
    return found


class Difference(NamedTuple):
    """The posterior of a difference: `values` in rising order, and the probability of each."""

    values: Floats
    probabilities: Floats

    def bounds(self, level: float) -> tuple[float, float]:
        """Return the equal-tailed bounds at `level`."""
        below = _below(self.probabilities[None, :])[0]
        low, high = np.interp((0.5 - level / 2, 0.5 + level / 2), below, self.values)
        return float(low), float(high)

    @property
    def tail(self) -> float:
        """Twice the smaller of the probabilities to lie on either side of 0."""
        same = float(self.probabilities[self.values == 0].sum())  # two means in one grid step
        under = float(self.probabilities[self.values < 0].sum()) + same / 2
        return min(1.0, 2 * min(under, 1 - under))


def difference(first: Floats, second: Floats) -> Difference:
    """Return the posterior of the first rate less the second; they are taken as independent."""
    mean = _means()
    apart = (mean[:, None] - mean[None, :]).ravel()
    order = np.argsort(apart, kind="stable")
    return Difference(apart[order], np.multiply.outer(first, second).ravel()[order])


def _below(probabilities: Floats) -> Floats:
    """Return the probability below each point of a grid, of rows that sum to 1."""
    found: Floats = np.cumsum(probabilities, axis=1) - probabilities / 2
    return found


def _means() -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.linspace(*MEAN_GRID)))
    return found


@lru_cache(maxsize=1)
def _shapes() -> tuple[Floats, Floats]:
    """Return the two parameters of the beta distribution at every point of the grid."""
    mean = _means()[:, None]
    correlation = 1 / (1 + np.exp(-np.linspace(*SPREAD_GRID)))[None, :]
    size = 1 / correlation - 1
    return mean * size, (1 - mean) * size


@lru_cache(maxsize=1)
def _log_prior() -> Floats:
    """Return the prior's logarithm at every point, as a density of the two logits."""
    mean = _means()[:, None]
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
