"""Files of the store are torn, damaged, gone or cannot be written: nothing is lost."""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix import Case, slow_unless
from world import Stage, World

from sweeps.failures import CellFailure
from sweeps.files import StoreError
from sweeps.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.torch]

KINDS = {"generate": "responses", "judge": "judgements"}
STAGES = ("generate", "judge")
MIB = 2**20


def streams(store: Store, stage: str) -> list[Path]:
    """The folders of what `stage` makes, the one with the most parts first."""
    folders = Path(store.url, KINDS[stage]).iterdir()
    return sorted(folders, key=lambda folder: (-len(list(folder.glob("part-*"))), folder))


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {"torn": tear, "flipped bit": flip, "empty": empty, "gone": Path.unlink}


def on_parts(*damages: str) -> list[object]:
    return [
        pytest.param(damage, stage, marks=pytest.mark.fault(f"parquet: {damage}", stage))
        for damage in damages
        for stage in STAGES
    ]


@pytest.mark.parametrize(("damage", "stage"), on_parts("torn", "flipped bit", "empty", "gone"))
def test_a_damaged_part_of_unfinished_work_is_made_again_and_no_other(
    damage: str, stage: str, world: World, case: Case, tmp_path: Path
) -> None:
    """As a kill (or a disk) may leave it: parts and no record yet, one part not whole."""
    store = world.finished_store(tmp_path / "store")
    unfinished = streams(store, stage)[0]
    part, *others = sorted(unfinished.glob("part-*"))
    assert others
    before = {path: path.stat().st_mtime_ns for path in others}
    DAMAGES[damage](part)
    (unfinished / "record.json").unlink()
    case.happened("it is ignored and made again; the whole parts are kept")
    with case.recovery():
        assert world.run(store) == {world.cell.cell_id: None}
    assert {path: path.stat().st_mtime_ns for path in others} == before
    world.check_as_undisturbed(store)


def recorded(*damages: str) -> list[object]:
    return [
        pytest.param(damage, stage, marks=pytest.mark.fault(f"recorded parquet: {damage}", stage))
        for damage in damages
        for stage in STAGES
    ]


@pytest.mark.parametrize(("damage", "stage"), recorded("flipped bit", "gone"))
def test_a_damaged_part_of_finished_work_is_told_and_made_again_as_told(
    damage: str, stage: str, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.finished_store(tmp_path / "store")
    folder = streams(store, stage)[0]
    DAMAGES[damage](min(folder.glob("part-*")))
    with pytest.raises(StoreError, match=folder.name):
        world.check_as_undisturbed(store)
    case.happened("reading says which folder to remove; it is made again")
    with case.recovery():
        shutil.rmtree(folder)
        assert world.run(store) == {world.cell.cell_id: None}
    world.check_as_undisturbed(store)


@pytest.mark.parametrize(
    ("damage", "stage"),
    [
        pytest.param(
            damage,
            stage,
            marks=[
                pytest.mark.fault(f"record.json: {damage}", stage),
                *slow_unless(stage != "train"),
            ],
        )
        for damage in ("torn", "empty")
        for stage in ("train", *STAGES)
    ],
)
def test_a_torn_record_is_told_and_once_removed_its_work_is_taken_over(
    damage: str, stage: str, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.finished_store(tmp_path / "store")
    kind = KINDS.get(stage, "training")
    record = min(Path(store.url, kind).glob("*/record.json"))
    parts = {path: path.stat().st_mtime_ns for path in record.parent.glob("part-*")}
    DAMAGES[damage](record)
    with pytest.raises(StoreError, match=f"{record}.*store check --repair"):
        world.run(store)
    again = "trained again, to the same bytes" if stage == "train" else "its parts are taken over"
    case.happened(f"the run says which file to remove; {again}")
    with case.recovery():
        record.unlink()
        assert world.run(store) == {world.cell.cell_id: None}
    assert {path: path.stat().st_mtime_ns for path in record.parent.glob("part-*")} == parts
    world.check_as_undisturbed(store)


@pytest.mark.faults
@pytest.mark.fault("adapter: flipped bit", "generate")
def test_a_damaged_adapter_is_not_spoken_with(world: World, case: Case, tmp_path: Path) -> None:
    store = world.store_before("generate", tmp_path / "store")
    adapter = next(Path(store.url, "training").glob("*/adapter/*.safetensors"))
    flip(adapter)
    (failure,) = world.run(store, tries=3).values()
    assert isinstance(failure, CellFailure) and failure.kind == "gate"
    assert "identity gate" in failure.message and "remove the training's folder" in failure.message
    case.happened("the cell fails by a gate; trained again as told, to the same bytes")
    with case.recovery():
        shutil.rmtree(adapter.parents[1])
        assert world.run(store) == {world.cell.cell_id: None}
    world.check_as_undisturbed(store)


# What cannot be written ----------------------------------------------------------------------


def stopped_clearly(world: World, store: Store) -> str:
    """Run to where the store cannot be written; return what was said."""
    try:
        (outcome,) = world.run(store, tries=3).values()
    except StoreError as error:  # not even the sign of life
        return str(error)
    assert isinstance(outcome, CellFailure) and outcome.kind == "disk or store", outcome
    return outcome.message


@contextlib.contextmanager
def mounted(folder: Path, mib: int) -> Iterator[Path]:
    """A disk of `mib` MiB at the new `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def filled(disk: Path, left: int) -> Path:
    """Fill `disk` until `left` bytes are free; return the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        file.write(bytes(free - left))
    return ballast


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        pytest.param(
            stage, left,
            marks=[pytest.mark.fault(f"disk full ({left // 1024} KiB)", stage),
                   *slow_unless(left == 24 * 1024)],
        )
        for stage, left in [
            ("train", 96 * 1024), ("generate", 24 * 1024), ("judge", 24 * 1024), ("judge", 0)
        ]
    ],
)  # fmt: skip
def test_a_full_disk_stops_clearly_and_nothing_is_lost(
    stage: Stage, left: int, world: World, case: Case, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", 32) as disk:
        store = world.store_before(stage, disk / "store")
        ballast = filled(disk, left)
        assert "No space left" in stopped_clearly(world, store)
        case.happened("stops: no space left; resumed once there is")
        ballast.unlink()
        with case.recovery():
            assert world.run(store) == {world.cell.cell_id: None}
        world.check_as_undisturbed(store)


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=pytest.mark.fault("files of 4 KiB at most", s)) for s in STAGES]
)
def test_a_limit_on_files_stops_clearly_and_nothing_is_lost(
    stage: Stage, world: World, case: Case, tmp_path: Path
) -> None:
    """As a quota on one user: small files can be written, a part cannot."""
    store = world.store_before(stage, tmp_path / "store")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        told = stopped_clearly(world, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in told and KINDS[stage] in told
    case.happened("stops: the part cannot be written; resumed once it can")
    with case.recovery():
        assert world.run(store) == {world.cell.cell_id: None}
    world.check_as_undisturbed(store)


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(s, marks=[pytest.mark.fault("read-only store", s), *slow_unless(s != "train")])
        for s in ("train", "generate", "judge")
    ],
)
def test_a_read_only_store_stops_clearly(
    stage: Stage, world: World, case: Case, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", 32) as disk:
        store = world.store_before(stage, disk / "store")
        before = sorted(disk.rglob("*"))
        with read_only(disk):
            assert "Read-only file system" in stopped_clearly(world, store)
        assert sorted(disk.rglob("*")) == before
        case.happened("stops before anything is paid for; resumed once writable")
        with case.recovery():
            assert world.run(store) == {world.cell.cell_id: None}
        world.check_as_undisturbed(store)
