"""What many cases of the matrix of faults share, and that it is printed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_model
from judge_server import FakeServer, judge_server
from matrix import Case, print_matrix
from world import HEAVY, KEY_ENV, LIGHT, PROCESSES, World, verdict


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
    print_matrix(terminalreporter)
