"""Whose turn it is on an engine with one set of weights at a time; no vLLM."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.arbiter import Arbiter
from cluster.requests import Weights

A = Weights("a" * 64, "/nowhere/a", "adapter")
B = Weights("b" * 64, "/nowhere/b", "adapter")


class Stage:
    """A fake engine: what is loaded, who runs, and a clock that tests set."""

    def __init__(self, patience_s: float = 10.0) -> None:
        self.now = 0.0
        self.swaps: list[str] = []
        self.log: list[str] = []
        self.broken: set[str] = set()
        self.loaded = ""
        self.running = 0
        self.arbiter = Arbiter(self.swap, patience_s, clock=lambda: self.now)

    async def swap(self, weights: Weights | None) -> None:
        assert self.running == 0
        key = weights.key if weights else ""
        self.swaps.append(key[:1])
        self.loaded = "?"
        await asyncio.sleep(0.001)
        if key[:1] in self.broken:
            raise OSError(f"cannot load {key[:1]}")
        self.loaded = key

    async def call(self, name: str, weights: Weights | None, until: Callable[[], Any]) -> None:
        async with self.arbiter.hold(weights) as key:
            self.running += 1
            self.log.append(name)
            assert key == self.loaded == (weights.key if weights else "")
            try:
                await until()
            finally:
                self.running -= 1


def played(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(play(), 10))  # type: ignore[arg-type]


async def settle() -> None:
    await asyncio.sleep(0.01)


def start(stage: Stage, name: str, weights: Weights | None) -> tuple[Any, asyncio.Event]:
    event = asyncio.Event()
    return asyncio.create_task(stage.call(name, weights, event.wait)), event


def test_calls_for_the_loaded_weights_run_side_by_side_without_a_swap() -> None:
    async def play() -> None:
        stage = Stage()
        calls = [start(stage, str(i), None) for i in range(3)]
        await settle()
        assert stage.running == 3
        for task, event in calls:
            event.set()
            await task
        assert stage.swaps == []

    played(play)


def test_other_weights_wait_until_the_running_calls_have_drained() -> None:
    async def play() -> None:
        stage = Stage()
        first, end_first = start(stage, "base", None)
        await settle()
        second, end_second = start(stage, "a1", A)
        third, end_third = start(stage, "a2", A)
        await settle()
        assert stage.log == ["base"]
        end_first.set()
        await settle()
        assert stage.log == ["base", "a1", "a2"] and stage.swaps == ["a"]
        end_second.set()
        end_third.set()
        await asyncio.gather(first, second, third)

    played(play)


def test_the_present_weights_are_kept_until_another_has_waited_too_long() -> None:
    async def play() -> None:
        stage = Stage(patience_s=10)
        _, end_1 = start(stage, "base1", None)
        await settle()
        start(stage, "a", A)[1].set()
        await settle()
        stage.now = 9.0
        _, end_2 = start(stage, "base2", None)
        await settle()
        stage.now = 10.0
        late, end_late = start(stage, "base3", None)
        end_late.set()
        await settle()
        assert stage.log == ["base1", "base2"]
        end_1.set()
        await settle()
        assert stage.log == ["base1", "base2"]
        end_2.set()
        await late
        assert stage.log == ["base1", "base2", "a", "base3"] and stage.swaps == ["a", ""]

    played(play)


def test_the_longest_wait_is_served_first() -> None:
    async def play() -> None:
        stage = Stage()
        _, end = start(stage, "base", None)
        await settle()
        for now, name, weights in ((1.0, "b", B), (2.0, "a", A), (3.0, "b2", B)):
            stage.now = now
            start(stage, name, weights)[1].set()
            await settle()
        end.set()
        await settle()
        assert stage.log == ["base", "b", "b2", "a"] and stage.swaps == ["b", "a"]

    played(play)


def test_a_failed_swap_is_the_error_of_those_who_wanted_it_and_the_next_call_loads_first() -> None:
    async def play() -> None:
        stage = Stage()
        stage.broken = {"a"}
        wanted = [start(stage, f"a{i}", A)[0] for i in range(2)]
        for error in await asyncio.gather(*wanted, return_exceptions=True):
            assert isinstance(error, OSError)
        task, event = start(stage, "base", None)
        event.set()
        await task
        assert stage.swaps == ["a", ""] and stage.log == ["base"]

    played(play)


def test_a_failed_swap_does_not_hold_up_the_others() -> None:
    async def play() -> None:
        stage = Stage()
        stage.broken = {"a"}
        _, end = start(stage, "base", None)
        await settle()
        failing, _ = start(stage, "a", A)
        await settle()
        other, end_other = start(stage, "b", B)
        end.set()
        end_other.set()
        await other
        with pytest.raises(OSError, match="cannot load a"):
            await failing
        assert stage.swaps == ["a", "b"]

    played(play)


def test_a_call_that_leaves_the_queue_bars_nobody() -> None:
    async def play() -> None:
        stage = Stage(patience_s=10)
        _, end = start(stage, "base1", None)
        await settle()
        impatient, _ = start(stage, "a", A)
        await settle()
        stage.now = 11.0
        barred, end_barred = start(stage, "base2", None)
        await settle()
        assert stage.log == ["base1"]
        impatient.cancel()
        await settle()
        assert stage.log == ["base1", "base2"] and stage.swaps == []
        end.set()
        end_barred.set()
        await barred

    played(play)


def test_a_call_cancelled_while_its_weights_load_gives_its_place_back() -> None:
    async def play() -> None:
        stage = Stage()
        for ticks in range(6):  # before, at and after the moment it is admitted
            leaving, _ = start(stage, "a", A)
            for _ in range(ticks):
                await asyncio.sleep(0.0004)
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
            task, event = start(stage, "base", None)
            event.set()
            await asyncio.wait_for(task, 2)

    played(play)


def test_never_two_sets_of_weights_at_once_and_everyone_is_served() -> None:
    async def play() -> None:
        dice = random.Random(0)
        stage = Stage(patience_s=0.0)

        async def one(i: int) -> None:
            await asyncio.sleep(dice.random() * 0.2)
            length = dice.random() * 0.005
            await stage.call(str(i), dice.choice([None, A, B]), lambda: asyncio.sleep(length))

        await asyncio.gather(*[one(i) for i in range(200)])
        assert len(stage.log) == 200 and stage.running == 0

    played(play)
