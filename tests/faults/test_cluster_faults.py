"""Processes of a cluster are killed under a sweep as its user runs it: drivers, workers, a node.

One Ray of two nodes serves all cases; drivers join it and leave it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from matrix import Case
from processes import family, in_stage, named, once, worked_s
from sweep_runs import EMSWEEP, tiny_spec, write_spec
from world import Stage, World, check_same

from sweeps.planner import make_plan
from sweeps.spec import SweepSpec
from sweeps.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.faults,
    pytest.mark.timeout(900),
]

# The pool takes one node, training the other.
HEAD = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 128 * 2**20}
SECOND = {"num_cpus": 2, "object_store_memory": 128 * 2**20}
WAIT_S = 420


def cluster_spec(model: Path, **training: Any) -> dict[str, Any]:
    """Two cells, one of them trained for twelve steps; answers long enough to be hit."""
    base = tiny_spec(model)
    (evaluation,) = base["evaluations"]
    return base | {
        "variants": [
            {"name": "none"},
            {"name": "insecure", "dataset": "quickstart_insecure", "rows": 24},
        ],
        "seeds": [0],
        "training": base["training"] | training,
        "evaluations": [evaluation | {"samples": 6, "sampling": {"max_tokens": 200}}],
        "resources": {"train_cpus": 2 / training.get("ranks", 1), "serve_cpus": 2},
        "tracking": {"mode": "off"},
        "retries": 2,
    }


class Ray:
    """A cluster of two nodes on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args=HEAD)
        self._second = self._cluster.add_node(**SECOND)
        self.address = str(self._cluster.address)
        self.drivers: list[subprocess.Popen[bytes]] = []

    def raylets(self) -> list[psutil.Process]:
        nodes = [self._cluster.head_node, self._second]
        return [psutil.Process(_raylet(node)) for node in nodes]

    def workers(self, *names: str) -> list[psutil.Process]:
        """The processes whose titles, as Ray sets them, have one of `names`."""
        return [process for name in names for process in named(name, self.raylets())]

    def lose_second(self) -> None:
        """Kill the second node's raylet."""
        os.kill(_raylet(self._second), signal.SIGKILL)

    def replace_second(self) -> None:
        """Have another node join in the place of the lost one."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(**SECOND)

    def close(self) -> None:
        for driver in self.drivers:  # a case that failed may have left one
            driver.kill()
            driver.wait()
        left = [process for raylet in self.raylets() for process in family(raylet)]
        self._cluster.shutdown()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=15)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@dataclass
class Served:
    """The cluster, the undisturbed run, and how to run again."""

    ray: Ray
    world: World
    spec: Path
    logs: Path

    def start(self, store: Store) -> "subprocess.Popen[bytes]":
        """Start a driver; what it says is in a file."""
        command = [EMSWEEP, "run", str(self.spec), "--store", store.url]
        with (self.logs / f"driver-{time.monotonic_ns()}.log").open("wb") as log:
            driver = subprocess.Popen(
                [*command, "--address", self.ray.address], stdout=log, stderr=subprocess.STDOUT
            )
        self.ray.drivers.append(driver)
        return driver

    def finish(self, driver: "subprocess.Popen[bytes]") -> None:
        """Wait for a driver to end well."""
        try:
            code = driver.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            driver.kill()
            code = "not ended"
        said = max(self.logs.glob("driver-*.log")).read_text()
        assert code == 0, f"{code}\n{said[-3000:]}"


def make(ray: Ray, folder: Path, spec: dict[str, Any]) -> Served:
    sweep = make_plan(SweepSpec.model_validate(spec), relative_to=folder)
    world = World(folder, sweep, None, Store(str(folder / "undisturbed")))
    served = Served(ray, world, write_spec(folder, spec), folder)
    served.finish(served.start(world.whole))
    return served


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    with pytest.MonkeyPatch.context() as patch:
        # As a session of ours sets it: what a killed worker leaves is ended by its raylet.
        patch.setenv("RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper", "true")
        cluster = Ray()
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture(scope="module")
def served(ray: Ray, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make(ray, tmp_path_factory.mktemp("cluster"), cluster_spec(tiny))


def training(store: Store) -> bool:
    """Whether a first checkpoint is whole and the training has not ended."""
    return any(Path(store.url).glob("training/*/attempt-*/checkpoints/checkpoint-*/whole.json"))


def engines(ray: Ray) -> list[psutil.Process]:
    return ray.workers("EngineCore")


def under_way(served: Served, store: Store, stage: Stage) -> Callable[[], bool]:
    """Whether `stage` is at work: a checkpoint is there, or the engine has computed for it."""
    seen: list[float] = []

    def reached() -> bool:
        if stage == "train":
            return training(store)
        if not in_stage(store, stage):
            return False
        now = worked_s([p for core in engines(served.ray) for p in family(core)])
        seen.append(now)
        return now > seen[0] + 0.3

    return reached


def check(served: Served, store: Store) -> None:
    check_same(served.world.sweep, store, served.world.whole, values=False)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(s, marks=pytest.mark.fault("driver: SIGKILL", s))
        for s in ("train", "generate", "judge")
    ],
)
def test_a_killed_driver_is_followed_by_another(
    stage: Stage, served: Served, case: Case, tmp_path: Path
) -> None:
    store = served.world.store_before(stage, tmp_path / "store")
    driver = served.start(store)
    with once(under_way(served, store, stage), driver.kill):
        assert driver.wait(WAIT_S) == -signal.SIGKILL
    case.happened("run goes on at once; the pool left behind is stopped")
    with case.recovery():
        served.finish(served.start(store))
    check(served, store)


@pytest.mark.fault("driver: SIGKILL, its pool holds all", "generate")
def test_the_pool_of_a_killed_driver_is_not_in_the_way_of_training(
    ray: Ray, served: Served, tiny: Path, case: Case, tmp_path: Path
) -> None:
    """Two replicas hold both nodes; the training is to be made again, then."""
    base = cluster_spec(tiny)
    tight = base | {"serving": base["serving"] | {"replicas": 2}}
    world = served.world
    turns = Served(ray, world, write_spec(tmp_path, tight), tmp_path)
    store = world.store_before("generate", tmp_path / "store")
    driver = turns.start(store)
    with once(under_way(turns, store, "generate"), driver.kill):
        assert driver.wait(WAIT_S) == -signal.SIGKILL
    shutil.rmtree(Path(store.url, "training"))
    case.happened("the next driver stops that pool before it trains")
    with case.recovery():
        turns.finish(turns.start(store))
    check(turns, store)


TRIAL = ("ray::ImplicitFunc.train",)


@pytest.mark.parametrize(
    ("names", "stage"),
    [
        pytest.param(TRIAL, "train", marks=pytest.mark.fault("trial actor: SIGKILL", "train")),
        pytest.param(
            ("ray::ServeReplica",), "generate",
            marks=pytest.mark.fault("Serve replica: SIGKILL", "generate"),
        ),
        pytest.param(
            ("ray::ServeReplica",), "judge",
            marks=pytest.mark.fault("Serve replica: SIGKILL", "judge"),
        ),
        pytest.param(
            ("EngineCore",), "generate",
            marks=pytest.mark.fault("pool's engine: SIGKILL", "generate"),
        ),
        pytest.param(
            ("ray::_evaluate_remotely",), "generate",
            marks=pytest.mark.fault("evaluation task: SIGKILL", "generate"),
        ),
    ],
)  # fmt: skip
def test_a_killed_worker_is_replaced_and_the_run_goes_on(
    names: tuple[str, ...], stage: Stage, served: Served, case: Case, tmp_path: Path
) -> None:
    store = served.world.store_before(stage, tmp_path / "store")
    killed: list[int] = []

    def kill() -> None:
        for process in served.ray.workers(*names):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)

    driver = served.start(store)
    with once(under_way(served, store, stage), kill) as hits:
        served.finish(driver)
    case.took(time.monotonic() - hits[0])
    assert killed
    case.happened("the run goes on by itself and ends well")
    check(served, store)


@pytest.mark.fault("raylet of the second node: SIGKILL", "train")
def test_a_lost_node_takes_its_training_with_it_and_another_node_goes_on(
    served: Served, case: Case, tmp_path: Path
) -> None:
    store = served.world.store_before("train", tmp_path / "store")

    lost = threading.Event()

    def lose() -> None:
        served.ray.lose_second()
        lost.set()

    driver = served.start(store)
    with once(under_way(served, store, "train"), lose) as hits:
        assert lost.wait(WAIT_S)
        served.ray.replace_second()  # here: Ray starts nodes in the main thread only
        served.finish(driver)
    case.took(time.monotonic() - hits[0])
    case.happened("the training goes on from its checkpoint on the node that joins")
    check(served, store)


@pytest.mark.fault("two drivers at once", "all")
def test_two_drivers_of_one_sweep_do_nothing_twice(
    served: Served, case: Case, tmp_path: Path
) -> None:
    store = served.world.store_before("train", tmp_path / "store")
    with case.recovery():
        drivers = [served.start(store) for _ in range(2)]
        for driver in drivers:
            served.finish(driver)
    case.happened("both end well; nothing is done twice")
    check(served, store)
    trained = [
        attempt
        for cell in served.world.sweep.cells
        for attempt in store.attempts("tiny", cell.cell_id)
        if attempt.state == "failed"
    ]
    assert trained == []
    for kind in ("responses", "judgements"):
        for record in Path(store.url).glob(f"{kind}/*/record.json"):
            told = json.loads(record.read_text())
            made = sum(part["rows"] for part in told["parts"])
            wanted = sum(b - a for ranges in told["covers"].values() for a, b in ranges)
            assert made == wanted, f"{kind}/{record.parent.name} was made twice"


@pytest.mark.fault("Ray Train worker: SIGKILL (2 ranks)", "train")
def test_a_killed_rank_restarts_its_group_from_the_checkpoint(
    ray: Ray, tiny: Path, case: Case, tmp_path: Path
) -> None:
    served = make(ray, tmp_path, cluster_spec(tiny, ranks=2))
    store = served.world.store_before("train", tmp_path / "store")
    killed: list[int] = []

    def kill() -> None:
        rank = ray.workers("RayTrainWorker")[0]
        rank.kill()
        killed.append(rank.pid)

    driver = served.start(store)
    with once(under_way(served, store, "train"), kill) as hits:
        served.finish(driver)
    case.took(time.monotonic() - hits[0])
    assert killed
    case.happened("Ray Train restarts both ranks, from the last checkpoint")
    check(served, store)


@pytest.mark.fault("raylet of a node with one of two ranks: SIGKILL", "train")
def test_a_lost_node_takes_one_of_two_ranks_with_it_and_both_go_on_when_there_is_room(
    ray: Ray, tiny: Path, case: Case, tmp_path: Path
) -> None:
    """Each rank takes a whole node; the one that is left waits for another node to join."""
    spec = cluster_spec(tiny, ranks=2) | {"resources": {"train_cpus": 2, "serve_cpus": 2}}
    served = make(ray, tmp_path, spec)
    store = served.world.store_before("train", tmp_path / "store")
    lost = threading.Event()

    def lose() -> None:
        assert len(ray.workers("RayTrainWorker")) == 2
        ray.lose_second()
        lost.set()

    driver = served.start(store)
    with once(under_way(served, store, "train"), lose) as hits:
        assert lost.wait(WAIT_S)
        ray.replace_second()
        served.finish(driver)
    case.took(time.monotonic() - hits[0])
    case.happened("both ranks go on from the last checkpoint, on the node that joins")
    check(served, store)
