"""Whether an engine is wanted: its driver's sign of life, seen from where the engine is."""

from pathlib import Path

import pytest

from sweeps.artefacts import DriverBeat
from sweeps.attempts import Beat
from sweeps.pools import ABANDONED_S, CUT_OFF_S, AtWork
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
