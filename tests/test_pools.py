"""Engines that start and stop, without any; and whether one is wanted, by its driver's sign."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.requests import EngineDead, PoolConfig
from cluster.session import ClusterError
from em.models import ModelConfig
from sweeps.artefacts import DriverBeat
from sweeps.attempts import Beat
from sweeps.plan import SweepPlan
from sweeps.pools import ABANDONED_S, CUT_OFF_S, AtWork, Pools
from sweeps.store import Store


def test_an_engine_is_wanted_until_its_driver_ends(store: Store) -> None:
    beat = Beat(store, "s")
    at_work = AtWork(store.url, "s", beat.driver)
    try:
        assert at_work()
    finally:
        beat.close()
    assert not at_work()


@pytest.fixture
def elsewhere(store: Store) -> DriverBeat:
    """The sign of a driver on another machine."""
    beat = Beat(store, "s")
    beat.close()
    last = store.driver("s", beat.driver)
    assert last is not None
    last = last.model_copy(update={"place": "another machine", "finished": False})
    store.write_driver("s", last)
    return last


def test_an_engine_is_wanted_until_its_driver_is_silent_for_long(
    store: Store, elsewhere: DriverBeat
) -> None:
    now = [0.0]
    at_work = AtWork(store.url, "s", elsewhere.driver, lambda: now[0])
    for count in range(100, 103):
        store.write_driver("s", elsewhere.model_copy(update={"count": count}))
        assert at_work()
        now[0] += ABANDONED_S - 1
    assert at_work()
    Path(store.url, store.driver_path("s", elsewhere.driver)).unlink()
    assert at_work()
    now[0] += 2
    assert not at_work()


def test_a_store_out_of_reach_says_nothing_for_hours(store: Store, elsewhere: DriverBeat) -> None:
    now = [0.0]
    at_work = AtWork(store.url, "s", elsewhere.driver, lambda: now[0])
    assert at_work()
    Path(store.url).rename(Path(store.url).with_name("not mounted"))
    for _ in range(3):
        now[0] += CUT_OFF_S / 3
        assert at_work()
    Path(store.url).with_name("not mounted").rename(store.url)
    assert at_work()  # silent only since it can be read again
    now[0] += ABANDONED_S + 1
    assert not at_work()
    at_work = AtWork("s3://", "s", elsewhere.driver, lambda: now[0])  # never to be read
    assert at_work()
    now[0] += CUT_OFF_S + 1
    assert not at_work()


# Starting and stopping ---------------------------------------------------------------------------


class Fake:
    """Pools of which each start goes on when it is let; remembers what was stopped."""

    def __init__(self, sweep: SweepPlan, store: Store, beat: Beat) -> None:
        self.started, self.go_on = threading.Event(), threading.Event()
        self.fails = False
        self.names: list[str] = []
        self.stopped: list[str] = []
        self.model: ModelConfig = sweep.spec.models[0]
        self.pools = Pools(sweep.spec, store, beat, joined=True, start=self._start, stop=self._stop)

    def _start(self, config: PoolConfig, *_: object) -> None:
        self.names.append(config.name)
        self.started.set()
        assert self.go_on.wait(10)
        if self.fails:
            raise EngineDead("no reason")

    def _stop(self, names: Sequence[str]) -> None:
        self.stopped += names


@pytest.fixture
def fake(sweep: SweepPlan, store: Store) -> Iterator[Fake]:
    beat = Beat(store, "small")
    yield Fake(sweep, store, beat)
    beat.close()


def test_an_engine_that_is_stopped_before_its_start_is_not_started(fake: Fake) -> None:
    fake.pools.stop("base-1")
    assert not fake.pools.start(fake.model, "base-1")
    assert fake.names == fake.stopped == []


@pytest.mark.parametrize("fails", [False, True])
def test_an_engine_that_is_stopped_while_it_starts_is_gone_in_the_end(
    fake: Fake, fails: bool
) -> None:
    fake.fails = fails
    with ThreadPoolExecutor(1) as thread:
        up = thread.submit(fake.pools.start, fake.model, "base-1")
        assert fake.started.wait(10)
        fake.pools.stop("base-1")
        assert fake.stopped == fake.names  # which may do nothing: it is not there yet
        fake.go_on.set()
        assert up.result() is False
    assert fake.stopped[len(fake.names) :] == ([] if fails else fake.names)


def test_an_engine_that_does_not_come_up_is_told(fake: Fake) -> None:
    fake.fails = True
    fake.go_on.set()
    with pytest.raises(ClusterError, match="pool of base did not come up: no reason"):
        fake.pools.start(fake.model, "base-1")


def test_an_engine_that_answers_is_stopped_by_its_name(fake: Fake) -> None:
    fake.go_on.set()
    assert fake.pools.start(fake.model, "base-1")
    assert [fake.pools.name("base-1")] == fake.names
    fake.pools.stop("base-1")
    assert fake.stopped == fake.names
