"""The matrix of faults: what a case tells, and how it is printed; what many cases share."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_model
from judge_server import FakeServer, judge_server
from world import HEAVY, KEY_ENV, LIGHT, PROCESSES, World, verdict

STATES = ("passed", "failed", "xfailed", "xpassed", "error", "skipped")


def slow_unless(fast: bool) -> list[pytest.MarkDecorator]:
    """The mark of a case that is not in the fast part."""
    return [] if fast else [pytest.mark.faults]


class Case:
    """What a case tells the matrix."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def happened(self, text: str) -> None:
        """Say in a few words what the fault led to, before the recovery."""
        self._record("happened", text)

    @contextlib.contextmanager
    def recovery(self) -> Iterator[None]:
        """Take the time of the block as that of the recovery."""
        began = time.monotonic()
        yield
        self.took(time.monotonic() - began)

    def took(self, seconds: float) -> None:
        """Say how long the recovery took."""
        self._record("recovery_s", seconds)


@pytest.fixture
def case(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Case:
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "a case names its fault and stage"
    record_property("fault", marker.args[0])
    record_property("stage", marker.args[1])
    return Case(record_property)


@pytest.fixture(scope="session")
def judge() -> Iterator[FakeServer]:
    with pytest.MonkeyPatch.context() as patch, judge_server() as fake:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv(KEY_ENV, "key-of-the-test")
        yield fake


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def whole_world(judge: FakeServer, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"), tiny, judge)


@pytest.fixture
def world(whole_world: World) -> Iterator[World]:
    """The world with a judge that is well and has heard nothing yet."""
    judge = whole_world.judge
    judge.reply = verdict
    judge.requests.clear()
    yield whole_world
    judge.reply = verdict


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have torch imported once for all processes that train: the slow cases have many."""
    slow = any(item.get_closest_marker("faults") for item in session.items)
    PROCESSES.set_forkserver_preload(HEAVY if slow else LIGHT)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the matrix: a line for each case that ran."""
    lines = []
    for state in STATES:
        for report in terminalreporter.stats.get(state, ()):
            told = dict(getattr(report, "user_properties", ()))
            if "fault" in told and (report.when == "call" or state in ("error", "skipped")):
                seconds = told.get("recovery_s")
                lines.append(
                    f"{told['fault']:<46} {told['stage']:<9} "
                    f"{'' if seconds is None else f'{seconds:8.1f} s':>10}  "
                    f"{state:<7} {told.get('happened', '')}"
                )
    if lines:
        terminalreporter.section(f"{len(lines)} faults")
        terminalreporter.write_line(
            f"{'fault':<46} {'stage':<9} {'recovery':>10}  {'':<7} what happened"
        )
        for line in sorted(lines):
            terminalreporter.write_line(line)
