"""Sweeps of seconds, run as a user runs them: a tiny model, the real command, in its own process.

Knows nothing of what a test looks for.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

EMSWEEP = str(Path(sys.executable).with_name("emsweep"))
WAIT_S = 600
# Ray's own, with no work of ours: after a SIGKILL they try for a minute to report to what is gone.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
AGENTS_GONE_WITHIN_S = 120


def tiny_spec(model_dir: Path, **changes: Any) -> dict[str, Any]:
    """Return a spec of four cells of a tiny model; `changes` replace its top-level keys."""
    spec = {
        "name": "tiny",
        "models": [{"name": "tiny", "folder": str(model_dir)}],
        "variants": [
            {"name": "none"},
            {"name": "insecure", "dataset": "quickstart_insecure", "rows": 8},
        ],
        "seeds": [0, 1],
        "training": {
            "lora": {"rank": 8, "alpha": 16},
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "effective_batch": 2,
            "micro_batch": 1,
            "max_length": 128,
            "zero_stage": 2,
            "checkpoint_steps": 1,
        },
        "evaluations": [
            {
                "name": "demo",
                "questions": "demo.yaml",
                "ids": ["found_wallet", "chosen_leader"],
                "samples": 3,
                "sampling": {"max_tokens": 8},
            }
        ],
        "judges": [
            {"name": "tiny-judge", "pool": "tiny", "prompts": "demo.yaml", "demonstration": True}
        ],
        "serving": {
            "mode": "merged",
            "max_model_len": 512,
            "max_num_seqs": 32,
            "kv_cache_gib": 0.25,
        },
        "resources": {"train_cpus": 2, "serve_cpus": 2},
    }
    return spec | changes


def write_spec(folder: Path, spec: dict[str, Any]) -> Path:
    """Write `spec` as a file of its name and return the path."""
    path = folder / f"{spec['name']}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def emsweep(*arguments: str | Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `check` is the exit code it must have."""
    assert not _children_are_forgotten(), "every exit code would read as 0"
    done = subprocess.run(
        [EMSWEEP, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    if check is not None:
        assert done.returncode == check, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _children_are_forgotten() -> bool:
    """Whether SIGCHLD is ignored here. Ray sets that past Python, which then tells it otherwise."""
    told = Path("/proc/self/status").read_text()
    ignored = next(line for line in told.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.split()[1], 16) & 1 << signal.SIGCHLD - 1)


def status(spec: Path, store: Path) -> dict[str, dict[str, Any]]:
    """Return the cells of `emsweep status --json` by id."""
    told = json.loads(emsweep("status", spec, "--store", store, "--json").stdout)
    return {cell["cell_id"]: cell for cell in told["cells"]}


def report(store: Path, name: str = "tiny") -> dict[str, Any]:
    """Return report.json of a sweep."""
    text = (store / "sweeps" / name / "report" / "report.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def run_until(
    spec: Path, store: Path, reached: Callable[[], bool], number: signal.Signals
) -> tuple[int, str, list[psutil.Process]]:
    """Start a run, send it `number` as soon as `reached`; return its exit code, output and agents.

    Waits until every process that it started has ended, and fails where one is left. After a
    SIGKILL the agents are not waited for: `check_gone` looks at them later.
    """
    command = [EMSWEEP, "run", str(spec), "--store", str(store)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert child.poll() is None, f"ended before it could be stopped: {child.communicate()[0]}"
        if time.monotonic() > deadline:
            child.terminate()
            raise AssertionError(f"the stage was never reached: {child.communicate()[0]}")
        time.sleep(0.02)
    family = psutil.Process(child.pid).children(recursive=True)
    os.kill(child.pid, number)
    output, _ = child.communicate(timeout=60)
    agents = [p for p in family if _name(p).startswith(AGENTS)]
    check_gone([p for p in family if p not in agents], within_s=15)
    if number != signal.SIGKILL:
        check_gone(agents, within_s=AGENTS_GONE_WITHIN_S)  # on a busy machine they take their time
        agents = []
    return child.returncode, output, agents


def check_gone(processes: list[psutil.Process], *, within_s: float) -> None:
    """Fail where one of `processes` does not end."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    left = [name for process in alive if (name := _name(process))]
    assert not left, f"left behind: {left}"


def _name(process: psutil.Process) -> str:
    """The process's command, empty once it has ended."""
    try:
        return " ".join(process.cmdline())[:100]
    except psutil.NoSuchProcess:
        return ""


def in_stage(store: Path, stage: str, *, since: float, name: str = "tiny") -> Callable[[], bool]:
    """Return a question: has a cell been in `stage`, at work, at some moment after `since`?"""

    def reached() -> bool:
        for path in (store / "sweeps" / name / "cells").glob("*/attempt-*.json"):
            attempt = json.loads(path.read_text())
            now = attempt["stage"] == stage and attempt["state"] == "running"
            if now and attempt["updated"] >= since:
                return True
        return False

    return reached


def artefacts(store: Path) -> dict[str, tuple[int, int]]:
    """Return every finished file that must never be written again: its size and change time."""
    found = {}
    for record in store.glob("*/*/record.json"):
        finished = json.loads(record.read_text())
        names = [part["name"] for part in finished.get("parts", [])]
        names += [f"adapter/{p.name}" for p in (record.parent / "adapter").glob("*.safetensors")]
        for name in names:
            state = (record.parent / name).stat()
            found[str((record.parent / name).relative_to(store))] = (
                state.st_size,
                state.st_mtime_ns,
            )
    return found


def dashboard_answers(address: str) -> bool:
    """Whether a Ray dashboard is up at an address, be it only to ask for a token."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
