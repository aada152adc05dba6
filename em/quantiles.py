"""Quantiles of the distributions that intervals are made of, as single numbers, fast.

scipy.special has them without what scipy.stats adds to each call and to the start of a process.
Knows nothing of intervals.
"""

from typing import Any

LEVEL = 0.95  # of every interval
LARGE = 1e5  # an F from which the noncentral one is its limit, to three digits
ALIKE = 1e-9  # rates that differ by less differ by arithmetic only


def t_quantile(share: Any, freedom: Any) -> Any:
    """Return Student's t below which `share` lies; both may be arrays."""
    from scipy.special import stdtrit

    return stdtrit(freedom, share)


def chi2_quantile(share: float, freedom: float) -> float:
    """Return the chi-squared below which `share` lies."""
    from scipy.special import chdtri

    return float(chdtri(freedom, 1 - share))


def f_quantile(share: float, freedom: float, other: float) -> float:
    """Return Fisher's F below which `share` lies."""
    from scipy.special import fdtri

    return float(fdtri(freedom, other, share))


def noncentrality(share: float, freedom: float, other: float, ratio: float) -> float:
    """Return the noncentrality that leaves `share` of the noncentral F below `ratio`; 0 for none.

    It falls as the share rises: of two shares the larger gives the lower bound.
    """
    from scipy.optimize import brentq
    from scipy.special import fdtr, ncfdtr

    if ratio <= 0 or fdtr(freedom, other, ratio) <= share:
        return 0.0
    if ratio > LARGE:  # what is above the line varies no more, beside what is below
        return freedom * ratio * chi2_quantile(1 - share, other) / other
    top = max(1.0, freedom * ratio)
    while ncfdtr(freedom, other, top, ratio) > share:
        top *= 2
    return float(brentq(lambda at: ncfdtr(freedom, other, at, ratio) - share, 0.0, top))


def beta_quantile(share: Any, first: Any, second: Any) -> Any:
    """Return the beta value below which `share` lies; all may be arrays."""
    from scipy.special import betaincinv

    return betaincinv(first, second, share)
