"""What W&B costs the cells: in a training itself, and by the process that sends, beside it.

    python tests/benchmarks/tracking.py        about four minutes

The worst case: the nine cells of the recorded quickstart, which took minutes to make, are sent at
once, online to a stand-in for W&B's server and offline, while every core computes. The same work
is timed with and without it, in turn, in one run. Sends nothing anywhere.
"""

import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recorded import recorded
from wandb_backend import wandb_backend

from em.training import LossPoint
from sweeps.attempts import Beat
from sweeps.live import LiveLog
from sweeps.results import stage_seconds
from sweeps.settings import TrackingConfig
from sweeps.store import Store
from sweeps.tracking import Tracking

PAIRS = 5
WORK_S = 8.0  # about half of what sending takes
STEPS = 2_000


def main() -> None:
    """Print one line of JSON a measurement."""
    os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        told("in a training", **in_a_training(folder / "live"))
        rounds = calibrated()
        for mode in ("offline", "online"):
            told(f"beside it, {mode}", **beside(folder / mode, mode, rounds))


def told(what: str, **numbers: Any) -> None:
    """Print what was measured."""
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"what": what} | numbers | machine), flush=True)


def in_a_training(folder: Path) -> dict[str, float]:
    """Time what a training does for each step, over a training of STEPS steps of a second."""
    store = Store(str(folder))
    clock = [0.0]
    log = LiveLog(store, "0" * 64, now=lambda: clock[0])
    began = time.perf_counter()
    for step in range(1, STEPS + 1):
        log.add(LossPoint(step=step, loss=1.0, learning_rate=1e-5))
        clock[0] += 1.0
    spent = time.perf_counter() - began
    return {"steps of 1 s": STEPS, "ms a step": 1000 * spent / STEPS, "share": spent / STEPS}


def calibrated() -> int:
    """Return how many rounds of work take about WORK_S seconds."""
    began = time.perf_counter()
    work(10)
    return max(10, int(WORK_S / (time.perf_counter() - began) * 10))


def work(rounds: int) -> None:
    """Compute on every core, as training and engines do."""
    matrix = np.random.default_rng(0).normal(size=(1200, 1200)).astype(np.float32)
    for _ in range(rounds):
        matrix @ matrix


def timed(rounds: int) -> float:
    """Return the seconds that the work takes."""
    began = time.perf_counter()
    work(rounds)
    return time.perf_counter() - began


def beside(folder: Path, mode: str, rounds: int) -> dict[str, float]:
    """Time the work with nothing beside it and with a sweep being sent, in turn."""
    ratios, processor, made = [], 0.0, 1.0
    for number in range(PAIRS):
        alone = timed(rounds)
        with sending(folder / str(number), mode) as process:
            ratios.append(timed(rounds) / alone)
            processor, made = finished(process)
    return {
        "work slowed down by, median": statistics.median(ratios) - 1,
        "least": min(ratios) - 1,
        "most": max(ratios) - 1,
        "processor seconds to send all": processor,
        "seconds that the cells took": made,
        "share of the cells' processor time": processor / made / (os.cpu_count() or 1),
    }


class Sending:
    """The recorded sweep, and the process that sends it."""

    def __init__(self, folder: Path, mode: str) -> None:
        sweep, self.store = recorded(folder)
        tracking = TrackingConfig(mode=mode)  # type: ignore[arg-type]
        spec = sweep.spec.model_copy(update={"tracking": tracking})
        self.sweep = sweep.model_copy(update={"spec": spec})
        self.beat = Beat(self.store, spec.name)
        self.tracking = Tracking(self.sweep, self.store, self.beat.driver, lambda text: None)


@contextmanager
def sending(folder: Path, mode: str) -> Iterator[Sending]:
    """Have the recorded sweep sent during the block."""
    folder.parent.mkdir(exist_ok=True)
    server: Any = wandb_backend() if mode == "online" else nullcontext()
    with server as backend:
        if backend is not None:
            os.environ |= {"WANDB_BASE_URL": backend.url, "WANDB_API_KEY": "x" * 40}
        one = Sending(folder, mode)
        one.tracking.start()
        try:
            yield one
        finally:
            one.tracking.close(at_once=True)
            one.beat.close()


def finished(one: Sending) -> tuple[float, float]:
    """Wait until all is sent; return its processor seconds, and how long the cells took."""
    used = [0.0]
    process = psutil.Process(one.tracking.pid)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            with contextlib.suppress(psutil.Error):
                every = [process, *process.children(recursive=True)]
                times = [p.cpu_times() for p in every]
                used[0] = max(used[0], sum(t.user + t.system for t in times))

    thread = threading.Thread(target=watch)
    thread.start()
    one.tracking.close()
    done.set()
    thread.join()
    cells = one.sweep.cells
    seconds = [stage_seconds(c, judging, one.store) for c in cells for judging in c.judgings]
    return used[0], sum(sum(stages.values()) for stages in seconds)


if __name__ == "__main__":
    main()
