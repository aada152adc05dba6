"""Files that a user reads: whole or not at all, and where they cannot be written it is said.

Knows nothing of stores or of what is in a file.
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from sweeps.disk import PARTIAL, sync, write_whole


def make_output_dir(folder: Path) -> None:
    """Make a folder that a user reads from. Raises ValueError where it cannot be."""
    with told(f"to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user reads, as `write_whole`. Raises ValueError where it cannot."""
    with told(path):
        write_whole(path, data)


@contextlib.contextmanager
def writing_output(path: Path) -> Iterator[Path]:
    """Yield where to write what becomes the file `path` once the block has ended well.

    Raises ValueError where it cannot become that; what the block raises is the block's.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
        with told(path):
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def told(what: object) -> Iterator[None]:
    """Raise ValueError, with what could not be written, for an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write {what}: {error.strerror or error}") from error
