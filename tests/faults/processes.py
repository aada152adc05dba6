"""Which processes of the system run below another one, and how to hit them while they work.

Knows nothing of what they are hit for.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from sweeps.store import Store

LOOK_S = 0.01
WAIT_S = 300.0


def named(part: str, below: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The processes below those of `below` that have `part` in their command."""
    found = {}
    for parent in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in parent.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if part in " ".join(process.cmdline()):
                        found[process.pid] = process
    return list(found.values())


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and those below it."""
    return [process, *process.children(recursive=True)]


def worked_s(processes: Sequence[psutil.Process]) -> float:
    """The seconds that living processes have computed."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.cpu_times().user
    return total


def in_stage(store: Store, stage: str) -> bool:
    """Whether an attempt at some cell of the store is in `stage` now."""
    for path in Path(store.url).glob("sweeps/*/cells/*/attempt-*.json"):
        sweep, cell = path.parts[-4], path.parts[-2]
        for attempt in store.attempts(sweep, cell):
            if attempt.stage == stage and attempt.state == "running":
                return True
    return False


@contextlib.contextmanager
def once(reached: Callable[[], bool], hit: Callable[[], None]) -> Iterator[list[float]]:
    """Have `hit` called as soon as `reached` is true during the block; fail where it never was.

    Yields a list that then holds the moment of the hit, in seconds of the monotonic clock. What
    either raises is raised at the end of the block.
    """
    ended, hits = threading.Event(), list[float]()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            if reached():
                hits.append(time.monotonic())
                hit()
                return

    with ThreadPoolExecutor(1) as beside:
        watching = beside.submit(watch)
        try:
            yield hits
        finally:
            ended.set()
    watching.result()
    assert hits, "the moment of the fault was never reached"
