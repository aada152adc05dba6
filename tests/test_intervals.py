import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from em.intervals import (
    T,
    exact_bounds,
    fixed_questions,
    near_normal,
    over_seeds,
    summarise_seeds,
)


@pytest.mark.parametrize(
    "rates", [[0.4, 0.5], [0.5, 0.52, 0.55], [0.3, 0.35, 0.31, 0.4, 0.33, 0.36]]
)
def test_the_interval_is_scipys(rates: list[float]) -> None:
    summary, found = summarise_seeds(rates), over_seeds(rates, what="the rate")
    mean, sd = statistics.mean(rates), statistics.stdev(rates)
    low, high = t.interval(0.95, len(rates) - 1, loc=mean, scale=sd / math.sqrt(len(rates)))
    assert (summary.mean, summary.sd) == (pytest.approx(mean), pytest.approx(sd))
    assert (found.estimate, found.low, found.high) == pytest.approx((mean, low, high))
    assert (summary.num_seeds, found.level) == (len(rates), 0.95)
    assert f"{len(rates)} seeds" in found.covers and "these questions" in found.covers
    if not near_normal(np.array([rates]))[0]:
        return
    share = fixed_questions([rate * 1000 for rate in rates], [1000] * len(rates), weights="")
    assert (share.low, share.high) == pytest.approx((max(0, low), min(1, high)))


def test_a_hand_worked_interval() -> None:
    found = over_seeds([0.1, 0.2, 0.3], what="the rate")
    half = 4.302653 * 0.1 / math.sqrt(3)  # t(2, .975) from a printed table
    assert summarise_seeds([0.1, 0.2, 0.3]).sd == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)


def test_no_seed_and_one_seed_have_no_spread() -> None:
    none, one = summarise_seeds([]), summarise_seeds([0.25])
    assert (none.num_seeds, none.mean, none.sd) == (0, None, None)
    assert (one.num_seeds, one.mean, one.sd) == (1, 0.25, None)
    for found in (over_seeds([0.25], what="x"), fixed_questions([5], [20], weights="")):
        assert (found.estimate, found.low, found.high) == (0.25, None, None)
        assert "fewer than two seeds" in found.covers


@given(st.floats(0, 1), st.integers(2, 12))
def test_equal_seeds_claim_no_certainty(rate: float, number: int) -> None:
    summary, found = summarise_seeds([rate] * number), over_seeds([rate] * number, what="x")
    assert (summary.mean, summary.sd) == (rate, 0)
    assert (found.low, found.high) == (None, None)
    assert "says nothing" in found.covers


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12))
def test_the_interval_stays_in_bounds_around_the_mean(hits: list[int]) -> None:
    found = fixed_questions([float(h) for h in hits], [50] * len(hits), weights="")
    assert found.low is not None and found.high is not None
    assert 0 <= found.low < found.high <= 1
    if found.method == T:
        assert found.estimate is not None and found.low <= found.estimate <= found.high


@pytest.mark.parametrize(("hits", "answers"), [(0, 1), (0, 800), (3, 20), (20, 20)])
def test_exact_bounds_are_those_of_the_beta_distribution(hits: int, answers: int) -> None:
    """Clopper and Pearson by another way: quantiles of beta distributions."""
    from scipy.stats import beta

    low, high = exact_bounds(hits, answers)
    expected_low = beta.ppf(0.025, hits, answers - hits + 1) if hits else 0
    expected_high = beta.ppf(0.975, hits + 1, answers - hits) if hits < answers else 1
    assert (low, high) == pytest.approx((expected_low, expected_high), abs=1e-9)


def test_no_answer_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="0 answers"):
        exact_bounds(0, 0)


@pytest.mark.parametrize(("mean", "sd", "seeds"), [(0.168, 0.14, 100), (0.05, 0.08, 400)])
def test_of_many_skewed_seeds_the_interval_is_as_wide_as_their_mean_is_unsure(
    mean: float, sd: float, seeds: int
) -> None:
    draws = np.random.default_rng(7)
    shape = mean * (1 - mean) / sd**2 - 1
    held, widths = 0, []
    for _ in range(200):
        rates = draws.beta(mean * shape, (1 - mean) * shape, seeds)
        hits = draws.binomial(400, rates)
        found = fixed_questions([float(h) for h in hits], [400.0] * seeds, weights="answers")
        assert found.low is not None and found.high is not None
        held += found.low <= mean <= found.high
        widths.append(found.high - found.low)
    assert 0.90 <= held / 200 <= 0.99
    assert np.median(widths) == pytest.approx(2 * 1.96 * sd / seeds**0.5, rel=0.1)
