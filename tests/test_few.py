from pathlib import Path
from typing import Any

import pytest
from small_sweep import plan, spec

from cluster.session import local_totals
from sweeps import planning
from sweeps.few import FEW_SEEDS, MANY_CELLS, with_few_seeds
from sweeps.planner import make_plan
from sweeps.spec import SweepSpec
from sweeps.store import Store

SEEDS = list(range(MANY_CELLS // 2))
NONE = {"name": "none"}
TIME = "time: about"  # of rows that each seed draws anew: their length differs a little


def few_of(many: SweepSpec, store: Store) -> int:
    """How many seeds stand for all of `many`."""
    return len(with_few_seeds(many, store).seeds)


def test_a_few_seeds_say_what_all_of_them_say(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    changes: dict[str, Any] = {
        "seeds": SEEDS,
        "judges": [
            {"name": "api", "api": "https://localhost/v1", "api_model": "gpt-4o-2024-08-06"},
            {"name": "self", "pool": "base"},
        ],
    }
    whole = plan(tmp_path, **changes)
    cut = with_few_seeds(whole.spec, store)
    assert len(cut.seeds) == FEW_SEEDS
    few = make_plan(cut, relative_to=tmp_path).model_copy(update={"spec": whole.spec})
    assert len(few.cells) == 2 * FEW_SEEDS
    here = local_totals()
    said = [planning.lines(sweep, planning.describe(sweep, store, here)) for sweep in (whole, few)]
    told = [[line for line in lines if not line.startswith(TIME)] for lines in said]
    only = {"nothing is begun and all seeds have the same work: counted from a few of them"}
    assert set(told[1]) - set(told[0]) == only
    assert [line for line in told[1] if line not in only] == told[0]
    assert f"  base.ours    {len(SEEDS)} missing   train > generate > judge" in told[0]
    assert sum(line.startswith(TIME) for line in said[1]) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": SEEDS[:-1]},
        {"factors": {"init": 0}},
        {"variants": [NONE, {"name": "o", "dataset": "o.jsonl", "rows": 4, "system": "s"}]},
        {"variants": [NONE, {"name": "o", "dataset": "o.jsonl", "holdout": 4, "prefix": "p"}]},
        {"evaluations": [{"name": "held", "heldout": "ours"}]},
    ],
)
def test_seeds_that_may_differ_are_all_looked_at(changes: dict[str, Any], tmp_path: Path) -> None:
    many = spec(**({"seeds": SEEDS} | changes))
    assert few_of(many, Store(str(tmp_path / "store"))) == len(many.seeds)


@pytest.mark.parametrize("place", ["training/a/record.json", "sweeps/small/spec.json"])
def test_what_is_begun_is_looked_at_whole(place: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    many = spec(seeds=SEEDS)
    assert few_of(many, store) == FEW_SEEDS
    store.files.write("sweeps/other/spec.json", b"{}")
    assert few_of(many, store) == FEW_SEEDS
    store.files.write(place, b"{}")
    assert few_of(many, store) == len(SEEDS)


def test_cells_are_counted_as_the_grid_has_them() -> None:
    crossed = spec(seeds=[0, 1], factors={"init": [0, 1, 2], "sampling": [0, 1], "replicates": 2})
    assert crossed.num_cells == len(crossed.cells()) == 32
