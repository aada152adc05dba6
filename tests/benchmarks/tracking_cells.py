"""What a sweep of very many cells asks of W&B: runs a minute, rows, keys, and the memory it takes.

    python tests/benchmarks/tracking_cells.py [cells]        10,000 cells take about twelve minutes

The cells are finished by stand-ins and told to a stand-in that keeps everything in memory; the
clock is moved by the pace alone. Beside each number stands what W&B documents as its limit
(docs.wandb.ai/models/track/limits: runs and keys of a project, points of a key, bytes of a config;
rows of a table are the SDK's own). Sends nothing anywhere.
"""

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fake_wandb import FakeRun, FakeRuns
from finished_store import finish
from small_sweep import plan

from sweeps.publisher import Publisher
from sweeps.store import Store
from sweeps.wandb_runs import About

RUNS, KEYS, POINTS, ROWS, CONFIG_BYTES = 10_000, 10_000, 100_000, 10_000, 10 * 2**20


class TimedRuns(FakeRuns):
    """Keeps at what time of the moved clock each run was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.opened: list[float] = []

    def open(self, about: About) -> FakeRun:
        self.opened.append(self.clock)
        return super().open(about)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def most_in(self, seconds: float) -> int:
        """Return the most runs that were opened within so many seconds."""
        most = first = 0
        for last, end in enumerate(self.opened):
            while self.opened[first] <= end - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


def main(cells: int) -> None:
    """Print one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = plan(Path(folder), seeds=list(range(cells // 2)))  # each tuned, and untuned
        store = Store(f"{folder}/store")
        finish(sweep, store)
        runs = TimedRuns()
        publisher = Publisher(
            sweep, store, runs, say=print,  # type: ignore[arg-type]
            now=lambda: runs.clock, sleep=runs.sleep,
        )  # fmt: skip
        began = time.perf_counter()
        whole = publisher.look(last=True)
        took = time.perf_counter() - began
        print(json.dumps(told(runs, whole=whole, took=took)), flush=True)


def told(runs: TimedRuns, *, whole: bool, took: float) -> dict[str, Any]:
    """Return what was asked of W&B."""
    kept = list(runs.kept.values())
    return {
        "runs": len(kept),
        "all is sent": whole,
        "seconds of work": round(took, 1),
        "hours at its pace": round(runs.clock / 3600, 1),
        "runs in a minute, at most": runs.most_in(60),
        "runs in an hour, at most": runs.most_in(3600),
        "keys of all runs": len({key for k in kept for row in k.rows for key in row}),
        "points of a key in a run, at most": max(len(k.rows) for k in kept),
        "rows of a table, at most": max(len(t) for k in kept for t in k.tables.values()),
        "bytes of a config, at most": max(len(json.dumps(k.about.config)) for k in kept),
        "documented": [RUNS, KEYS, POINTS, ROWS, CONFIG_BYTES],
        "largest artifact, MiB": round(
            max(sum(map(len, a.files.values())) for k in kept for a in k.uploads) / 2**20, 1
        ),
        "MiB at the end, with all that was told": psutil.Process().memory_info().rss // 2**20,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
