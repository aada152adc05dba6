"""A round of cells on a real Ray, with stages that take no time: who is trained, asked, stopped.

What the stages really do is tried in tests/test_sweep.py and tests/faults.
"""

import io
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from instant import InstantPools, carry_out, evaluate_but_once, found_dead, seen_lost
from small_sweep import plan

from cluster.serving import PoolState
from cluster.session import ClusterError, session
from em.datasets import Row
from em.models import ModelConfig
from sweeps.attempts import statuses
from sweeps.console import QUIET
from sweeps.plan import CellPlan, SweepPlan
from sweeps.planner import load_rows_of
from sweeps.progress import SweepProgress
from sweeps.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TESTS = Path(__file__).resolve().parent
CLOSE_TO_ALL = {"train_cpus": 1, "serve_cpus": 1}


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    with session(None, environment=QUIET | {"PYTHONPATH": paths}):
        yield


def rows(folder: Path, cell: CellPlan) -> tuple[Row, ...]:
    return load_rows_of(cell, relative_to=folder).rows


def progress() -> SweepProgress:
    return SweepProgress(io.StringIO(), {})


def two_models(folder: Path) -> SweepPlan:
    other = folder / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"no weights: nothing reads them here")
    models = [{"name": "base", "bundled": "smollm2-135m"}, {"name": "other", "folder": str(other)}]
    return plan(
        folder, models=models, seeds=[0, 1, 2], resources=CLOSE_TO_ALL,
        tracking={"mode": "off"},
    )  # fmt: skip


def test_every_cell_is_done_and_no_engine_is_left(ray_here: None, tmp_path: Path) -> None:
    sweep, store, pools = two_models(tmp_path), Store(str(tmp_path / "store")), InstantPools()
    carry_out(sweep, store, progress(), partial(rows, tmp_path), pools)
    assert {item.state for item in statuses(sweep, store)} == {"finished"}
    started = [engine for _, what, engine in pools.events if what == "start"]
    stopped = [engine for _, what, engine in pools.events if what == "stop"]
    assert {engine.rsplit("-", 1)[0] for engine in started} == {"base", "other"}
    assert sorted(started) == sorted(stopped)
    assert {item.attempts for item in statuses(sweep, store)} == {1}


class NoEngine(InstantPools):
    """An engine that does not come up."""

    def start(self, model: ModelConfig, engine: str) -> bool:
        time.sleep(1)
        raise ClusterError("the pool of base did not come up")


def test_an_engine_that_does_not_come_up_ends_the_round(ray_here: None, tmp_path: Path) -> None:
    sweep, store, pools = two_models(tmp_path), Store(str(tmp_path / "store")), NoEngine()
    with pytest.raises(ClusterError, match="did not come up"):
        carry_out(sweep, store, progress(), partial(rows, tmp_path), pools)
    assert ("give up", "") in [event[1:] for event in pools.events]


class LosesAllOnce(InstantPools):
    """Engines that are gone at the first look after a cell found its own dead; others stay."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.lost: set[str] = set()
        self._store = store

    def look(self) -> dict[str, PoolState | None]:
        states = super().look()
        if found_dead(self._store).exists() and not self.lost:
            self.lost = set(states)
            seen_lost(self._store).touch()
        return {engine: None if engine in self.lost else how for engine, how in states.items()}


def test_engines_that_are_lost_are_replaced_and_the_cell_that_they_failed_is_asked_again(
    ray_here: None, tmp_path: Path
) -> None:
    sweep, store, pools = (
        two_models(tmp_path),
        Store(str(tmp_path / "store")),
        LosesAllOnce(tmp_path / "store"),
    )
    carry_out(sweep, store, progress(), partial(rows, tmp_path), pools, work=evaluate_but_once)
    assert {item.state for item in statuses(sweep, store)} == {"finished"}
    started = {engine for _, what, engine in pools.events if what == "start"}
    stopped = [engine for _, what, engine in pools.events if what == "stop"]
    assert pools.lost and pools.lost < started
    assert sorted(stopped) == sorted(started)


def test_cells_with_equal_data_are_trained_once(ray_here: None, tmp_path: Path) -> None:
    same = [{"name": name, "dataset": "ours.jsonl", "rows": 4} for name in ("one", "two")]
    sweep = plan(tmp_path, variants=same, resources=CLOSE_TO_ALL, tracking={"mode": "off"})
    store, pools = Store(str(tmp_path / "store")), InstantPools()
    carry_out(sweep, store, progress(), partial(rows, tmp_path), pools)
    assert {item.state for item in statuses(sweep, store)} == {"finished"}
    trained = [cell.cell_id for cell in sweep.cells if store.attempts("small", cell.cell_id)]
    assert len(trained) == 2  # the other two have the same responses, too
