import asyncio
import time
from functools import partial

import pytest

from em.pacing import LEAST_PAUSE_S, START, Pace


def test_the_limit_grows_by_one_a_round_and_no_further_than_it_may() -> None:
    pace = Pace(6)
    assert pace.limit == START
    for _ in range(START + 1):
        pace.went_well()
    assert pace.limit == pytest.approx(START + 1, abs=0.2)
    for _ in range(100):
        pace.went_well()
    assert pace.limit == 6
    assert Pace(2).limit == 2


def test_one_burst_of_refusals_halves_the_limit_once() -> None:
    pace = Pace(64)
    for _ in range(5):
        pace.slow_down(None)
    assert pace.limit == START / 2
    for _ in range(20):
        pace._slowed_until = time.monotonic() - LEAST_PAUSE_S
        pace.slow_down(None)
    assert pace.limit == 1


def test_no_more_than_the_limit_are_under_way_and_all_have_their_turn() -> None:
    pace = Pace(3)
    seen: list[int] = []

    async def call() -> None:
        async with pace.slot():
            seen.append(pace.under_way)
            await asyncio.sleep(0.001)

    async def all_calls() -> None:
        await asyncio.gather(*(call() for _ in range(20)))

    asyncio.run(all_calls())
    assert len(seen) == 20
    assert max(seen) == 3
    assert pace.under_way == 0


def test_nothing_begins_before_the_wait_is_over() -> None:
    async def call() -> float:
        pace = Pace(4)
        pace.slow_down(0.1)
        began = time.monotonic()
        async with pace.slot():
            return time.monotonic() - began

    assert asyncio.run(call()) >= 0.1


def test_a_call_that_is_cancelled_gives_its_place_back() -> None:
    async def run() -> int:
        pace = Pace(1)

        async def call() -> None:
            async with pace.slot():
                await asyncio.sleep(60)

        task = asyncio.create_task(call())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(1), pace.slot():
            return pace.under_way

    assert asyncio.run(run()) == 1


def test_a_refused_call_lets_those_go_first_that_wait() -> None:
    async def run() -> list[int]:
        pace, order = Pace(1), []

        async def call(number: int) -> None:
            order.append(number)
            if number == 0 and len(order) < 7:
                pace.slow_down(0.0)
                raise Busy
            pace.went_well()

        async with asyncio.timeout(10):
            calls = [pace.in_turn(partial(call, n), busy=Busy, tries=2) for n in range(6)]
            await asyncio.gather(*calls)
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4, 5, 0]


def test_a_server_that_asks_to_wait_for_an_hour_is_not_waited_for() -> None:
    async def run() -> None:
        pace = Pace(1)

        async def call() -> None:
            pace.slow_down(3600.0)
            raise Busy

        async with asyncio.timeout(10):
            await pace.in_turn(call, busy=Busy, tries=6)

    with pytest.raises(Busy):
        asyncio.run(run())


class Busy(Exception):
    """A server's "too many"."""


def test_a_call_that_was_one_too_many_has_another_turn_while_others_are_answered() -> None:
    async def run(answers_between: bool) -> int:
        pace, calls = Pace(2), 0

        async def call() -> str:
            nonlocal calls
            calls += 1
            if calls == 5:
                return "done"
            if answers_between:
                pace.went_well()
            pace._slowed_until = 0.0  # each refusal a burst of its own
            pace.slow_down(0.0)
            raise Busy

        assert await pace.in_turn(call, busy=Busy, tries=2) == "done"
        return calls

    assert asyncio.run(run(answers_between=True)) == 5
    with pytest.raises(Busy):
        asyncio.run(run(answers_between=False))
