import pytest
from made_up import cell, cells

from sweeps.conditions import conditions


def test_the_interval_is_over_seeds_and_not_over_the_cells_of_a_seed() -> None:
    """Two cells a seed, as replicates or crossed factors make them."""
    twice = [
        c.model_copy(update={"seed_label": f"{c.seed}.replicate{n}"})
        for c in cells([0.1, 0.2, 0.6])
        for n in range(2)
    ]
    [crossed], [plain] = conditions(twice), conditions(cells([0.1, 0.2, 0.6]))
    assert crossed.summary == plain.summary
    assert len(crossed.seeds) == 6
    assert "averaged first" in crossed.spread
    assert "averaged first" not in plain.spread


def test_a_cell_without_a_rate_is_left_out_of_its_seeds_mean() -> None:
    some, none = cell(0.4, seed=0), cell(None, seed=0)
    [condition] = conditions([some, none, cell(0.2, seed=1)])
    assert condition.summary.mean == pytest.approx(0.3)
    assert condition.num_without_rate == 1
