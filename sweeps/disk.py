"""Files of this machine's disk, or of one that is mounted here: written whole, and forced to it.

Knows nothing of what the files are, or of buckets.
"""

import contextlib
import errno
import os
import uuid
from pathlib import Path

PARTIAL = ".tmp"  # a file that is being written; never read
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # of file systems that have none


def write_whole(target: Path, data: bytes, *, forced: bool = True) -> None:
    """Write a local file: it is there whole or not at all; if `forced`, also after a loss of power.

    Raises OSError where it cannot; then nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if forced:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if forced:
        sync(target.parent)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)


def create_whole(target: Path, data: bytes) -> bool:
    """Write a file where none is yet, whole; whether this call did: one of many does.

    Not forced to the disk. Hard links are what NFS makes atomically. Where its answer is lost, the
    file may be there although this call says that it was not its own: see link(2).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        partial.write_bytes(data)
        os.link(partial, target)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True
