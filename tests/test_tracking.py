"""The process that tells W&B of a sweep, as its driver sees it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from finished_store import finish
from small_sweep import SPEC, plan
from wandb_backend import wandb_backend

from sweeps import tracking
from sweeps.attempts import Beat, statuses
from sweeps.leases import holding
from sweeps.plan import SweepPlan
from sweeps.sent import not_sent
from sweeps.settings import TrackingConfig
from sweeps.store import Store
from sweeps.tracking import ELSEWHERE, END_S, Tracking, catch_up, check_key_for, lease_key
from sweeps.wandb_settings import mode_of

KEY = "a-made-up-key-of-this-test-" + "x" * 40


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's own account is not used."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-settings"))
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "off"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, "off"),
        ("online", {}, "online"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("off", {"WANDB_API_KEY": KEY}, "off"),
    ],
)
def test_auto_is_what_the_environment_says(
    mode: Any, given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert mode_of(TrackingConfig(mode=mode)) == expected


def test_a_key_that_wandb_login_left_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert mode_of(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.of.ours")
    assert mode_of(TrackingConfig()) == "offline"


def test_a_server_that_wandb_login_named_is_the_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.of.ours\n")
    (tmp_path / "netrc").write_text("machine wandb.of.ours login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert mode_of(TrackingConfig()) == "offline"
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert mode_of(TrackingConfig()) == "online"


def test_online_without_a_key_is_refused_with_the_way_on() -> None:
    with pytest.raises(ValueError, match=r"WANDB_API_KEY.*mode: offline.*emsweep sync"):
        check_key_for(TrackingConfig(mode="online"))
    check_key_for(TrackingConfig(mode="auto"))


@pytest.mark.parametrize("name", ["a/b", "", "x" * 129, "50%", "a#b", " a"])
def test_a_project_that_w_and_b_would_refuse_is_refused_in_the_spec(name: str) -> None:
    with pytest.raises(ValueError, match="no name in W&B"):
        TrackingConfig(project=name)


class World:
    """A finished small sweep whose driver tracks it."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.sweep: SweepPlan = plan(folder, tracking={"mode": mode})
        self.store = Store(str(folder / "a-store"))
        finish(self.sweep, self.store)
        self.beat = Beat(self.store, "small")
        self.said: list[str] = []

    def tracking(self) -> Tracking:
        return Tracking(self.sweep, self.store, self.beat.driver, self.said.append)

    def left(self) -> int:
        return not_sent(self.sweep, self.store, statuses(self.sweep, self.store)).cells


def test_off_starts_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, "off")
    tracked = world.tracking()
    tracked.start()
    tracked.look()
    tracked.close()
    world.beat.close()
    assert world.said == []
    assert not (tmp_path / "a-store" / "wandb").exists()


