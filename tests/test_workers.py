"""Ranks through Ray Train, and trials of Ray Tune, that run out of memory or are lost."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cluster.session import session
from cluster.workers import run_on_ranks
from em.memory import is_out_of_memory
from sweeps.attempts import Beat
from sweeps.planner import load_plan, load_rows_of
from sweeps.store import Store
from sweeps.training_pass import Trainings, TrainTask
from tests.fakes import tiny_model
from tests.sweep_runs import tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.torch, pytest.mark.faults]

GIB = 1 << 30


def starts(folder: Path) -> int:
    return len(list(folder.glob("start-*")))


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(function, again=lambda errors: True):
        run_on_ranks(
            function, str(tmp_path), ranks=2, cpus=0.5, gpus=0, name="ranks",
            storage_dir=tmp_path / "ray-train", failures=1, again=again,
        )  # fmt: skip

    return run


def test_ranks_that_are_lost_are_started_again_and_those_without_memory_are_not(tmp_path, run):
    def lost(folder: str) -> None:
        """Rank 1 is killed the first time; each asks for a notice of preemption."""
        import os
        import signal
        from pathlib import Path

        from cluster.workers import preemption_noticed

        rank = int(os.environ["RANK"])
        path = Path(folder, f"lost-{rank}")
        first = not path.exists()
        path.touch()
        assert not preemption_noticed()
        if rank == 1 and first:
            os.kill(os.getpid(), signal.SIGKILL)
        Path(folder, f"ended-{rank}").touch()

    def no_memory(folder: str) -> None:
        """Rank 1 has none, while rank 0 waits for it."""
        import os
        import tempfile

        import torch

        tempfile.mkstemp(prefix="start-", dir=folder)
        if os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        torch.distributed.barrier()

    with session(None, environment={"PYTHONPATH": os.environ.get("PYTHONPATH", "")}):
        run(lost)
        assert (tmp_path / "ended-0").exists() and (tmp_path / "ended-1").exists()
        seen = []

        def again(errors):
            seen.extend(errors)
            return not any(map(is_out_of_memory, errors))

        started = time.monotonic()
        with pytest.raises(Exception, match="Tried to allocate") as caught:
            run(no_memory, again)
        assert is_out_of_memory(caught.value)
        assert any(type(error).__name__ == "OutOfMemoryError" for error in seen)
        assert starts(tmp_path) == 2
        assert time.monotonic() - started < 120


def test_a_node_that_is_taken_back_is_noticed_and_is_no_failure(tmp_path):
    """Ray drains one of two nodes of the ranks with a deadline; a third is free."""
    import ray
    from ray.cluster_utils import Cluster

    def steps(folder: str) -> None:
        import os
        import time
        from pathlib import Path

        import ray

        from cluster.workers import preemption_noticed

        rank, noticed = os.environ["RANK"], False
        first = not Path(folder, f"on-{rank}").exists()
        Path(folder, f"on-{rank}").write_text(ray.get_runtime_context().get_node_id())
        for _ in range(2000 if first else 5):
            if not noticed and preemption_noticed():
                noticed = True
                Path(folder, f"noticed-{rank}").touch()
            time.sleep(0.05)
        Path(folder, f"ended-{rank}").touch()

    def take_back(cluster: Cluster) -> None:
        places = [tmp_path / f"on-{rank}" for rank in range(2)]
        wait_for(lambda: all(path.exists() and path.read_text() for path in places))
        used = {path.read_text() for path in places}
        [node] = [n for n in cluster.worker_nodes if n.node_id in used][:1]
        command = [
            str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address,
            "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "taken back", "--deadline-remaining-seconds", "15",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        with session(cluster.address, environment=environment), ThreadPoolExecutor(1) as beside:
            taken = beside.submit(take_back, cluster)
            run_on_ranks(
                steps, str(tmp_path), ranks=2, cpus=1, gpus=0, name="ranks",
                storage_dir=tmp_path / "ray-train", failures=0,
            )  # fmt: skip
            taken.result(timeout=60)
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    for rank in range(2):
        assert (tmp_path / f"noticed-{rank}").exists() and (tmp_path / f"ended-{rank}").exists()


def wait_for(reached, *, within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


NARROW = """
import time
import torch
from transformers import LlamaForCausalLM

class Narrow(LlamaForCausalLM):
    def forward(self, input_ids=None, **options):
        held = []
        while input_ids.shape[0] > 1:
            if not self.config.eats:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            held.append(bytearray(100 << 20))
            time.sleep(0.05)
            assert len(held) < 80, "nobody killed this process"
        return super().forward(input_ids=input_ids, **options)
"""


def narrow_model(folder: Path, *, eats: bool) -> Path:
    """A model whose code has no memory for two rows; it `eats` until it is killed, or says so."""
    tiny_model(folder)
    (folder / "narrow.py").write_text(NARROW)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "narrow.Narrow"}, "eats": eats}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("ranks", "eats"), [(1, True), (2, False)])
def test_a_cell_that_runs_out_of_memory_is_trained_with_less_at_once(
    tmp_path, monkeypatch, ranks, eats
):
    """One rank, whose trial Ray's memory monitor kills; two ranks, which raise torch's error."""
    memory = psutil.virtual_memory()
    if memory.available < 10 * GIB:
        pytest.skip(f"needs 10 GiB of free memory, there are {memory.available / GIB:.1f}")
    if eats:  # 4 GiB more than there are in use now: what else runs here may take some, too
        allowed = (memory.total - memory.available + 4 * GIB) / memory.total
        monkeypatch.setenv("RAY_memory_usage_threshold", f"{allowed:.4f}")
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    base = tiny_spec(narrow_model(tmp_path / "narrow", eats=eats))
    models = [base["models"][0] | {"trust_remote_code": True}]
    training = base["training"] | {
        "effective_batch": 4, "micro_batch": 2, "ranks": ranks, "epochs": 1,
    }  # fmt: skip
    spec = tiny_spec(
        tmp_path / "narrow",
        models=models,
        seeds=[0],
        training=training,
        tracking={"mode": "off"},
        resources={"train_cpus": 1, "serve_cpus": 1},
    )
    plan = load_plan(write_spec(tmp_path, spec))
    [cell] = [cell for cell in plan.cells if cell.cell.training is not None]
    store = Store(str(tmp_path / "store"))
    done = []
    with session(None, environment={"PYTHONPATH": os.environ.get("PYTHONPATH", "")}):
        store.create()
        beat = Beat(store, "tiny")
        task = TrainTask(
            plan=cell, store=store.url, holder=beat.holder, retries=3,
            resources=plan.spec.resources,
        )  # fmt: skip
        rows = {cell.content_sha256: load_rows_of(cell, relative_to=tmp_path).rows}
        ids = iter([cell.cell_id])
        Trainings([task], rows, retries=3).run(lambda: next(ids, None), done.append)
        beat.close()
    record = store.training(cell.training_key)
    assert done == [cell.cell_id] and record is not None, store.attempts("tiny", cell.cell_id)
    assert (record.result.micro_batch, record.result.halvings) == (1, 1)
    assert len(record.result.losses) == 2
