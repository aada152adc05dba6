"""A sweep sent to a cluster whose nodes have addresses of their own; one of them is lost."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from em.catalogue import CACHE_ENV
from tests.fakes import tiny_model
from tests.namespaces import Nodes, NoNamespaces, ray_nodes
from tests.sweep_runs import EMSWEEP, report, tiny_spec, write_spec

pytestmark = [
    pytest.mark.slow, pytest.mark.ray, pytest.mark.torch, pytest.mark.vllm, pytest.mark.faults,
    pytest.mark.timeout(1200),
]  # fmt: skip

WAIT_S = 300
RANK = "RayTrainWorker"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and two nodes, of two CPUs each."""
    try:
        with ray_nodes(2, cpus=2) as found:
            yield found
    except NoNamespaces as error:
        pytest.skip(f"no network namespaces can be made here: {error}")


def test_a_node_with_a_rank_is_lost_and_the_sweep_ends_on_the_others(
    nodes: Nodes, tmp_path: Path
) -> None:
    """Two ranks take two of the three nodes. The one that is lost never comes back."""
    base = tiny_spec(tiny_model(tmp_path / "model"))
    spec = write_spec(tmp_path, base | {
        "seeds": [0],
        "variants": [{"name": "insecure", "dataset": "quickstart_insecure", "rows": 64}],
        "training": base["training"] | {"ranks": 2},
        "resources": {"train_cpus": 2, "serve_cpus": 2},
        "tracking": {"mode": "off"},
        "retries": 2,
    })  # fmt: skip
    place, store = tmp_path / "project", tmp_path / "store"
    place.mkdir()
    shutil.copy(spec, place / "tiny.yaml")

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [EMSWEEP, *arguments], cwd=place, capture_output=True, text=True, timeout=900,
            check=False,
            env=os.environ | {CACHE_ENV: str(tmp_path / "cache")} | nodes.environment,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    there = ("tiny.yaml", "--store", str(store), "--address", nodes.dashboard)
    assert "preflight passed" in run("plan", *there)
    run("submit", *there)
    deadline = time.monotonic() + WAIT_S
    while not list(store.glob("training/*/attempt-*/checkpoints/checkpoint-*/whole.json")):
        assert time.monotonic() < deadline, run("logs", "tiny.yaml")
        time.sleep(0.1)
    lost = nodes.with_worker(RANK)[0]  # of two, on two nodes, one at most is on the head
    nodes.lose(lost)
    assert list(store.glob("training/*/record.json")) == []  # it was hit in its training

    log = run("logs", "tiny.yaml", "-f")
    assert "1 finished" in log, log
    assert nodes.with_worker("raylet") == [n for n in ("emsweep1", "emsweep2") if n != lost]
    (cell,) = report(store)["cells"]
    assert cell["state"] == "finished" and cell["counts"]["responses"] == 6
