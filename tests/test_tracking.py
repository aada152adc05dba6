"""W&B that does not answer: no cell fails or waits for long, and nothing of its runs is lost."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sweeps.reach import LOST_FOR_S

from em.training import LossPoint
from sweeps.attempts import Beat
from sweeps.outcomes import Outcomes
from sweeps.plan import CellPlan
from sweeps.progress import SweepProgress
from sweeps.settings import TrackingConfig
from sweeps.store import Store
from sweeps.tracking import Outage, WandbTracker, reach_of
from tests.small_sweep import plan
from tests.wandb_server import Mood, wandb_server

ONLINE = TrackingConfig(mode="online")
POINT = LossPoint(step=1, loss=2.0, learning_rate=0.1)


class FakeRun:
    def __init__(self, sdk: "FakeSdk", mode: str) -> None:
        self._sdk, self._mode = sdk, mode

    def log(self, values: dict[str, Any]) -> None:
        self._sdk.logged.append((self._mode, values["train/loss"]))

    def finish(self) -> None:
        if self._mode in self._sdk.unfinished:
            raise TimeoutError("Timed out finishing run.")


class FakeSdk:
    """What is used of wandb. Runs of the modes `out` do not begin, `unfinished` do not end well."""

    def __init__(self, *, out: tuple[str, ...] = (), unfinished: tuple[str, ...] = ()) -> None:
        self.out, self.unfinished = out, unfinished
        self.modes: list[str] = []
        self.logged: list[tuple[str, float]] = []
        self.settings: dict[str, Any] = {}

    def Settings(self, **settings: Any) -> None:
        self.settings = settings

    def init(self, *, mode: str, **settings: Any) -> FakeRun:
        self.modes.append(mode)
        if mode in self.out:
            raise RuntimeError(f"no server\nfor {mode}")
        return FakeRun(self, mode)

    def teardown(self) -> None:
        self.modes.append("teardown")
        raise SystemExit(1)  # as wandb does where its service ended badly


@pytest.fixture
def cells(tmp_path: Path) -> tuple[CellPlan, ...]:
    return plan(tmp_path).cells


def train(cells: tuple[CellPlan, ...], sdk: FakeSdk, folder: Path, *, mode: Any = "online") -> None:
    """Train the cells one after the other, each with a tracker of its own."""
    for cell in cells:
        tracker = WandbTracker(TrackingConfig(mode=mode), "s", folder, sdk=sdk)
        with tracker.training(cell) as on_loss:
            on_loss(POINT)


def test_runs_are_online_while_it_answers(cells: tuple[CellPlan, ...], tmp_path: Path) -> None:
    sdk = FakeSdk()
    train(cells[:2], sdk, tmp_path)
    assert sdk.modes == ["online", "online"]
    assert reach_of(tmp_path).why() is None
    assert 0 < sdk.settings["init_timeout"] <= 15
    assert 0 < sdk.settings["finish_timeout"] <= 30


def test_one_cell_finds_out_and_all_go_on_offline(
    cells: tuple[CellPlan, ...], tmp_path: Path
) -> None:
    sdk = FakeSdk(out=("online",))
    train(cells[:3], sdk, tmp_path)
    assert sdk.modes == ["online", "teardown", "offline", "offline", "offline"]
    assert sdk.logged == [("offline", 2.0)] * 3
    assert reach_of(tmp_path).why() == "RuntimeError: no server\\nfor online"


def test_a_run_that_cannot_be_sent_is_the_last_that_is_waited_for(
    cells: tuple[CellPlan, ...], tmp_path: Path
) -> None:
    sdk = FakeSdk(unfinished=("online",))
    train(cells[:2], sdk, tmp_path)
    assert sdk.modes == ["online", "teardown", "offline"]


def test_an_outage_that_is_long_over_is_tried_again(
    cells: tuple[CellPlan, ...], tmp_path: Path
) -> None:
    train(cells[:1], FakeSdk(out=("online",)), tmp_path)
    before = time.time() - LOST_FOR_S - 1
    (left,) = (tmp_path / "wandb").iterdir()
    os.utime(left, (before, before))
    sdk = FakeSdk()
    train(cells[:1], sdk, tmp_path)
    assert sdk.modes == ["online"]


def test_a_cell_goes_on_where_nothing_can_be_written_at_all(
    cells: tuple[CellPlan, ...], tmp_path: Path
) -> None:
    sdk = FakeSdk(out=("online", "offline"))
    train(cells[:1], sdk, tmp_path)
    assert sdk.logged == []


def test_a_service_that_died_is_started_anew_for_an_offline_run(
    cells: tuple[CellPlan, ...], tmp_path: Path
) -> None:
    sdk = FakeSdk(out=("offline",))
    train(cells[:1], sdk, tmp_path, mode="offline")
    assert sdk.modes == ["offline", "teardown", "offline"]
    assert reach_of(tmp_path).why() is None  # it was not asked


def test_an_outage_is_said_once_and_forgotten_by_the_next_run(
    cells: tuple[CellPlan, ...], tmp_path: Path
) -> None:
    said: list[str] = []
    outage = Outage(tmp_path, said.append)
    outage.look()
    assert said == []
    train(cells[:2], FakeSdk(out=("online",)), tmp_path)
    outage.look()
    outage.look()
    (text,) = said
    assert "no server" in text
    assert "wandb sync" in text
    assert str(tmp_path) in text
    Outage(tmp_path, said.append).look()
    assert len(said) == 1


def test_the_run_says_an_outage_once_among_its_progress(tmp_path: Path) -> None:
    sweep, store, out = plan(tmp_path), Store(str(tmp_path / "store")), io.StringIO()
    beat = Beat(store, "s")
    try:
        outcomes = Outcomes(sweep.spec, store, beat, SweepProgress(out, {"judge": 4}))
        outcomes.evaluated(sweep.cells[0], None)
        train(sweep.cells[:2], FakeSdk(out=("online",)), store.local_dir("."))
        for cell in sweep.cells[:2]:
            outcomes.evaluated(cell, None)
    finally:
        beat.close()
    assert out.getvalue().count("W&B is not reached") == 1


# With the real SDK ---------------------------------------------------------------------------

TRAIN = """
import sys, time
from pathlib import Path
from em.training import LossPoint
from sweeps.settings import TrackingConfig
from sweeps.tracking import WandbTracker
from tests.small_sweep import plan