@pytest.mark.slow
def test_offline_runs_are_written_beside_the_driver(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    world = World(tmp_path, "auto")
    tracked = world.tracking()
    tracked.start()
    tracked.close()
    world.beat.close()
    assert world.said == []
    assert len(list((tmp_path / "a-store" / "wandb").glob("offline-run-*"))) == 5


@pytest.mark.slow
@pytest.mark.faults
def test_a_tracker_that_is_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    world = World(tmp_path, "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_backend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        tracked = world.tracking()
        tracked.start()
        assert len(backend.runs) >= 1  # the sweep's own run is there before anything is trained
        os.kill(tracked.pid or 0, signal.SIGKILL)
        until = time.monotonic() + 60
        while tracked.is_alive and time.monotonic() < until:
            time.sleep(0.05)
        tracked.look()
        tracked.close()
    world.beat.close()
    assert world.left() == 0
    assert len(backend.runs) == 5
    assert not any(run.overwritten for run in backend.runs.values())
    assert world.said == [f"sending the rest to W&B, for {END_S:g} s at most"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "auto"])
def test_what_w_and_b_refuses_is_told_before_anything_is_trained(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    world = World(tmp_path, mode)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_backend() as backend:
        backend.entities = ()  # whose key it is owns nothing
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        monkeypatch.setenv("WANDB_ENTITY", "nobody")
        tracked = world.tracking()
        if mode == "online":
            with pytest.raises(ValueError, match=r"does not take this sweep: .*mode: offline"):
                tracked.start()
        else:
            tracked.start()
            (text,) = world.said
            assert "go on without it" in text
            tracked.look()
            tracked.close()
            assert len(world.said) == 1
    world.beat.close()
    assert world.left() == 4


@pytest.mark.slow
@pytest.mark.faults
def test_the_driver_waits_for_a_silent_server_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    world = World(tmp_path, "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_backend(first="hangs") as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        tracked = Tracking(world.sweep, world.store, world.beat.driver, world.said.append, end_s=5)
        began = time.monotonic()
        tracked.start()
        assert time.monotonic() - began < tracking.START_S + 5
        tracked.look()
        began = time.monotonic()
        tracked.close()
        assert time.monotonic() - began < 15
    world.beat.close()
    assert world.left() == 4
    assert any("does not answer" in text for text in world.said)
    assert "'emsweep sync' sends it" in world.said[-1]


@contextlib.contextmanager
def beside_another(world: World) -> Iterator[tuple[Beat, Tracking]]:
    """The world's driver tracks while another one holds the sweep's tracking."""
    pytest.importorskip("wandb")
    other = Beat(world.store, "small")
    with holding(world.store, [lease_key("small")], other.holder):
        tracked = world.tracking()
        tracked.start()
        yield other, tracked
        tracked.close()
    other.close()
    world.beat.close()


@pytest.mark.slow
def test_of_two_drivers_one_tells(tmp_path: Path) -> None:
    world = World(tmp_path, "auto")
    with beside_another(world):
        pass
    assert world.said == [ELSEWHERE]
    assert not (tmp_path / "a-store" / "wandb").exists()


@pytest.mark.slow
def test_the_tracking_of_a_driver_that_ended_is_taken_over(tmp_path: Path) -> None:
    world = World(tmp_path, "auto")
    with beside_another(world) as (other, _):
        time.sleep(2)
        other.close()  # says that it has ended; its lease is there still
        until = time.monotonic() + 60
        while not list((tmp_path / "a-store").glob("wandb/offline-run-*")):
            assert time.monotonic() < until
            time.sleep(0.1)
    assert world.said == []
    assert len(list((tmp_path / "a-store" / "wandb").glob("offline-run-*"))) == 5


DRIVER = """
import sys, time
from pathlib import Path
from sweeps.attempts import Beat
from sweeps.planner import load_plan
from sweeps.store import Store
from sweeps.tracking import Tracking

sweep, store = load_plan(Path(sys.argv[1])), Store(sys.argv[2])
if __name__ == "__main__":
    tracking = Tracking(sweep, store, Beat(store, "small").driver, print)
    tracking.start()
    time.sleep(600)
"""


@pytest.mark.slow
def test_with_a_killed_driver_ends_the_process_that_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    world = World(tmp_path, "online")
    world.beat.close()
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPEC | {"tracking": {"mode": "online"}}))
    (tmp_path / "driver.py").write_text(DRIVER)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    with wandb_backend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "small.yaml")]
        driver = subprocess.Popen([*command, world.store.url], cwd=tmp_path)
        until = time.monotonic() + 60
        while len(backend.runs) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        backend.be("slow")  # it is in the middle of a look when the driver is killed
        time.sleep(1.5)
        below = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
        gone, alive = psutil.wait_procs(below, timeout=10)
        assert alive == []
        assert len(gone) >= 2  # ours, and W&B's own
        backend.be("well")
        catch_up(world.sweep, world.store, world.said.append)
    assert world.left() == 0
    assert len(backend.runs) == 5
    assert not any(run.overwritten for run in backend.runs.values())


@pytest.mark.slow
@pytest.mark.faults
def test_a_stopped_sweeps_runs_are_said_to_go_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    world = World(tmp_path, "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_backend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        tracked = world.tracking()
        tracked.start()
        until = time.monotonic() + 60
        while not any("report" in json.loads(line) for line in backend.history):
            assert time.monotonic() < until
            time.sleep(0.5)
        time.sleep(3)
        tracked.close(at_once=True)
    world.beat.close()
    (report,) = (run for run in backend.runs.values() if run.fields["jobType"] == "report")
    assert report.state == "preempted"
