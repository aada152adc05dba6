"""The pool: one Ray, one Serve, one replica of a tiny model, which dies in several ways."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.replica import WANTED_PERIOD_S
from cluster.requests import Completion, EngineDead, PoolConfig, PromptsTooLong, Weights
from cluster.serving import (
    Pool,
    connect_pool,
    pool_states,
    running_pools,
    start_pool,
    stop_pool,
)
from tests.engines import adapter, ask, engine_config, merge, tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.slow]
NAME = "tiny"
REQUESTS = [ask(f"question {i % 3}", seed=i) for i in range(8)]
LONG = [ask(f"count {i}", seed=i, max_tokens=200) for i in range(32)]
STALL_LIMIT_S = 8.0


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    # Tasks find this file as pytest does: by its own folder.
    roots = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parent.parent}"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": roots}},
    )
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return adapter(model, tmp_path_factory.mktemp("tuned"), 1)


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for whoever started the pool, until it is removed."""
    path = tmp_path_factory.mktemp("owner") / "lives"
    path.touch()
    return path


@pytest.fixture(scope="module")
def pool(ray_here: None, model: Path, owner: Path) -> Iterator[Pool]:
    # Less than a whole CPU, so that the tasks of the tests find one.
    engine = engine_config(model, stall_limit_s=STALL_LIMIT_S)
    config = PoolConfig(NAME, lambda: engine, num_cpus=1, num_gpus=0, wanted=owner.exists)
    yield start_pool(config, merge, lambda weights: weights)
    stop_pool(NAME)
    assert engine_cores() == []


def engine_cores() -> list[psutil.Process]:
    """The engines' own processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("EngineCore" in word for word in process.cmdline()):
                found.append(process)
    return found


def answers(pool: Pool, weights: Weights | None) -> list[Completion]:
    return asyncio.run(pool.complete(REQUESTS, weights))


def same(left: list[Completion], right: list[Completion]) -> bool:
    return [a.token_ids for a in left] == [a.token_ids for a in right]


def test_stopping_a_pool_that_is_not_there_is_nothing(ray_here: None) -> None:
    stop_pool("nobody")


def test_a_pool_speaks_with_the_base_and_with_an_adapter(pool: Pool, tuned: Weights) -> None:
    base, other = answers(pool, None), answers(pool, tuned)
    assert {a.weights for a in base} == {""} and {a.weights for a in other} == {tuned.key}
    assert not same(base, other)
    assert same(answers(pool, None), base) and same(answers(pool, tuned), other)
    assert [len(ids) for ids in asyncio.run(pool.tokenize(["abc", "z"]))] == [3, 1]


def test_a_task_can_use_the_pool_or_find_it_by_name(pool: Pool) -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    def task(given: Pool) -> list[list[Completion]]:
        return [answers(given, None), answers(connect_pool(NAME), None)]

    expected = answers(pool, None)
    assert all(same(got, expected) for got in ray.get(task.remote(pool)))


def test_the_callers_mistake_comes_back_as_it_was_raised(pool: Pool) -> None:
    with pytest.raises(PromptsTooLong, match=r"^a prompt of .* exceed max_model_len 256") as caught:
        asyncio.run(pool.complete([ask("x" * 300)], None))
    assert type(caught.value) is PromptsTooLong
    assert caught.value.places == (0,)
    assert pool.retried == 0


def family() -> list[psutil.Process]:
    """The engine's process and its workers, which compute."""
    (core,) = engine_cores()
    return [core, *core.children(recursive=True)]


async def hit_under_way(
    pool: Pool, weights: Weights | None, hit: Callable[[], Any]
) -> list[Completion]:
    """Ask what takes long, and `hit` once the engine works on it."""
    processes = family()

    def worked_s() -> float:
        return sum(process.cpu_times().user for process in processes)

    before = worked_s()
    call = asyncio.create_task(pool.complete(LONG, weights))
    while worked_s() < before + 0.2:
        await asyncio.sleep(0.01)
    assert not call.done()
    hit()
    return await call


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.faults
def test_a_wedged_engine_is_killed_and_its_calls_are_asked_again(
    pool: Pool, tuned: Weights
) -> None:
    expected, other = asyncio.run(pool.complete(LONG, tuned)), answers(pool, None)
    wedged = family()
    hasty = Pool(NAME, retries=0)

    def stop() -> None:
        for process in wedged:
            process.suspend()

    async def under_way() -> tuple[list[Completion], list[Completion]]:
        kept = asyncio.create_task(hit_under_way(pool, tuned, stop))
        lost = asyncio.create_task(hasty.complete(LONG, tuned))
        waits = asyncio.create_task(pool.complete(REQUESTS, None))  # for its turn to load weights
        with pytest.raises(EngineDead, match=r"lost to dying .* 1 times.* no token for 8 s"):
            await lost
        return await kept, await waits

    start = time.monotonic()
    kept, waited = asyncio.run(under_way())
    took = time.monotonic() - start
    assert same(kept, expected) and same(waited, other)
    assert pool.retried == 2 and hasty.retried == 0
    assert all(map(gone, wedged)) and len(engine_cores()) == 1
    assert STALL_LIMIT_S < took < STALL_LIMIT_S + 180  # a start takes its time
    print(f"killed and replaced within {took:.1f} s")


