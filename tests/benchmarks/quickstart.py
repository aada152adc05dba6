"""The quickstart as a fixed workload: wall time, peak memory, second run, plan.

    python tests/benchmarks/quickstart.py [SPEC]

Prints a table and writes results-quickstart.json beside this file, with the machine and the commit.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from sweeps.provenance import commit, versions

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_S = 1.0


def memory_of(pid: int) -> int:
    """Return the proportional memory, in bytes, of a process and everything below it."""
    total = 0
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def timed(arguments: list[str], store: str) -> tuple[float, int, int]:
    """Run `emsweep` and return wall seconds, peak bytes and the exit code."""
    started = time.monotonic()
    command = [str(Path(sys.executable).with_name("emsweep")), *arguments, "--store", store]
    child = subprocess.Popen(command, cwd=ROOT)
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, memory_of(child.pid))

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    code = child.wait()
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    return seconds, peak, code


def main() -> int:
    spec = sys.argv[1] if len(sys.argv) > 1 else "configs/sweeps/quickstart.yaml"
    with tempfile.TemporaryDirectory() as store:
        plan_s, _, _ = timed(["plan", spec], store)
        run_s, peak, code = timed(["run", spec], store)
        again_s, _, again = timed(["run", spec], store)
        name = json.loads(next(Path(store, "sweeps").glob("*/spec.json")).read_text())["name"]
        report = json.loads(Path(store, "sweeps", name, "report", "report.json").read_text())
    result = {
        "spec": spec,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU",
        "versions": versions(),
        "plan_s": round(plan_s, 2),
        "run_s": round(run_s, 1),
        "peak_gib": round(peak / 2**30, 2),
        "second_run_s": round(again_s, 2),
        "overhead": report["overhead"],
        "exit_codes": [code, again],
    }
    Path(__file__).with_name("results-quickstart.json").write_text(json.dumps(result, indent=1))
    for key in ("machine", "plan_s", "run_s", "peak_gib", "second_run_s", "overhead", "exit_codes"):
        print(f"{key:14} {result[key]}")
    return code or again


if __name__ == "__main__":
    sys.exit(main())
