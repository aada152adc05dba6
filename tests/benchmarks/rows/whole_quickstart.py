"""One whole quickstart, timed, by the code of any tree of this project: P3 and P6 read it.

Knows nothing of what is made of the time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.parts import ROOT

HERE, FIRST = "here", "first"  # this tree, and the one that P6 unpacks
LOOK_S = 1.0
SPEC = "configs/sweeps/quickstart.yaml"
# Not what is timed: a converted model is in the cache of whoever has run it once.
WARM_UP = (
    "import sweeps; from em.models import ModelConfig, materialise; "
    "materialise(ModelConfig(name='smollm2-135m', bundled='smollm2-135m')); print(sweeps.__file__)"
)


def first_tree(folder: str) -> Path:
    """Return where the first version is unpacked."""
    return Path(folder).resolve() / FIRST


def whole(folder: str, version: str) -> dict[str, Any]:
    """Run the quickstart of a version (HERE, FIRST), from the command to its end, in a new store.

    Python's bytecode is compiled and the model converted before. Raises RuntimeError where the code
    is another tree's or the run does not end well.
    """
    tree = ROOT if version == HERE else first_tree(folder)
    environment = os.environ | {"PYTHONPATH": str(tree)}
    packages = [str(tree / name) for name in ("em", "cluster", "sweeps")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *packages], check=True)
    told = subprocess.run(
        [sys.executable, "-c", WARM_UP], cwd=tree, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    if not Path(told.stdout.strip().splitlines()[-1]).is_relative_to(tree):
        raise RuntimeError(f"{version}: other code would run, that of {told.stdout.strip()}")
    with tempfile.TemporaryDirectory(prefix="emsweep-quickstart-", dir=folder) as store:
        command = [str(Path(sys.executable).with_name("emsweep")), "run", SPEC, "--store", store]
        began = time.monotonic()
        code, peak = _watched(command, tree, environment)
        wall_s = time.monotonic() - began
        if code:
            raise RuntimeError(f"the quickstart, {version}, ended with {code}")
        report = json.loads(Path(store, "sweeps/quickstart/report/report.json").read_text())
    cells = report["cells"]
    return {
        "wall_s": wall_s,
        "peak_mib": peak / 2**20,
        "overhead": report["overhead"],
        "cells": sum(cell["state"] == "finished" for cell in cells),
        "judged": sum(cell["counts"]["responses"] for cell in cells),
        "failed": sum(cell["counts"]["failed"] for cell in cells),
    }


def _watched(command: Sequence[str], tree: Path, environment: Mapping[str, str]) -> tuple[int, int]:
    """Run a command; its exit code, and the most bytes that it and all below it had at a look."""
    child, peak = subprocess.Popen(command, cwd=tree, env=environment), 0
    while True:
        try:
            return child.wait(LOOK_S), peak
        except subprocess.TimeoutExpired:
            peak = max(peak, _memory_of(child.pid))


def _memory_of(pid: int) -> int:
    """The proportional memory, in bytes, of a process and everything below it."""
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
