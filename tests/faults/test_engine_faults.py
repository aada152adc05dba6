"""The vLLM engine dies or hangs while it answers or judges; another one takes its place."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from carrying import carry_out
from matrix import Case
from processes import family, in_stage, named, once, worked_s
from sweep_runs import tiny_spec
from world import Stage, World, check_same

from sweeps.engines import Engines, start_engine
from sweeps.planner import make_plan
from sweeps.spec import SweepSpec
from sweeps.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.vllm, pytest.mark.faults]

STALL_LIMIT_S = 8.0


def served_spec(model: Path) -> SweepSpec:
    """Two cells that one engine answers and judges; answers long enough to be hit."""
    base = tiny_spec(model)
    (evaluation,) = base["evaluations"]
    changed = {
        "seeds": [0],
        "evaluations": [evaluation | {"samples": 6, "sampling": {"max_tokens": 200}}],
        "serving": base["serving"] | {"stall_limit_s": STALL_LIMIT_S},
        "tracking": {"mode": "off"},
    }
    return SweepSpec.model_validate(base | changed)


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Engines]]:
    """The undisturbed run, and the engines that made it, which live on."""
    folder = tmp_path_factory.mktemp("served")
    spec = served_spec(tiny)
    sweep = make_plan(spec, relative_to=folder)
    world = World(folder, sweep, None, Store(str(folder / "undisturbed")))
    engines = Engines(spec.models, start_engine(spec))
    try:
        outcomes = carry_out(sweep, world.whole.url, folder, engines)
        assert set(outcomes.values()) == {None}
        yield world, engines
    finally:
        engines.close()
        assert cores() == []


def cores() -> list[psutil.Process]:
    return named("EngineCore", [psutil.Process()])


def kill() -> None:
    for core in cores():
        core.kill()


def stop() -> None:
    for core in cores():
        for process in family(core):
            process.suspend()


def under_way(store: Store, stage: Stage) -> Callable[[], bool]:
    """Whether the engine has computed for `stage`, beyond the gates before its work."""
    seen: list[float] = []

    def reached() -> bool:
        if not in_stage(store, stage):
            return False
        now = worked_s([process for core in cores() for process in family(core)])
        seen.append(now)
        return now > seen[0] + 0.3

    return reached


@pytest.mark.parametrize(
    ("hit", "stage"),
    [
        pytest.param(hit, stage, marks=pytest.mark.fault(f"engine: {name}", stage))
        for name, hit in [("SIGKILL", kill), ("SIGSTOP", stop)]
        for stage in ("generate", "judge")
    ],
)
def test_an_engine_is_replaced_under_way(
    hit: Callable[[], None],
    stage: Stage,
    served: tuple[World, Engines],
    case: Case,
    tmp_path: Path,
) -> None:
    world, engines = served
    engines.start(["tiny"])
    store = world.store_before(stage, tmp_path / "store")
    (before,) = cores()
    with once(under_way(store, stage), hit) as hits:
        outcomes = carry_out(world.sweep, store.url, world.folder, engines, tries=2)
    case.took(time.monotonic() - hits[0])
    assert set(outcomes.values()) == {None}
    (after,) = cores()
    assert after.pid != before.pid
    case.happened("the cell is tried again with a new engine")
    check_same(world.sweep, store, world.whole, values=False)


@pytest.mark.fault("engine: SIGKILL while nobody asks", "generate")
def test_an_engine_that_died_unnoticed_is_replaced_when_asked(
    served: tuple[World, Engines], case: Case, tmp_path: Path
) -> None:
    world, engines = served
    engines.start(["tiny"])
    store = world.store_before("generate", tmp_path / "store")
    (before,) = cores()
    before.kill()
    before.wait(30)
    time.sleep(1)
    with case.recovery():
        outcomes = carry_out(world.sweep, store.url, world.folder, engines, tries=2)
    assert set(outcomes.values()) == {None}
    case.happened("a new engine is started for the next cell")
    check_same(world.sweep, store, world.whole, values=False)
