import pytest

from sweeps.conditions import conditions
from tests.made_up import cell, cells, counts


def test_the_estimate_is_the_mean_of_the_cells_rates() -> None:
    (condition,) = conditions([*cells([0.1, 0.3]), cell(0.9, seed=2, state="failed")])
    assert condition.estimate == pytest.approx(0.2)
    assert condition.summary.mean == pytest.approx(0.2)


def test_no_rate_no_estimate() -> None:
    (condition,) = conditions(cells([None, None]))
    assert condition.estimate is None


def test_the_mean_over_pairs_weighs_a_cell_by_its_questions() -> None:
    """By hand: pairs 1/2, 0/4 of seed 0 and 3/3 of seed 1, whose other question has no answer."""
    one = cell(0.25, metric="cell_mean_c50", questions=[("a", counts(1, 2)), ("b", counts(0, 4))])
    two = cell(
        1.0, seed=1, metric="cell_mean_c50", questions=[("a", counts(3, 3)), ("b", counts(0, 0))]
    )
    (condition,) = conditions([one, two])
    assert condition.estimate == pytest.approx((0.5 + 0 + 1) / 3)
    assert condition.summary.mean == pytest.approx((0.25 + 1) / 2)
