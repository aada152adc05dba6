"""Disks that are full, stores that cannot be written, torn files, clocks that are set.

On real files and real limits of the system.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from finished_store import Asked, finish, finish_cell, trainer, tree

from em.record import Record
from sweeps.artefacts import Attempt, DriverBeat, Provenance
from sweeps.attempts import Beat, statuses
from sweeps.disk import write_whole
from sweeps.failures import CellFailure, OnStage, attempt_cell, record_failure
from sweeps.files import Files, StoreError
from sweeps.outcomes import Outcomes
from sweeps.plan import SweepPlan
from sweeps.progress import Counted, SweepProgress
from sweeps.provenance import Moment, provenance
from sweeps.registry import check_same, known, register
from sweeps.report import write_report
from sweeps.selection import cells_to_do
from sweeps.store import Store
from sweeps.store_check import check_store
from sweeps.store_targets import everything
from sweeps.times import overhead
from sweeps.tracking import Tracking
from sweeps.training_pass import Telling

NOBODY = 65534
ROOM = 2**20  # bytes of the small disk


class Item(Record):
    key: str
    text: str


# A full disk -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount; the limit on a file's size below is the same fault")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def filled(folder: Path, *, leave: int) -> Path:
    """Fill the disk under `folder` up to `leave` bytes; return the file that takes the room."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - leave))
    return ballast


@pytest.mark.parametrize(
    ("leave", "size"), [(64 * 1024, 300_000), (32 * 1024, 64), (16 * 1024, 64), (4 * 1024, 64)]
)
def test_a_full_disk_ends_in_named_failures_and_room_on_it_in_the_same_table(
    small_disk: Path, sweep: SweepPlan, tmp_path: Path, leave: int, size: int
) -> None:
    store = Store(str(small_disk / "store"))
    finish(sweep.model_copy(update={"cells": sweep.cells[:1]}), store)
    kept = tree(store)
    ballast = filled(small_disk, leave=leave)
    asked = Asked()

    def work(on_stage: OnStage) -> None:
        for cell in sweep.cells:
            finish_cell(cell, store, asked, trainer(asked, "", size))

    failed = attempt_cell(store, "small", sweep.cells[1].cell_id, "d", work, first_stage="train")
    assert failed is not None
    assert "No space left on device" in failed.message
    half = tree(store)
    assert {path: half[path] for path in kept} == kept  # nothing that was finished is touched
    assert [path for path in half if path.endswith(".tmp")] == []
    assert check_store(store, everything(store)).damages == ()

    ballast.unlink()
    finish(sweep, store)
    undisturbed = Store(str(tmp_path / "undisturbed"))
    finish(sweep, undisturbed)

    def parts(store: Store) -> dict[str, bytes]:
        return {path: data for path, data in tree(store).items() if path.endswith(".parquet")}

    assert parts(store) == parts(undisturbed)
    assert check_store(store, everything(store)).damages == ()


def test_a_file_that_finds_no_room_is_told_with_what_to_do(small_disk: Path) -> None:
    files = Files(str(small_disk))
    filled(small_disk, leave=8192)
    files.write("old.json", b"old")
    with pytest.raises(StoreError, match=r"cannot write .*new\.json: No space left.*store gc"):
        files.write("new.json", b"x" * 100_000)
    with pytest.raises(StoreError, match="No space left"):
        files.write("old.json", b"x" * 100_000)
    assert files.read("old.json") == b"old"
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "old.json"]


LIMITED = """
import resource, sys
from pathlib import Path
from sweeps.files import StoreError
from tests.test_store_faults import Item
from sweeps.store import Store

store = Store(sys.argv[1])
store.create()
small = store.write_part("responses", "a" * 64, [Item(key="a", text="small")])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
many = [Item(key=str(n), text=f"{n}" * 40) for n in range(2000)]
try:
    store.write_part("responses", "a" * 64, many)
except StoreError as error:
    print(error)
print(store.unrecorded_parts("responses", "a" * 64) == [small])
"""


def test_a_limit_on_the_size_of_files_is_told_too(tmp_path: Path) -> None:
    """What a full disk is where none can be made: the write stops in the middle."""
    said = python(LIMITED, tmp_path / "store")
    message, unharmed = said.splitlines()
    assert "part-" in message
    assert "File too large" in message
    assert "Make room" in message
    assert unharmed == "True"
    names = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(names) == 2, names  # store.json and the first part


def python(script: str, *arguments: object) -> str:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
        check=False, cwd=root, env=os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


THREADS = """
import sys
import psutil
from sweeps.store import Store
from tests.test_store_faults import Item

store = Store(sys.argv[1])
part = store.write_part("responses", "a" * 64, [Item(key=str(n), text="x") for n in range(2000)])
before = psutil.Process().num_threads()
store.read_part("responses", "a" * 64, part, Item)
print(psutil.Process().num_threads() - before)
"""


