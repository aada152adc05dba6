"""Files below one root on any fsspec URL: read whole, written atomically, listed.

Knows nothing of what the files are (see sweeps.store).
"""

import contextlib
import errno
import json
import logging
import os
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pydantic import ValidationError

from em.record import Record
from sweeps import buckets
from sweeps.buckets import python_errors
from sweeps.disk import PARTIAL, create_whole, write_whole

log = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
Item = TypeVar("Item", bound=Record)


class StoreError(ValueError):
    """The store is not what it should be: another thing under a name, or a damaged file."""


class Damaged(StoreError):
    """A file is there, and is not what is written there: torn, or of another program."""


class Files:
    """A root: a path, file://, memory://, s3://, gs://. Safe to use from any process."""

    def __init__(self, url: str) -> None:
        """Refer to `url`; nothing is made there, and nothing is asked.

        Raises StoreError where its package is not installed, or it names no bucket.
        """
        protocol = url.partition("://")[0]
        try:
            self.fs, root = fsspec.core.url_to_fs(
                str(Path(url).expanduser()) if "://" not in url else url,
                use_listings_cache=False,  # other processes write, and must be seen
                **buckets.options(protocol),
            )
        except ImportError as error:
            raise StoreError(_not_installed(url, error)) from error
        buckets.without_own_tries(self.fs)
        if buckets.is_bucket(self.fs) and not root.strip("/"):
            raise StoreError(f"{url} names no bucket: expected {protocol}://BUCKET/FOLDER")
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
            found = _listed(place) if self.is_local else self._listed_there(place)
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
            with python_errors():
                return bytes(self.fs.cat_file(self._place(path)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _listed_there(self, place: str) -> list[str]:
        with python_errors():
            found = [str(name).rstrip("/") for name in self.fs.ls(place, detail=False)]
        # A folder made by hand in a bucket's web page is an empty object with the folder's name.
        return [name for name in found if name != place.rstrip("/")]

    def check_bucket(self) -> None:
        """Raise StoreError where the root is in a bucket that is not there.

        To ask that takes the right to list; where it is lacking, nothing is said.
        """
        bucket = self.root.lstrip("/").split("/")[0]
        if not buckets.is_bucket(self.fs):
            return
        try:
            with python_errors():
                self.fs.info(bucket)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.url}: there is no bucket {bucket!r}. What to do: correct the name, or make "
                "the bucket; it is not made here"
            ) from error
        except buckets.BucketError as error:
            log.info("whether the bucket %s is there cannot be told: %s", bucket, error.strerror)

    def _unreadable(self, path: str, error: OSError) -> OSError | StoreError:
        """Return what to raise: what another try may cure stays as it is."""
        if isinstance(error, ConnectionError | TimeoutError):
            return error
        cure = f". What to do: {error.cure}" if isinstance(error, buckets.BucketError) else ""
        return StoreError(f"cannot read {self.url}/{path}: {error.strerror or error}{cure}")

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
        if self.is_local:
            write_whole(Path(self._place(path)), data, forced=forced)
        else:
            with python_errors():
                self.fs.pipe_file(self._place(path), data)  # a put of an object is atomic

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
        if self.is_local:
            return create_whole(Path(target), data)
        return buckets.create(self.fs, target, data)

    def tell_if_unconditional(self, path: str) -> None:
        """Warn where the bucket would let two writers create one file; `path` is a file there.

        Then leases do not keep two drivers apart (see sweeps.leases).
        """
        if self.is_local:
            return
        data = self.read(path)
        if data is not None and self._create(self._place(path), data):
            tell_once(
                f"{self.url}: this service does not keep two writers from creating one file, so "
                "that two drivers on this store may do the same work; run one at a time"
            )

    def move(self, path: str, target: str) -> None:
        """Move a file or folder, if it is there. Raises StoreError where it cannot."""
        try:
            if self.is_local:
                Path(self._place(target)).parent.mkdir(parents=True, exist_ok=True)
                Path(self._place(path)).rename(self._place(target))
                return
            with python_errors():
                self.fs.copy(self._place(path), self._place(target), recursive=True)
            self._remove(self._place(path))
        except FileNotFoundError:
            return
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            raise cannot_write(f"{self.url}/{target}", error) from error

    def remove(self, path: str) -> None:
        """Remove a file or folder, if it is there. Raises StoreError where it cannot."""
        try:
            self._remove(self._place(path))
        except FileNotFoundError:
            return
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            raise cannot_write(f"{self.url}/{path}", error) from error

    def _remove(self, place: str) -> None:
        if self.is_local:
            self.fs.rm(place, recursive=True)
            return
        with python_errors():
            found = self.fs.find(place)
        # One by one: where many go in one request, s3fs passes over those that are refused.
        for name in found:
            with contextlib.suppress(FileNotFoundError), python_errors():
                self.fs.rm_file(name)

    def put_folder(self, folder: Path, path: str) -> None:
        """Copy a local folder to `path`, in place of what is there. Not atomic.

        Raises FileNotFoundError where `folder` is not there, StoreError as `write`.
        """
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        self.remove(path)
        try:
            with python_errors():
                self.fs.put(f"{folder}/", f"{self._place(path)}/", recursive=True)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            raise cannot_write(f"{self.url}/{path}", error) from error

    def fetch_folder(self, path: str, folder: Path) -> None:
        """Copy the folder at `path` to a new local one. Raises StoreError where it cannot."""
        try:
            with python_errors():
                self.fs.get(f"{self._place(path)}/", f"{folder}/", recursive=True)
        except OSError as error:
            raise self._unreadable(path, error) from error

    def sizes(self, path: str) -> dict[str, tuple[int, float | None]]:
        """Return size in bytes and time of change (seconds since 1970) of every file below `path`.

        By path from the root; those that are being written, too. The time is None where the file
        system does not say. Raises StoreError where it cannot be read.
        """
        try:
            with python_errors():
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


def cannot_write(place: str, error: OSError) -> StoreError:
    """Return what to tell of a place that could not be written, and what to do about it."""
    if isinstance(error, buckets.BucketError):
        cure = error.cure
    elif error.errno in FULL:
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


def _not_installed(url: str, error: ImportError) -> str:
    extra = buckets.EXTRAS.get(url.partition("://")[0])
    cure = f": pip install 'em-sweeps[{extra}]'" if extra else ""
    return f"the store {url} needs a package that is not installed ({error}){cure}"


@cache
def tell_once(text: str) -> None:
    """Warn of something, once in this process however often it is met."""
    log.warning("%s", text)