folder = Path(sys.argv[1])
import wandb
for number, cell in enumerate(plan(folder).cells[:3]):
    began = time.monotonic()
    tracker = WandbTracker(
        TrackingConfig(mode="online"), "s", folder, init_timeout_s=3, finish_timeout_s=3
    )
    with tracker.training(cell) as on_loss:
        on_loss(LossPoint(step=1, loss=7 + number, learning_rate=0.1))
    print(time.monotonic() - began)
"""


def run(command: list[str], folder: Path, url: str) -> str:
    environment = os.environ | {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "a-made-up-key-of-this-test-" + "x" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(history: list[str]) -> list[float]:
    return sorted(json.loads(line)["train/loss"] for line in history)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("first", "then"), [("hangs", "well"), ("500", "well"), ("well", "hangs")])
def test_what_an_outage_kept_back_is_sent_by_wandb_sync(
    tmp_path: Path, first: Mood, then: Mood
) -> None:
    pytest.importorskip("wandb")
    with wandb_server(first, then) as server:
        seconds = run([sys.executable, "-c", TRAIN, str(tmp_path)], tmp_path, server.url).split()
        assert len(seconds) == 3
        assert float(seconds[0]) < 30  # both timeouts, and W&B's own process started twice
        assert max(map(float, seconds[1:])) < 10
        assert server.history == []
    with wandb_server() as server:
        sync = str(Path(sys.executable).with_name("wandb"))
        run([sync, "sync", "--include-online", "--yes"], tmp_path, server.url)
        assert losses(server.history) == [7, 8, 9]
