"""A sweep sent to a running Ray cluster as a job, and followed, over its HTTP address."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from em.catalogue import CACHE_ENV
from tests.fakes import tiny_model
from tests.sweep_runs import EMSWEEP, dashboard_answers, report, tiny_spec, write_spec

# Two minutes, of which the faults have room.
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.faults]

START_S = 90


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def token() -> dict[str, str]:
    """The environment of those who may speak to the cluster."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture
def cluster(token: dict[str, str]) -> Iterator[str]:
    """The dashboard's address of a one-node cluster of its own, ended with everything below it."""
    port, dashboard, agent = _free_port(), _free_port(), _free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
               "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
               f"--dashboard-agent-listen-port={agent}",
               "--disable-usage-stats"]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    head = subprocess.Popen(
        command,
        start_new_session=True,
        env=os.environ | token | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + START_S
    while not dashboard_answers(address):
        assert head.poll() is None, "ray start ended"
        assert time.monotonic() < deadline, "the dashboard did not come up"
        time.sleep(0.5)
    yield address
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(timeout=5)  # SIGTERM did not end it within 20 s either
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)


def test_a_submitted_sweep_is_followed_to_its_end(
    cluster: str, token: dict[str, str], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    base = tiny_spec(model)
    spec = write_spec(tmp_path, base | {"variants": base["variants"][:1], "seeds": [0]})
    place = tmp_path / "project"
    place.mkdir()
    shutil.copy(spec, place / "tiny.yaml")
    store = tmp_path / "store"

    def run(*arguments: str, code: int = 0, env: dict[str, str] = token) -> str:
        done = subprocess.run(
            [EMSWEEP, *arguments], cwd=place, capture_output=True, text=True,
            timeout=300, check=False, env=os.environ | {CACHE_ENV: str(tmp_path / "cache")} | env,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    wrong = token | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    submit = ("submit", "tiny.yaml", "--store", str(store), "--address", cluster)
    refused = run(*submit, code=2, env=wrong)
    assert "RAY_AUTH_TOKEN" in refused
    assert "Traceback" not in refused

    assert "emsweep logs" in run(*submit)
    log = run("logs", "tiny.yaml", "-f")
    assert "1 finished" in log
    assert "SUCCEEDED" in log
    assert report(store)["cells"][0]["counts"]["responses"] == 6
    assert json.loads((store / "sweeps" / "tiny" / "spec.json").read_text())["name"] == "tiny"
