"""Files below one root on any fsspec URL: read whole, written atomically, listed.

Knows nothing of what the files are (see sweeps.store).
"""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pydantic import ValidationError

from em.record import Record

PARTIAL = ".tmp"  # a file that is being written; never read
Item = TypeVar("Item", bound=Record)


class StoreError(ValueError):
    """The store is not what it should be: another thing under a name, or a damaged file."""


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

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder that other programs can open by path."""
        return "file" in self.fs.protocol or self.fs.protocol == "file"

    def names(self, path: str) -> list[str]:
        """Return the names in the folder `path`, sorted; none where it is not there."""
        try:
            found = self.fs.ls(self._place(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._unreadable(path, error) from error
        names = (str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)
        return sorted(name for name in names if not name.endswith(PARTIAL))

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        try:
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
        try:
            return dict(json.loads(data)) if data is not None else None
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"{self.url}/{path} is damaged: not a JSON object") from error

    def read_record(self, path: str, model: type[Item]) -> Item | None:
        """Return a file's record, or None. Raises StoreError where it is another thing."""
        data = self.read(path)
        if data is None:
            return None
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(
                f"{self.url}/{path} is damaged ({error.errors()[0]['msg']}): remove this file, and "
                "what it told is as if it had not happened"
            ) from error

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file: no reader ever sees a part of it. Raises StoreError if it cannot."""
        try:
            self._write(path, data)
        except (ConnectionError, TimeoutError):
            raise  # another try may succeed
        except OSError as error:
            raise StoreError(f"cannot write {self.url}/{path}: {error}") from error

    def _write(self, path: str, data: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(self._place(path), data)  # a put of an object is atomic
            return
        target = self._place(path)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{target}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    def write_record(self, path: str, record: Record) -> None:
        """Write a record as JSON."""
        self.write(path, _as_json(record))

    def create_record(self, path: str, record: Record) -> bool:
        """Write a record where nothing is yet, whole; whether this call did. One of many does.

        Not forced to the disk: after a power cut it may be gone. Raises StoreError as `write`.
        """
        try:
            return self._create(self._place(path), _as_json(record))
        except (ConnectionError, TimeoutError):
            raise  # another try may succeed
        except OSError as error:
            raise StoreError(f"cannot write {self.url}/{path}: {error}") from error

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

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._place(path))

    def _place(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")


def _as_json(record: Record) -> bytes:
    return (record.model_dump_json(indent=1) + "\n").encode()