@pytest.mark.faults
def test_a_call_survives_the_death_of_its_replica_and_waits_for_resources(pool: Pool) -> None:
    import ray

    @ray.remote(num_cpus=2)
    def hold_all() -> float:
        start = time.time()
        time.sleep(6)
        return start

    expected = asyncio.run(pool.complete(LONG, None))
    orphans = family()
    held = hold_all.remote()  # runs as soon as the replica holds its CPU no more
    retried, killed = pool.retried, []

    def kill_replica() -> None:
        killed.append(time.time())
        os.kill(orphans[0].ppid(), signal.SIGKILL)

    assert same(asyncio.run(hit_under_way(pool, None, kill_replica)), expected)
    assert pool.retried == retried + 1
    assert all(map(gone, orphans)) and len(engine_cores()) == 1
    assert 0 <= ray.get(held) - killed[0] < 5
    print(f"replaced within {time.time() - killed[0]:.1f} s")


class Waits:
    """A replica that answers after a while."""

    def __init__(self) -> None:
        time.sleep(3)


def seen(name: str, *, until: object) -> list[object]:
    """How a pool is, from now until it is so; each state once."""
    found: list[object] = []
    deadline = time.monotonic() + 60
    while not found or found[-1] != until:
        state = pool_states().get(name)
        found += [state] if not found or found[-1] != state else []
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_it_is_known_how_a_pool_is(pool: Pool) -> None:
    from ray import serve

    assert pool_states() == {NAME: "running"}
    for name, cpus in (("waits", 0.5), ("large", 2)):  # the pool has one of two
        deployment = serve.deployment(Waits, name=name, ray_actor_options={"num_cpus": cpus})
        target = serve.RunTarget(deployment.bind(), name=name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
    assert seen("waits", until="running") == ["unplaced", "loading", "running"]
    assert pool_states()["large"] == "unplaced"
    stop_pool("waits")
    stop_pool("large")
    assert pool_states() == {NAME: "running"}
    with pytest.raises(EngineDead, match="pool waits was stopped"):
        asyncio.run(connect_pool("waits").complete(REQUESTS, None))


def test_a_pool_that_is_stopped_while_it_starts_is_not_waited_for(pool: Pool, model: Path) -> None:
    engine = engine_config(model)
    config = PoolConfig("large", lambda: engine, num_cpus=2, num_gpus=0)
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(start_pool, config, merge, lambda weights: weights)
        assert seen("large", until="unplaced")
        stop_pool("large")
        with pytest.raises(EngineDead, match="stopped while it started"):
            started.result(60)


def test_a_pool_whose_owner_is_gone_ends_by_itself(pool: Pool, owner: Path) -> None:
    assert pool_states() == {NAME: "running"}
    left = family()
    owner.unlink()
    deadline = time.monotonic() + WANTED_PERIOD_S + 60
    while running_pools() or not all(map(gone, left)):
        assert time.monotonic() < deadline, (running_pools(), left)
        time.sleep(0.5)


class Doomed:
    """A replica that dies of every call, and comes up no more than `lives` times."""

    def __init__(self, folder: Path, lives: int) -> None:
        (folder / str(os.getpid())).touch()
        if len(list(folder.iterdir())) > lives:
            raise RuntimeError("no more lives")

    async def complete(self, *arguments: object) -> None:
        os._exit(1)

    async def ready(self) -> None:
        return


@pytest.mark.faults
def test_a_replica_that_dies_again_and_again_and_one_that_never_comes_back(
    ray_here: None, tmp_path: Path
) -> None:
    from ray import serve

    doomed = serve.deployment(
        Doomed, name="doomed", ray_actor_options={"num_cpus": 0}, health_check_period_s=1
    )
    serve.run(doomed.bind(tmp_path, 2), name="doomed", route_prefix=None)
    try:
        with pytest.raises(EngineDead, match=r"lost to dying replicas 2 times.*libraries' log"):
            asyncio.run(Pool("doomed", retries=1).complete(REQUESTS, None))
        start = time.monotonic()
        for retries in (0, 1):  # a call that finds no replica, or loses it and finds no other
            with pytest.raises(EngineDead, match=r"no replica was there for 3 s; see `ray status`"):
                asyncio.run(Pool("doomed", retries, patience_s=3).complete(REQUESTS, None))
        print(f"given up within {time.monotonic() - start:.1f} s")
    finally:
        stop_pool("doomed")
