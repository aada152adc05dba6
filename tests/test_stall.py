"""When an engine counts as wedged, and what is done then; no vLLM."""

import asyncio
from collections.abc import Iterable

import pytest

from cluster.requests import EngineDead
from cluster.stall import LONGEST_GAP_S, Stall, Watch

Look = tuple[float, dict[str, int], int]


def stalled(looks: Iterable[Look]) -> float:
    now = [100.0]
    stall = Stall(clock=lambda: now[0])
    for passed, tokens, finished in looks:
        now[0] += passed
        stall.look(tokens, finished)
    return stall.seconds


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(1, {"a": 0}, 0), (1, {"a": 0}, 0)], 2),
        ([(1, {"a": 0}, 0), (1, {"a": 1}, 0)], 0),
        ([(1, {"a": 7}, 0), (1, {"a": 7, "b": 0}, 0)], 1),  # a new request is no progress
        ([(1, {"a": 0, "b": 3}, 0), (1, {"a": 0, "b": 3}, 0), (1, {"a": 0}, 1)], 0),  # b has ended
        ([(1, {"a": 0}, 4), (1, {"a": 0}, 5)], 0),  # came and ended between two looks
        ([(1, {}, 0), (1, {}, 0), (1, {"a": 0}, 0)], 1),  # idle time does not count
        ([(1, {"a": 0}, 0), (1, {}, 0), (1, {"b": 0}, 0)], 2),  # nor does it forgive
        ([(1, {"a": 0}, 0), (3600, {"a": 0}, 0)], 1 + LONGEST_GAP_S),  # the job was suspended
    ],
)
def test_only_time_under_way_without_a_token_counts(looks: list[Look], seconds: float) -> None:
    assert stalled(looks) == seconds


class Fake:
    """An engine with one request under way, which gives a token a look while it `moves`."""

    def __init__(self, limit_s: float, *, moves: bool) -> None:
        self.alive, self.moves, self.count, self.kills = True, moves, 0, 0
        self.watch = Watch(
            limit_s, tokens=self.tokens, alive=lambda: self.alive, kill=self.kill, look_s=0.01
        )

    def tokens(self) -> dict[str, int]:
        self.count += self.moves
        return {"one": self.count}

    def kill(self) -> None:
        self.kills += 1
        self.alive = False


def test_a_wedged_engine_is_killed_once_and_one_that_moves_is_not() -> None:
    async def play() -> tuple[Fake, Fake]:
        moving, wedged = Fake(0.1, moves=True), Fake(0.1, moves=False)
        for fake in (moving, wedged, wedged):
            fake.watch.begin()
        await asyncio.sleep(0.5)
        return moving, wedged

    moving, wedged = asyncio.run(play())
    assert moving.kills == 0 and moving.watch.verdict == ""
    assert wedged.kills == 1
    assert wedged.watch.verdict.startswith("it gave no token for 0.1 s with 1 requests under way")


def test_loading_weights_is_not_counted_but_has_a_limit_of_its_own() -> None:
    async def play() -> Fake:
        fake = Fake(0.1, moves=False)
        fake.watch.begin()
        assert await fake.watch.loading(asyncio.sleep(0.3, "loaded")) == "loaded"
        assert fake.kills == 0
        fake.watch.begin()
        with pytest.raises(EngineDead, match=r"did not load weights within 0\.5 s, and was killed"):
            await fake.watch.loading(asyncio.sleep(60))
        return fake

    assert asyncio.run(play()).kills == 1


def test_a_load_ends_when_the_engine_dies_and_with_its_own_error_otherwise() -> None:
    async def refused() -> None:
        raise ValueError("no such adapter")

    async def play() -> None:
        fake = Fake(60, moves=True)
        with pytest.raises(ValueError, match="no such adapter"):
            await fake.watch.loading(refused())
        asyncio.get_running_loop().call_later(0.1, fake.kill)
        with pytest.raises(EngineDead, match="died while it loaded weights"):
            await asyncio.wait_for(fake.watch.loading(asyncio.sleep(60)), 5)

    asyncio.run(play())