def test_reading_starts_no_threads(tmp_path: Path) -> None:
    """pyarrow's abort a process that ends soon after a read, one time in five."""
    assert python(THREADS, tmp_path) == "0\n"


# A store that cannot be written ------------------------------------------------------------------

CLOSED = """
import os, sys
from pathlib import Path
from sweeps.console import noise_to
from sweeps.files import StoreError
from sweeps.options import log_path
from sweeps.store import Store

store = Store(sys.argv[1])
if os.geteuid() == 0:
    os.setresuid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))  # root may write anywhere

def log():
    with noise_to(log_path(store, "s")):
        pass

for do in (
    lambda: store.files.write("responses/x/record.json", b"{}"),
    lambda: store.attempt_dir("a" * 64, "d"),
    lambda: store.files.move("store.json", "damaged/store.json"),
    lambda: store.files.remove("store.json"),
    log,
):
    try:
        do()
    except ValueError as error:
        print(error)
print(store.files.read("store.json").decode())
"""


def test_a_store_of_another_user_is_told_with_what_to_do() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        Store(str(folder / "store")).create()
        (folder / "store" / "logs").mkdir()
        for path in (folder / "store" / "logs", folder / "store"):
            path.chmod(0o555)
        before = sorted(folder.rglob("*"))
        try:
            said = python(CLOSED, folder / "store", NOBODY).splitlines()
        finally:
            (folder / "store").chmod(0o755)
        assert sorted(folder.rglob("*")) == before
    *refused, marker = said
    assert len(refused) == 5
    assert all("Permission denied" in line for line in refused)
    assert all("make it writable" in line for line in refused[:4])
    assert json.loads(marker) == {"format": 2}


