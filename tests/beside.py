"""What a test has other processes do with a store. Light, as each of them imports it anew.

Knows nothing of what a test looks for.
"""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from em.record import Record
from sweeps.artefacts import TrainingRecord
from sweeps.files import Files
from sweeps.leases import HeldElsewhere, Holder, holding
from sweeps.store import Store

WAIT_S = 120
# A forked process has its parent's connections to a bucket and no thread that serves them.
SPAWN = multiprocessing.get_context("spawn")


class Note(Record):
    """Who wrote it."""

    by: int


def run_beside(do: Any, arguments: list[tuple[Any, ...]]) -> list[int | None]:
    """Run `do` in one process for each tuple of `arguments` and return their exit codes."""
    children = [SPAWN.Process(target=do, args=each) for each in arguments]
    for child in children:
        child.start()
    for child in children:
        child.join(WAIT_S)
    return [child.exitcode for child in children]


def create(url: str, by: int, num_files: int, ready: Any, made: Any) -> None:
    """Create files that others create at the same time; tell which ones this process did."""
    files = Files(url)
    files.names("")  # connected, before all begin
    ready.wait(WAIT_S)
    made.put((by, [files.create_record(f"{n}.json", Note(by=by)) for n in range(num_files)]))


class KilledFiles(Files):
    """Files of a process that is killed while it fetches."""

    def fetch_folder(self, path: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.safetensors").write_text("the wei")
        os.kill(os.getpid(), signal.SIGKILL)


def fetch(url: str, record: TrainingRecord, killed: bool, ready: Any) -> None:
    """Fetch an adapter that others fetch at the same time."""
    ready.wait(WAIT_S)
    Store(url, KilledFiles(url) if killed else None).adapter_dir(record)


def take_often(url: str, key: str, inside: Path, name: str, turns: int) -> None:
    """Take the key again and again; while it is held, nobody else may be inside."""
    store = Store(url)
    done = 0
    while done < turns:
        try:
            with holding(store, [key], Holder(name, "s")):
                fd = os.open(inside, os.O_CREAT | os.O_EXCL)
                os.close(fd)
                inside.unlink()
            done += 1
        except HeldElsewhere:
            continue
