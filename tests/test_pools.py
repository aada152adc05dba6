"""Whether an engine is wanted: its driver's sign of life, seen from where the engine is."""

from pathlib import Path

from sweeps.attempts import Beat
from sweeps.pools import ABANDONED_S, AtWork
from sweeps.store import Store


def test_an_engine_is_wanted_until_its_driver_ends(tmp_path: Path) -> None:
    beat = Beat(Store(str(tmp_path)), "s")
    at_work = AtWork(str(tmp_path), "s", beat.driver)
    try:
        assert at_work()
    finally:
        beat.close()
    assert not at_work()


def test_an_engine_is_wanted_until_nothing_was_seen_for_long(tmp_path: Path) -> None:
    now = [0.0]
    store = Store(str(tmp_path))
    beat = Beat(store, "s")
    beat.close()
    last = store.driver("s", beat.driver)
    assert last is not None
    elsewhere = last.model_copy(update={"place": "another machine", "finished": False})
    store.write_driver("s", elsewhere)
    at_work = AtWork(str(tmp_path), "s", beat.driver, lambda: now[0])
    for count in range(100, 103):
        store.write_driver("s", elsewhere.model_copy(update={"count": count}))
        assert at_work()
        now[0] += ABANDONED_S - 1
    assert at_work()
    (tmp_path / "sweeps" / "s" / "drivers" / f"{beat.driver}.json").unlink()  # or out of reach
    assert at_work()
    now[0] += 2
    assert not at_work()