def test_a_report_that_cannot_be_written_is_told(
    store: Store, sweep: SweepPlan, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").mkdir()  # no file can take its place
    with pytest.raises(ValueError, match=r"cannot write .*report\.json"):
        write_report(sweep, store, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_a_write_that_fails_at_its_end_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    (tmp_path / "y").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "y", b"data")  # a folder cannot be replaced by a file
    assert [path.name for path in tmp_path.iterdir()] == ["y"]
    write_whole(target, b"data")
    assert target.read_bytes() == b"data"


# Notes that cannot be written in the middle of a run ---------------------------------------------


def unwritable(store: Store) -> None:
    """Nothing can be noted of the sweep any more: a file stands where a folder is to be."""
    sweeps = Path(store.url, "sweeps")
    sweeps.rename(Path(store.url, "was-sweeps")) if sweeps.exists() else None
    sweeps.write_text("")


def test_finished_work_stays_finished_where_its_end_cannot_be_noted(store: Store) -> None:
    done = []

    def work(on_stage: OnStage) -> None:
        on_stage("judge")
        done.append(1)
        unwritable(store)

    assert attempt_cell(store, "s", "cell", "d", work, first_stage="judge") is None
    assert done == [1]


def test_what_failed_is_returned_where_it_cannot_be_noted(store: Store) -> None:
    def work(on_stage: OnStage) -> None:
        unwritable(store)
        raise RuntimeError("the cause")

    failed = attempt_cell(store, "s", "cell", "d", work, first_stage="judge")
    assert failed is not None
    assert (failed.error_class, failed.message) == ("RuntimeError", "the cause")


def test_nothing_is_begun_that_cannot_be_noted(store: Store) -> None:
    unwritable(store)
    begun = []
    failed = attempt_cell(store, "s", "c", "d", lambda on: begun.append(1), first_stage="train")
    assert begun == []
    assert failed is not None
    assert (failed.stage, failed.error_class, failed.transient) == ("train", "StoreError", False)


def test_a_failure_that_cannot_be_noted_is_told_and_ends_the_run(
    store: Store, sweep: SweepPlan
) -> None:
    beat = Beat(store, "small")
    out = StringIO()
    untracked = Tracking(sweep, store, beat.driver, print)  # never started
    cell = sweep.cells[0]
    progress = SweepProgress(out, {"train": [cell.cell_id]})
    outcomes = Outcomes(sweep.spec, store, beat, progress, untracked)
    failure = CellFailure(
        cell_id=cell.cell_id, stage="judge", error_class="E", message="the cause", kind="unknown"
    )
    unwritable(store)
    with pytest.raises(StoreError, match="cannot write"):
        outcomes.failed(cell, failure)
    assert f"FAILED in judge: {cell.cell_id}: the cause" in out.getvalue()
    beat.close()  # and what the run ended with is not hidden by this


def test_tune_is_not_told_of_a_store_that_takes_nothing_but_the_run_is() -> None:
    told = []

    def on_done(cell_id: str) -> None:
        told.append(cell_id)
        if cell_id != "a":
            raise StoreError(f"cannot write {cell_id}")

    telling = Telling(on_done)
    telling("a")
    telling.check()
    telling("b")
    telling("c")
    with pytest.raises(StoreError, match="cannot write b"):
        telling.check()
    assert told == ["a", "b", "c"]


# Torn notes --------------------------------------------------------------------------------------


def tear(path: Path, data: bytes | None) -> None:
    path.write_bytes(path.read_bytes()[:20] if data is None else data)


@pytest.mark.parametrize("data", [None, b"", b"\x00" * 40, b"[]"])
def test_torn_notes_stop_nothing_and_are_told_once(
    store: Store, sweep: SweepPlan, caplog: pytest.LogCaptureFixture, data: bytes | None
) -> None:
    finish(sweep, store)
    cell = sweep.cells[0].cell_id
    for number in (1, 2):
        store.write_attempt(
            "small", cell,
            Attempt(attempt=number, stage="train", state="failed", updated=1, driver="d"),
        )  # fmt: skip
    beat = DriverBeat(driver="d", host="h", pid=1, started=1, updated=2)
    store.write_record("sweeps/small/drivers/d.json", beat)
    root = Path(store.url, "sweeps/small")
    torn = [root / f"cells/{cell}/attempt-0001-d.json", root / "drivers/d.json", root / "spec.json"]
    for path in torn:
        tear(path, data)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            check_same(sweep, store)
            assert [status.state for status in statuses(sweep, store)] == ["finished"] * 4
    assert cells_to_do(sweep, store, retry_failed=False) == []
    for path in torn:
        assert sum(f"{path} is damaged" in text for text in caplog.messages) == 1
    assert known(sweep, store)
    failure = CellFailure(cell_id=cell, stage="train", error_class="E", message="m", kind="unknown")
    record_failure(store, "small", "other", failure)
    assert [a.attempt for a in store.attempts("small", cell)] == [2, 3]  # none is overwritten
    register(sweep, store)
    assert json.loads(torn[2].read_text())["name"] == "small"


def test_a_torn_last_attempt_is_written_anew(store: Store) -> None:
    first = Attempt(attempt=1, stage="train", state="failed", updated=1, driver="d")
    store.write_attempt("s", "c", first)
    store.write_attempt("s", "c", first.model_copy(update={"attempt": 2}))
    tear(Path(store.url, "sweeps/s/cells/c/attempt-0002-d.json"), None)
    assert attempt_cell(store, "s", "c", "e", lambda on: None, first_stage="judge") is None
    assert [(a.attempt, a.state) for a in store.attempts("s", "c")] == [
        (1, "failed"),
        (2, "finished"),
    ]


def test_a_store_whose_marker_is_torn_says_how_it_is_mended(store: Store) -> None:
    marker = Path(store.url, "store.json")
    marker.write_text("")
    with pytest.raises(StoreError, match=r'damaged: not a JSON object.*write \{"format": 2\}'):
        store.check()
    marker.write_text('{"format": 2}')
    store.check()


# Clocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_how_long_work_took_is_not_told_by_the_wall_clock(jump: float) -> None:
    before = Moment(wall=time.time() + jump, tick=time.monotonic() - 2)  # the clock was set since
    made = provenance(started=before)
    assert made.started == before.wall
    assert 2 <= made.seconds < 60


def test_a_clock_that_was_set_back_gives_no_negative_times(store: Store, sweep: SweepPlan) -> None:
    finish(sweep, store)
    for name, updated in (("a", 40.0), ("b", 150.0)):
        beat = DriverBeat(
            driver=name, host="h", pid=1, started=100, updated=updated, finished=True,
            starts={"Ray": (105, 101)},
        )  # fmt: skip
        store.write_record(f"sweeps/small/drivers/{name}.json", beat)
    found = overhead(sweep, store)
    assert (found.wall, found.stage_work, found.starts) == (50, 0, 0)
    assert found.per_cell == 50 / 4


def test_a_start_takes_as_long_as_it_takes(store: Store) -> None:
    beat = Beat(store, "s")
    with beat.starting("Ray"):
        time.sleep(0.01)
    beat.close()
    began, ended = store.drivers("s")[0].starts["Ray"]
    assert 0.01 <= ended - began < 60


def test_an_old_record_of_a_negative_time_is_still_read() -> None:
    old = Provenance(commit=None, versions={}, host="h", started=1, seconds=-3, device="d")
    assert Provenance.model_validate_json(old.model_dump_json()) == old


# What a long check shows -------------------------------------------------------------------------


def test_counting_says_how_far_it_is_but_not_for_every_one() -> None:
    often, seldom = StringIO(), StringIO()
    each = Counted(often, "checked", 4, every_s=0)
    calm = Counted(seldom, "checked", 4)
    for _ in range(4):
        each.step()
        calm.step()
    lines = often.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"checked {n}/4" for n in (1, 2, 3, 4)]
    assert lines[3].endswith("about 0 s left")
    assert seldom.getvalue() == ""
