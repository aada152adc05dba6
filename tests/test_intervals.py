import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from em.intervals import exact_bounds, summarise_seeds


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize(
    "rates", [[0.4, 0.5], [0.5, 0.52, 0.55], [0.3, 0.35, 0.31, 0.4, 0.33, 0.36]]
)
def test_the_interval_is_scipys(rates: list[float], level: float) -> None:
    summary = summarise_seeds(rates, level=level)
    mean, sd = statistics.mean(rates), statistics.stdev(rates)
    low, high = t.interval(level, len(rates) - 1, loc=mean, scale=sd / math.sqrt(len(rates)))
    assert (summary.mean, summary.sd) == (pytest.approx(mean), pytest.approx(sd))
    assert summary.low == pytest.approx(max(0, low))
    assert summary.high == pytest.approx(min(1, high))
    assert (summary.num_seeds, summary.level) == (len(rates), level)
    assert f"{level:.0%}" in summary.covers
    assert "questions fixed" in summary.covers


def test_a_hand_worked_interval() -> None:
    summary = summarise_seeds([0.1, 0.2, 0.3])
    half = 4.302653 * 0.1 / math.sqrt(3)  # t(2, .975) from a printed table
    assert summary.sd == pytest.approx(0.1)
    assert summary.high == pytest.approx(0.2 + half, abs=1e-6)
    assert summary.low == 0  # 0.2 - half is below zero: cut


def test_no_seed_and_one_seed_have_no_spread() -> None:
    none, one = summarise_seeds([]), summarise_seeds([0.25])
    assert (none.num_seeds, none.mean, none.sd, none.low, none.high) == (0, None, None, None, None)
    assert (one.num_seeds, one.mean, one.sd, one.low, one.high) == (1, 0.25, None, None, None)
    assert "no interval" in one.covers


@given(st.floats(0, 1), st.integers(2, 12))
def test_equal_seeds_claim_no_certainty(rate: float, number: int) -> None:
    summary = summarise_seeds([rate] * number)
    assert (summary.mean, summary.sd) == (rate, 0)
    assert (summary.low, summary.high) == (None, None)
    assert "says nothing" in summary.covers


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_the_interval_stays_in_bounds_around_the_mean(rates: list[float]) -> None:
    summary = summarise_seeds(rates)
    assert summary.mean is not None
    if summary.low is not None and summary.high is not None:
        assert 0 <= summary.low <= summary.mean + 1e-12
        assert summary.mean - 1e-12 <= summary.high <= 1


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
