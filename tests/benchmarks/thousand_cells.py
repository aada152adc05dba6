"""How long the driver takes for cells that take no time: Ray, Tune, the schedule and the store.

    python tests/benchmarks/thousand_cells.py [cells]      1,000 cells take a minute or two

Each cell is a trial of Ray Tune, a task that answers and judges it, and all of its records; what
they would do is done by stand-ins (tests/instant.py). Counted from when Ray is up.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from instant import InstantPools, carry_out
from small_sweep import plan

from cluster.session import session
from sweeps.attempts import statuses
from sweeps.console import QUIET, noise_to
from sweeps.planner import load_rows_of
from sweeps.progress import SweepProgress
from sweeps.store import Store

TESTS = str(Path(__file__).resolve().parent.parent)


def main(cells: int) -> None:
    """Print one line of JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sweep = plan(
            folder,
            variants=[{"name": "ours", "dataset": "ours.jsonl", "rows": 4}],
            seeds=list(range(cells)),
            resources={"train_cpus": 1, "serve_cpus": 0.01},
            tracking={"mode": "off"},
        )
        store = Store(f"{folder}/store")
        os.environ.update(QUIET)
        paths = os.pathsep.join([TESTS, str(Path(TESTS).parent)])
        with (
            noise_to(folder / "noise.txt") as out,
            session(None, environment=QUIET | {"PYTHONPATH": paths}),
        ):
            began = time.monotonic()
            progress = SweepProgress(out, {})
            carry_out(
                sweep, store, progress,
                lambda cell: load_rows_of(cell, relative_to=folder).rows, InstantPools(),
            )  # fmt: skip
            took = time.monotonic() - began
        states = Counter(item.state for item in statuses(sweep, store))
        told = {
            "cells": dict(states),
            "seconds after Ray is up": round(took, 1),
            "milliseconds a cell": round(1000 * took / cells, 1),
            "peak MiB of the driver": round(_peak_mib()),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        print(json.dumps(told), flush=True)


def _peak_mib() -> float:
    import resource

    assert psutil.LINUX
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
