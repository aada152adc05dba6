"""What many tests have in common: a small sweep, a store, and a judge's server.

Real data is read where it is, and is never skipped in CI.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from judge_server import KEY_ENV, FakeServer, judge_server
from places import BUCKETS, PLACES, place_url
from s3_server import ENVIRONMENT, S3Server, s3_server
from small_sweep import plan

from em.catalogue import CACHE_ENV, DATA_ENV
from sweeps.plan import SweepPlan
from sweeps.store import Store

# How long an example takes is the machine's business: a busy one must not fail a test.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real_data") is None or os.environ.get(DATA_ENV):
        return
    reason = f"{DATA_ENV} is not set: it names the folder of the public data"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason}, which is never skipped where CI is set", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def exit_codes_are_read() -> Iterator[None]:
    """Undo what Ray in this process leaves: where SIGCHLD is ignored, every child ends with 0."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.fixture
def sweep(tmp_path: Path) -> SweepPlan:
    """Two untuned cells and two to be trained (see small_sweep)."""
    return plan(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    store = Store(str(tmp_path / "store"))
    store.create()
    return store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A judge's server that asks for a key, and the key in the environment."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY_ENV, "key-of-the-test")
    with judge_server() as fake:
        yield fake


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 API on loopback, where this process and its children look for S3."""
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "FSSPEC_")):
                patch.delenv(name)
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.url}).items():
            patch.setenv(name, value)
        server.make_bucket("stores")
        yield server


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, for its children, too."""
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=PLACES)
def any_url(request: pytest.FixtureRequest, tmp_path: Path, own_cache: Path) -> str:
    """A new root in a folder, in memory and in an S3 bucket."""
    return place_url(request.param, request, tmp_path)


@pytest.fixture(params=BUCKETS)
def bucket_url(request: pytest.FixtureRequest, tmp_path: Path, own_cache: Path) -> str:
    """A new root in memory and in an S3 bucket."""
    return place_url(request.param, request, tmp_path)
