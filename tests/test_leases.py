"""Who works on an artefact: of many takers one gets it, a dead owner's lease is taken over."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from beside import run_beside, take_often
from places import place_url

from sweeps.artefacts import DriverBeat
from sweeps.attempts import Beat
from sweeps.leases import (
    LOST_AFTER_S,
    HeldElsewhere,
    Holder,
    Lease,
    LeaseLost,
    Signs,
    has_ended,
    held_elsewhere,
    holding,
    living,
    place_of_process,
    process_ticks,
)
from sweeps.store import Store

KEY, OTHER = "a" * 64, "b" * 64
ME = Holder("me", "s")


def alive(store: Store, driver: str, *, count: int = 1, place: str = "far away") -> Holder:
    """A driver on another machine, which has given `count` signs of life."""
    beat = DriverBeat(
        driver=driver, host="far", place=place, pid=1, started=0.0, updated=0.0, count=count
    )
    store.write_record(store.driver_path("s", driver), beat)
    return Holder(driver, "s")


@pytest.fixture
def store(any_url: str) -> Store:
    return Store(any_url)


def kept(store: Store, key: str) -> list[str]:
    return store.files.names(f"leases/{key[:32]}")


def left_by(store: Store, driver: str, number: int = 1) -> Lease:
    """A lease whose owner was killed: nothing gives it back."""
    lease = Lease(key=KEY, number=number, driver=driver, sweep="s")
    assert store.files.create_record(f"leases/{KEY[:32]}/{number:06d}.json", lease)
    return lease


def test_a_lease_is_held_for_the_block_and_then_given_back(store: Store) -> None:
    you = alive(store, "you")
    with holding(store, [KEY, OTHER], you) as check:
        check()
        assert held_elsewhere(store, KEY, ME).driver == "you"
        assert held_elsewhere(store, KEY, you) is None
        with pytest.raises(HeldElsewhere) as error, holding(store, [KEY], ME):
            pytest.fail("it is held")
        assert error.value.lease.driver == "you"
    assert held_elsewhere(store, KEY, ME) is None
    assert kept(store, KEY) == kept(store, OTHER) == []


def test_all_or_none(store: Store) -> None:
    with holding(store, [OTHER], alive(store, "you")):
        with pytest.raises(HeldElsewhere), holding(store, [KEY, OTHER], ME):
            pytest.fail("one is held")
        assert kept(store, KEY) == []


def test_an_error_inside_gives_it_back(store: Store) -> None:
    with pytest.raises(RuntimeError, match="inside"), holding(store, [KEY], ME):
        raise RuntimeError("inside")
    assert kept(store, KEY) == []


def test_a_lost_process_of_the_same_driver_leaves_a_lease_that_its_next_one_has(
    store: Store,
) -> None:
    you = alive(store, "you")
    left_by(store, "you")
    with holding(store, [KEY], you) as check:
        check()
    assert kept(store, KEY) == []


@pytest.mark.parametrize("ended", ["finished", "process gone", "no sign at all"])
def test_the_lease_of_a_driver_that_ended_is_taken_over(store: Store, ended: str) -> None:
    if ended == "finished":
        Beat(store, "s").close()
        [beat] = store.drivers("s")
        left_by(store, beat.driver)
    elif ended == "process gone":
        child = multiprocessing.get_context("fork").Process(target=lambda: None)
        child.start()
        ticks = process_ticks(child.pid or 0)
        child.join()
        alive(store, "you", place=place_of_process())
        beat = store.driver("s", "you")
        assert beat is not None
        gone = beat.model_copy(update={"pid": child.pid, "process_ticks": ticks or 1})
        store.write_record(store.driver_path("s", "you"), gone)
        left_by(store, "you")
    else:
        left_by(store, "you")
    with holding(store, [KEY], ME) as check:
        check()
        assert kept(store, KEY)[-1] == "000002.json"
    assert kept(store, KEY) == []


def test_an_owner_that_was_taken_for_dead_finds_its_lease_lost(store: Store) -> None:
    you = alive(store, "you")
    me = Holder("me", "s", dead=frozenset({"you"}))
    alive(store, "me")
    with holding(store, [KEY], you) as check_yours:
        with holding(store, [KEY], me) as check_mine:
            check_mine()
            with pytest.raises(LeaseLost):
                check_yours()
        with pytest.raises(LeaseLost):  # given back meanwhile, and still not yours
            check_yours()
        with holding(store, [KEY], me) as check_mine:
            check_mine()
    assert kept(store, KEY) == []


def test_a_late_owner_does_not_give_back_what_another_took_over(store: Store) -> None:
    you, me = alive(store, "you"), Holder("me", "s", dead=frozenset({"you"}))
    alive(store, "me")
    yours = holding(store, [KEY], you)
    yours.__enter__()
    with holding(store, [KEY], me) as check:
        yours.__exit__(None, None, None)
        check()
        assert kept(store, KEY) == ["000002.json"]


def test_a_late_owner_does_not_give_back_what_another_holds_under_its_number(
    store: Store,
) -> None:
    """Numbers begin again once a folder is empty."""
    you, me = alive(store, "you"), Holder("me", "s", dead=frozenset({"you"}))
    alive(store, "me")
    yours = holding(store, [KEY], you)
    yours.__enter__()
    with holding(store, [KEY], me):
        pass
    with holding(store, [KEY], me) as check:
        assert kept(store, KEY) == ["000001.json"]
        yours.__exit__(None, None, None)
        check()


def test_an_error_of_an_owner_that_was_taken_over_is_that_it_was(store: Store) -> None:
    you = alive(store, "you")
    alive(store, "me")
    with pytest.raises(LeaseLost), holding(store, [KEY], you):
        left_by(store, "me", number=2)
        raise FileNotFoundError("its folder was moved away")


@pytest.mark.parametrize("torn", [b"", b'{"key": "aa'])
def test_a_lease_that_a_loss_of_power_tore_is_void(store: Store, torn: bytes) -> None:
    store.files.write(f"leases/{KEY[:32]}/000001.json", torn)
    assert held_elsewhere(store, KEY, ME) is None
    with holding(store, [KEY], alive(store, "me")) as check:
        check()
        assert kept(store, KEY)[-1] == "000002.json"
    assert kept(store, KEY) == []


def test_who_lives_is_told_by_processes_here_and_by_signs_from_elsewhere(store: Store) -> None:
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            alive(store, "lives", count=2)

    def beat(driver: str) -> DriverBeat:
        found = store.driver("s", driver)
        assert found is not None
        return found

    ours = Beat(store, "s")  # its clock may say what it will: the process is there
    try:
        here = beat(ours.driver).model_copy(update={"updated": 0.0})
        alive(store, "lives")
        alive(store, "silent")
        asked = [("s", here), ("s", beat("lives")), ("s", beat("silent"))]
        found = living(store, asked, now=lambda: float(len(slept)), sleep=sleep)
        assert next(found)[1].driver == ours.driver
        assert slept == []
        assert [one.driver for _, one in found] == ["lives"]
        assert LOST_AFTER_S < len(slept) < LOST_AFTER_S + 3
    finally:
        ours.close()
    assert list(living(store, [("s", beat(ours.driver))], sleep=sleep)) == []


def test_signs_are_counted_and_no_clock_is_read() -> None:
    now = [0.0]
    store = Store("memory://signs")
    signs = Signs(store, now=lambda: now[0])
    lease = Lease(key=KEY, number=1, driver="you", sweep="s")
    alive(store, "you", count=1)
    assert signs.dead([lease]) == frozenset()
    now[0] += LOST_AFTER_S
    assert signs.dead([lease]) == frozenset()
    alive(store, "you", count=2)  # its clock may say anything
    now[0] += 1
    assert signs.dead([lease]) == frozenset()
    now[0] += LOST_AFTER_S + 1
    assert signs.dead([lease]) == {"you"}
    alive(store, "you", count=3)  # only paused: it is alive again
    assert signs.dead([lease]) == frozenset()


def test_this_process_lives_and_another_with_its_number_does_not(tmp_path: Path) -> None:
    beat = Beat(Store(str(tmp_path)), "s")
    try:
        [now] = Store(str(tmp_path)).drivers("s")
        assert not has_ended(now)
        assert has_ended(now.model_copy(update={"process_ticks": 1}))
        assert not has_ended(now.model_copy(update={"process_ticks": 1, "place": "elsewhere"}))
    finally:
        beat.close()
    [now] = Store(str(tmp_path)).drivers("s")
    assert has_ended(now)


def test_a_zombie_has_ended() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    deadline = time.monotonic() + 10
    while process_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process_ticks(pid) is None
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("kind", "turns"), [("folder", 50), pytest.param("s3", 3, marks=pytest.mark.slow)]
)
def test_processes_never_hold_one_key_at_one_time(
    kind: str, turns: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store = Store(place_url(kind, request, tmp_path))
    names = [f"driver{n}" for n in range(4)]
    for name in names:
        alive(store, name)
    arguments = [(store.url, KEY, tmp_path / "inside", name, turns) for name in names]
    assert run_beside(take_often, arguments) == [0, 0, 0, 0]
    assert kept(store, KEY) == []
