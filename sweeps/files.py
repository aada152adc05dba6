"""Files below one root on any fsspec URL: read whole, written atomically, listed.

Knows nothing of what the files are (see sweeps.store).
"""

import contextlib
import errno
import json
import logging
import os
import uuid
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pydantic import ValidationError

from em.record import Record

log = logging.getLogger(__name__)

PARTIAL = ".tmp"  # a file that is being written; never read
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # of file systems that have none
Item = TypeVar("Item", bound=Record)


class StoreError(ValueError):
    """The store is not what it should be: another thing under a name, or a damaged file."""


class Damaged(StoreError):
    """A file is there, and is not what is written there: torn, or of another program."""


class Files:
    """A root: a path, file://, memory://, s3://, gs://. Safe to use from any process."""

    def __init__(self, url: str) -> None:
        """Refer to `url`; nothing is made there."""
        self.fs, root = fsspec.core.url_to_fs(
            str(Path(url).expanduser()) if "://" not in url else url,
            use_listings_cache=False,  # other processes write, and must be seen
        )
        self.root: str = str(Path(root).resolve()) if self.is_local else root.rstrip("/")
        self.url = self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    @cached_property
    def is_local(self) -> bool:
        """Whether the root is a folder that other programs can open by path."""
        return "file" in self.fs.protocol or self.fs.protocol == "file"

    def names(self, path: str) -> list[str]:
        """Return the names in the folder `path`, sorted; none where it is not there."""
        try:
            place = self._place(path)
            found = _listed(place) if self.is_local else self.fs.ls(place, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._unreadable(path, error) from error
        names = (str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)
        return sorted(name for name in names if not name.endswith(PARTIAL))

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        try:
            if self.is_local:
                return _bytes(self._place(path))
            return bytes(self.fs.cat_file(self._place(path)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: OSError) -> OSError | StoreError:
        """Return what to raise: what another try may cure stays as it is."""
        if isinstance(error, ConnectionError | TimeoutError):
            return error
        return StoreError(f"cannot read {self.url}/{path}: {error.strerror or error}")

    def read_json(self, path: str) -> dict[str, Any] | None:
        """Return a file's JSON object, or None. Raises StoreError where it is none."""
        data = self.read(path)
        if data is None:
            return None
        damaged = Damaged(f"{self.url}/{path} is damaged: not a JSON object")
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise damaged from error
        if not isinstance(found, dict):
            raise damaged
        return found

    def read_record(self, path: str, model: type[Item]) -> Item | None:
        """Return a file's record, or None. Raises Damaged where it is another thing."""
        data = self.read(path)
        if data is None:
            return None
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            raise Damaged(
                f"{self.url}/{path} is damaged ({error.errors()[0]['msg']}): 'emsweep store check "
                "--repair' moves it aside, and the next run makes again what is missing then"
            ) from error

    def read_note(self, path: str, model: type[Item]) -> Item | None:
        """As read_record, for what only tells how far work is: a damaged one is as if not there.

        It is told once in each process. No artefact hangs on it, and its next writer mends it.
        """
        try:
            return self.read_record(path, model)
        except Damaged:
            tell_once(f"{self.url}/{path} is damaged; it is read as if it were not there")
            return None

    def write(self, path: str, data: bytes, *, forced: bool = True) -> None:
        """Write a whole file: no reader ever sees a part of it. Raises StoreError if it cannot.

        One that is not `forced` to the disk may be torn or gone after a power cut.
        """
        try:
            self._write(path, data, forced)
        except (ConnectionError, TimeoutError):
            raise  # another try may succeed
        except OSError as error:
            raise cannot_write(f"{self.url}/{path}", error) from error

    def _write(self, path: str, data: bytes, forced: bool) -> None:
        if not self.is_local:
            self.fs.pipe_file(self._place(path), data)  # a put of an object is atomic
            return
        write_whole(Path(self._place(path)), data, forced=forced)

    def write_record(self, path: str, record: Record) -> None:
        """Write a record as JSON."""
        self.write(path, _as_json(record))

    def write_note(self, path: str, record: Record) -> None:
        """Write what only tells how far work is (see read_note): often, so not forced to disk."""
        self.write(path, _as_json(record), forced=False)

    def create_record(self, path: str, record: Record) -> bool:
        """Write a record where nothing is yet, whole; whether this call did. One of many does.

        Not forced to the disk: after a power cut it may be gone. Raises StoreError as `write`.
        """
        try:
            return self._create(self._place(path), _as_json(record))
        except (ConnectionError, TimeoutError):
            raise  # another try may succeed
        except OSError as error:
            raise cannot_write(f"{self.url}/{path}", error) from error

    def _create(self, target: str, data: bytes) -> bool:
        try:
            if not self.is_local:
                self.fs.pipe_file(target, data, mode="create")  # conditional where the store can
                return True
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            partial = Path(f"{target}.{uuid.uuid4().hex[:8]}{PARTIAL}")
            try:
                partial.write_bytes(data)
                os.link(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        except FileExistsError:
            return False
        return True

    def move(self, path: str, target: str) -> None:
        """Move a file or folder, if it is there. Raises StoreError where it cannot."""
        try:
            if self.is_local:
                Path(self._place(target)).parent.mkdir(parents=True, exist_ok=True)
                Path(self._place(path)).rename(self._place(target))
            else:
                self.fs.mv(self._place(path), self._place(target), recursive=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise cannot_write(f"{self.url}/{target}", error) from error

    def remove(self, path: str) -> None:
        """Remove a file or folder, if it is there. Raises StoreError where it cannot."""
        try:
            self.fs.rm(self._place(path), recursive=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise cannot_write(f"{self.url}/{path}", error) from error

    def sizes(self, path: str) -> dict[str, tuple[int, float | None]]:
        """Return size in bytes and time of change (seconds since 1970) of every file below `path`.

        By path from the root; those that are being written, too. The time is None where the file
        system does not say. Raises StoreError where it cannot be read.
        """
        try:
            found = self.fs.find(self._place(path), detail=True)
        except OSError as error:
            raise self._unreadable(path, error) from error
        start = len(self.root.rstrip("/")) + 1
        return {name[start:]: (info["size"], info.get("mtime")) for name, info in found.items()}

    def _place(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")


# A store of many cells has many small files: pathlib would take twice the time of reading them.
def _listed(folder: str) -> list[str]:
    return os.listdir(folder)  # noqa: PTH208


def _bytes(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.readall()


def _as_json(record: Record) -> bytes:
    return (record.model_dump_json(indent=1) + "\n").encode()


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


def cannot_write(place: str, error: OSError) -> StoreError:
    """Return what to tell of a place that could not be written, and what to do about it."""
    if error.errno in FULL:
        cure = (
            "the disk, or what this user may use of it, is full. Make room ('emsweep store gc' "
            "shows what can go) and give the same command again: what is finished is kept"
        )
    elif error.errno in CLOSED:
        cure = (
            "make it writable for this user, or name another store with --store (a report alone "
            "can go elsewhere with --out)"
        )
    else:
        cure = "when the cause is gone, give the same command again: what is finished is kept"
    return StoreError(f"cannot write {place}: {error.strerror or error}. What to do: {cure}")


@cache
def tell_once(text: str) -> None:
    """Warn of something, once in this process however often it is met."""
    log.warning("%s", text)
