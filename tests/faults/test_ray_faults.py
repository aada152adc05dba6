"""Workers of Ray are killed under a driver's passes: one Ray and one engine serve all cases.

The fast part of what test_cluster_faults does with whole drivers and a pool of each one's own.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from matrix import Case
from processes import family, in_stage, named, once, worked_s
from sweep_runs import tiny_spec
from world import Stage, World, check_same

from cluster.requests import PoolConfig
from cluster.serving import start_pool, stop_pool
from cluster.session import session
from sweeps.attempts import Beat
from sweeps.console import QUIET
from sweeps.endpoints import engine_config, merge
from sweeps.evaluation_pass import EvaluationTask, evaluate_cells
from sweeps.failures import Outcome
from sweeps.plan import CellPlan, SweepPlan
from sweeps.planner import load_rows_of, make_plan
from sweeps.pools import fetch_weights
from sweeps.registry import register
from sweeps.spec import SweepSpec
from sweeps.store import Store
from sweeps.training_pass import Trainings, TrainTask

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.faults,
]

POOL = "shared"
CPUS = 1.0  # of the engine, which waits while cells train: the other is for them


def spec_of(model: Path) -> SweepSpec:
    """One cell, trained for twelve steps; answers long enough to be hit."""
    base = tiny_spec(model)
    (evaluation,) = base["evaluations"]
    changed: dict[str, Any] = {
        "variants": [{"name": "insecure", "dataset": "quickstart_insecure", "rows": 24}],
        "seeds": [0],
        "evaluations": [evaluation | {"samples": 40, "sampling": {"max_tokens": 60}}],
        "resources": {"train_cpus": 1, "serve_cpus": CPUS},
        "tracking": {"mode": "off"},
        "retries": 2,
    }
    return SweepSpec.model_validate(base | changed)


def drive(sweep: SweepPlan, store: Store, folder: Path) -> dict[str, Outcome]:
    """Train and evaluate what the store lacks, in a driver's two passes; return how cells ended."""
    store.create()
    register(sweep, store)
    beat = Beat(store, sweep.spec.name)
    source: queue.Queue[EvaluationTask | None] = queue.Queue()
    outcomes: dict[str, Outcome] = {}

    def ended(cell: CellPlan, outcome: Outcome) -> None:
        outcomes[cell.cell_id] = outcome

    def task(cell: CellPlan) -> EvaluationTask:
        return EvaluationTask(
            plan=cell, spec=sweep.spec, store=store.url, holder=beat.holder, pools={"tiny": POOL}
        )

    try:
        lacking = [cell for cell in sweep.cells if store.training(cell.training_key) is None]
        if lacking:
            ids = iter([cell.cell_id for cell in lacking])
            Trainings(
                [
                    TrainTask(
                        plan=cell, store=store.url, holder=beat.holder,
                        retries=sweep.spec.retries,
                        resources=sweep.spec.resources,
                    )
                    for cell in lacking
                ],
                {c.content_sha256 or "": load_rows_of(c, relative_to=folder).rows for c in lacking},
                retries=sweep.spec.retries,
            ).run(lambda: next(ids, None), lambda cell_id: None)  # fmt: skip
        for cell in sweep.cells:
            source.put(task(cell))
        source.put(None)
        evaluate_cells(
            source, at_once=1, retries=sweep.spec.retries, on_answered=lambda cell: None,
            on_done=ended, stop=threading.Event(),
        )  # fmt: skip
    finally:
        beat.close()
    return outcomes


@dataclass(frozen=True)
class Shared:
    """The undisturbed run, made with the Ray and the engine that are there."""

    sweep: SweepPlan
    world: World

    def drive(self, store: Store) -> None:
        """Carry out what `store` lacks; fail where a cell does not end well."""
        assert set(drive(self.sweep, store, self.world.folder).values()) == {None}


@pytest.fixture(scope="module")
def shared(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    from ray import serve

    folder = tmp_path_factory.mktemp("shared")
    spec = spec_of(tiny)
    sweep = make_plan(spec, relative_to=folder)
    engine = engine_config(spec.models[0], spec.serving, spec.training, spec.resources)
    before = dict(os.environ)
    with session(None, environment=QUIET):
        start_pool(
            PoolConfig(POOL, lambda: engine, num_cpus=CPUS, num_gpus=0),
            merge,
            fetch_weights,
        )
        try:
            world = World(folder, sweep, None, Store(str(folder / "undisturbed")))
            made = Shared(sweep, world)
            made.drive(world.whole)
            yield made
        finally:
            stop_pool(POOL)
            serve.shutdown()  # else it keeps this Ray's controller for the next Ray of this process
    os.environ.clear()  # nor does another test's cluster start with what this one was given
    os.environ.update(before)
    assert workers("EngineCore") == []


def workers(name: str) -> list[psutil.Process]:
    """The processes of this Ray whose titles have `name`."""
    return named(name, [psutil.Process()])


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        pytest.param(
            "ray::ImplicitFunc.train", "train",
            marks=pytest.mark.fault("trial actor: SIGKILL, one Ray for all", "train"),
        ),
        *(
            pytest.param(
                "ray::_evaluate_remotely", stage,
                marks=pytest.mark.fault("evaluation task: SIGKILL, one Ray for all", stage),
            )
            for stage in ("generate", "judge")
        ),
    ],
)  # fmt: skip
def test_a_killed_worker_is_replaced_and_the_cell_ends_as_undisturbed(
    name: str, stage: Stage, shared: Shared, case: Case, tmp_path: Path
) -> None:
    store = shared.world.store_before(stage, tmp_path / "store")
    engine = [process.pid for process in workers("EngineCore")]
    before: list[float] = []

    def under_way() -> bool:
        if stage == "train":
            pieces = "training/*/attempt-*/checkpoints/checkpoint-*/whole.json"
            return any(Path(store.url).glob(pieces))
        if not in_stage(store, stage):
            return False
        before.append(worked_s([p for core in workers("EngineCore") for p in family(core)]))
        return before[-1] > before[0] + 0.05

    killed: list[int] = []

    def kill() -> None:
        for process in workers(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)

    with once(under_way, kill) as hits:
        shared.drive(store)
    case.took(time.monotonic() - hits[0])
    assert killed
    assert [process.pid for process in workers("EngineCore")] == engine
    case.happened("another worker goes on; the engine is the same")
    check_same(shared.sweep, store, shared.world.whole, values=False)
