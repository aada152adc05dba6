"""Which checkpoints of a training are whole, and belong to it.

The trainer writes a checkpoint file by file, so a process that is killed leaves a torn one. A mark,
written last and by rename, tells the two apart. Knows nothing of what a checkpoint holds.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

MARK = "whole.json"
WRITER = ("inline_container", "PytorchStreamWriter")  # in the errors of torch's writer
PROBE_BYTES = 2**20
NAME = re.compile(r"checkpoint-(\d+)")


def last_whole(folder: Path, key: str) -> Path | None:
    """Return the latest whole checkpoint under `folder`, or None.

    Raises ValueError where a checkpoint was marked with another key: it is of another training.
    """
    found: dict[int, Path] = {}
    for path, step in _checkpoints(folder):
        mark = _read_mark(path)
        if mark is None:
            continue
        if mark != key:
            raise ValueError(
                f"{path} is a checkpoint of another training (key {mark[:12]}, this one is "
                f"{key[:12]}): empty {folder}, or give this training its own folder"
            )
        found[step] = path
    return found[max(found)] if found else None


def step_of(path: Path) -> int:
    """Return the step after which the checkpoint `path` was written."""
    return int(path.name.rpartition("-")[2])


def remove_torn(folder: Path) -> list[Path]:
    """Remove the checkpoints without a mark, and return which those were."""
    torn = [path for path, _ in _checkpoints(folder) if _read_mark(path) is None]
    for path in torn:
        shutil.rmtree(path)
    return torn


def remove_from(folder: Path, step: int) -> None:
    """Remove the checkpoints of `step` and later ones: training does not go on from there."""
    for path, after in _checkpoints(folder):
        if after >= step:
            _remove(path)


@contextlib.contextmanager
def disk_asked(folder: Path) -> Iterator[None]:
    """Raise the disk's own OSError where torch cannot write a file below `folder`.

    Torch's writer of archives says that the file is not as long as it should be, and not why.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in WRITER):
            raise
        probe = folder / ".probe"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        raise OSError(errno.EIO, f"{os.strerror(errno.EIO)}: {error}", str(folder)) from error


def mark_whole(path: Path, key: str) -> None:
    """Say that every file of the checkpoint `path` has been written."""
    partial = path / f".{MARK}.part"
    partial.write_text(json.dumps({"key": key}))
    for file in path.rglob("*"):  # on the disk before the mark, and before older ones are removed
        sync(file)
    partial.replace(path / MARK)
    sync(path)


def remove_older(latest: Path) -> None:
    """Remove the checkpoints beside `latest`, which is whole. A kill here leaves them torn."""
    for path, _ in _checkpoints(latest.parent):
        if path != latest:
            _remove(path)


def _remove(path: Path) -> None:
    (path / MARK).unlink(missing_ok=True)  # first, so that half a checkpoint has no mark
    shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[tuple[Path, int]]:
    if not folder.is_dir():
        return []
    named = [(path, NAME.fullmatch(path.name)) for path in sorted(folder.iterdir())]
    return [(path, int(match[1])) for path, match in named if match and path.is_dir()]


def _read_mark(path: Path) -> str | None:
    try:
        return str(json.loads((path / MARK).read_text())["key"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # torn by a loss of power
        return None


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk, where its file system can say so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir():
            raise
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
