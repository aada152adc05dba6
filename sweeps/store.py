"""Every artefact of every sweep, under one root: what exists, and how it is written and read.

The one place that knows paths. Artefacts are content-addressed; `record.json` is written last and
atomically, so that what has no record is unfinished. Parts are immutable files. Knows nothing of
how an artefact is made.

    store.json                          what this folder is
    training/<key>/record.json          + adapter/, snapshots/step-<step>/, live-<rank>.json;
                                        attempt-<driver>/ meanwhile
    responses/<key>/record.json         + part-*.parquet
    judgements/<key>/record.json        + part-*.parquet
    sweeps/<name>/                      spec.json, resolved.json, drivers/*.json, report/,
                                        tracking-*.json (what W&B has; its runs' identity)
    sweeps/<name>/cells/<cell_id>/      attempt-*.json
    leases/<key>/                       who works on an artefact now (see sweeps.leases)
    logs/  wandb/
"""

import hashlib
import json
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from em.catalogue import cache_dir
from em.record import Record
from sweeps.artefacts import KEY_DIGITS as KEY_DIGITS
from sweeps.artefacts import (
    SNAPSHOTS,
    Attempt,
    DriverBeat,
    Part,
    Provenance,
    StreamKind,
    StreamRecord,
    TrainingRecord,
)
from sweeps.disk import sync
from sweeps.fetched import fetched
from sweeps.files import Damaged, Files, StoreError, cannot_write
from sweeps.ranges import condense, expand, holds, num_held
from sweeps.stream_parts import failed_in, is_failed, lacks, rows_of, usage_by_judge, whole_part

FORMAT = 2
REPAIR = "'emsweep store check --repair' moves it aside, and the next run has it made again"
LOOKS_AT_ONCE = 32
Given = TypeVar("Given")
Seen = TypeVar("Seen")
Item = TypeVar("Item", bound=Record)
Keyed = TypeVar("Keyed", TrainingRecord, StreamRecord)


class Store:
    """A root on any fsspec URL. Every method is safe to call from any process."""

    def __init__(self, url: str, files: Files | None = None) -> None:
        """Open (not create) the store at `url`: a path, file://, memory://, s3://, gs://.

        `files` are those at `url`, where the caller wants to see every operation on them.
        """
        self.files = files or Files(url)
        self.url = self.files.url

    def each(self, look: Callable[[Given], Seen], items: Iterable[Given]) -> list[Seen]:
        """Return `look(item)` of each, in order: a look reads this store.

        Side by side in a bucket, where it is some round trips.
        """
        if self.files.is_local:
            return [look(item) for item in items]
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
            return list(threads.map(look, items))

    # --- the root ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise StoreError where the root holds something that is not a store of this format."""
        try:
            marker = self.files.read_json("store.json")
        except Damaged as error:
            whole = json.dumps({"format": FORMAT})
            raise StoreError(
                f"{error}. If this folder is a store of this version, write {whole} into that file"
            ) from error
        if marker is not None:
            if marker.get("format") != FORMAT:
                raise StoreError(
                    f"{self.url}: store format is {marker.get('format')!r}, this program writes "
                    f"{FORMAT}: use another store, or the version that made it"
                )
            return
        if self.files.is_local and Path(self.files.root).is_file():
            raise StoreError(f"{self.url} is a file: name a folder with --store")
        names = self.files.names("")
        if names:
            raise StoreError(
                f"{self.url} is not an em-sweeps store: it has no store.json but holds "
                f"{', '.join(names[:3])}; name an empty or new folder with --store"
            )
        self.files.check_bucket()

    def create(self) -> None:
        """Make the root a store where it is none yet. Raises StoreError as `check` does."""
        self.check()
        if self.files.read_json("store.json") is None:
            self.files.write("store.json", json.dumps({"format": FORMAT}).encode())
        self.files.tell_if_unconditional("store.json")

    # --- training ---------------------------------------------------------------------------

    def training(self, key: str) -> TrainingRecord | None:
        """Return the record of a finished training, or None."""
        return self._record(f"training/{key[:KEY_DIGITS]}/record.json", TrainingRecord, key)

    def live(self, key: str, rank: int, model: type[Item]) -> Item | None:
        """Return what a rank of a training has said of itself until now, or None."""
        return self.files.read_note(f"training/{key[:KEY_DIGITS]}/live-{rank}.json", model)

    def write_live(self, key: str, rank: int, told: Record) -> None:
        """Write (or overwrite, atomically) what a rank of a training says of itself."""
        self.files.write_note(f"training/{key[:KEY_DIGITS]}/live-{rank}.json", told)

    def adapter_url(self, record: TrainingRecord) -> str:
        """Return where the weights of a finished training are."""
        return f"{self.url}/training/{record.key[:KEY_DIGITS]}/{record.place}"

    def part_url(self, kind: StreamKind, key: str, part: Part) -> str:
        """Return where a part of a stream is."""
        return f"{self.url}/{kind}/{key[:KEY_DIGITS]}/{part.name}"

    def attempt_dir(self, key: str, driver: str) -> Path:
        """Return a local folder for `driver`'s work on the training `key`, kept between attempts.

        What another driver left is taken over by renaming: were it still alive, its next write
        would fail instead of mixing with ours. Raises StoreError where it cannot be made.
        """
        place = self._attempts(key)
        folder = place / f"attempt-{driver}"
        if not folder.is_dir():
            left = sorted(place.glob("attempt-*"), key=lambda path: path.stat().st_mtime)
            if left:
                left[-1].rename(folder)
        return _made(folder)

    def _attempts(self, key: str) -> Path:
        if self.files.is_local:
            return Path(self.files.root, "training", key[:KEY_DIGITS])
        return self._local("training", key[:KEY_DIGITS])

    def finish_training(
        self,
        record: TrainingRecord,
        output_dir: Path,
        snapshots_dir: Path | None = None,
        *,
        check_lease: Callable[[], None] = lambda: None,
    ) -> TrainingRecord:
        """Take over `output_dir` and snapshots, then write the record. What attempts left goes.

        Returns the record that counts: where another driver, which took this one for dead, was
        first, that is its record, and nothing of it is touched. Raises what `check_lease` does.
        """
        place = f"training/{record.key[:KEY_DIGITS]}"
        if self.files.is_local:
            for path in output_dir.rglob("*"):  # on the disk before a record says that they are
                sync(path)  # (of snapshots the trainer sees to that)
        check_lease()  # again: that may have taken long
        done = self.training(record.key)
        if done is not None:
            return done
        if self.files.is_local:
            if output_dir.is_dir():
                self.files.remove(f"{place}/adapter")
            output_dir.replace(Path(self.files.root, place, "adapter"))
        else:
            self.files.put_folder(output_dir, f"{place}/adapter")
        self._take_over_snapshots(snapshots_dir, f"{place}/{SNAPSHOTS}")
        self.write_record(f"{place}/record.json", record)
        for attempt in self._attempts(record.key).glob("attempt-*"):
            shutil.rmtree(attempt, ignore_errors=True)  # an owner taken for dead may still write
        return record

    def _take_over_snapshots(self, folder: Path | None, place: str) -> None:
        if folder is None:
            return
        if self.files.is_local:
            self.files.remove(place)
            folder.replace(Path(self.files.root, place))
        else:
            self.files.put_folder(folder, place)

    def adapter_dir(self, record: TrainingRecord) -> Path:
        """Return a local folder with the weights of a finished training.

        Those in a bucket are fetched once per machine and user, by one process while others wait,
        and compared with the record's hash. Raises StoreError where they cannot be had.
        """
        path = f"training/{record.key[:KEY_DIGITS]}/{record.place}"
        if self.files.is_local:
            return Path(self.files.root, path)
        return fetched(self.files, path, record.weights_sha256)

    @staticmethod
    def adapter_from(url: str, sha256: str) -> Path:
        """Return the same for an `adapter_url` in a bucket, of weights with the hash `sha256`."""
        root, _, path = url.rpartition("/training/")
        return fetched(Files(root), f"training/{path}", sha256)

    # --- streams ----------------------------------------------------------------------------

    def stream(self, kind: StreamKind, key: str) -> StreamRecord | None:
        """Return the record of a stream, or None where nothing of it is finished."""
        return self._record(f"{kind}/{key[:KEY_DIGITS]}/record.json", StreamRecord, key)

    def missing(
        self, kind: StreamKind, key: str, wanted: Mapping[str, int]
    ) -> dict[str, list[int]]:
        """Return the indices not finished of each group in `wanted` (group → number of samples)."""
        record = self.stream(kind, key)
        covers = record.covers if record else {}
        found = {
            group: [i for i in range(samples) if not holds(covers.get(group, ()), i)]
            for group, samples in wanted.items()
        }
        return {group: indices for group, indices in found.items() if indices}

    def num_missing(self, kind: StreamKind, key: str, wanted: Mapping[str, int]) -> dict[str, int]:
        """Return how many of each group in `wanted` are not finished: `missing`, only counted."""
        record = self.stream(kind, key)
        covers = record.covers if record else {}
        return {group: n - num_held(covers.get(group, ()), n) for group, n in wanted.items()}

    def lacks(self, kind: StreamKind, key: str, wanted: Mapping[str, int]) -> bool:
        """Whether anything of `wanted` is missing; as `missing`, without listing it."""
        return lacks(self.stream(kind, key), wanted)

    def failed(self, kind: StreamKind, key: str, wanted: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the finished indices of each group in `wanted` whose item is a failed one."""
        return failed_in(self.stream(kind, key), wanted)

    def reopen(self, kind: StreamKind, key: str, wanted: Mapping[str, int]) -> None:
        """Have the failed items of `wanted` count as missing. They stay until a better one is."""
        failed, record = self.failed(kind, key, wanted), self.stream(kind, key)
        if not failed or record is None:
            return
        left = {
            name: {
                group: condense(expand(ranges) - set(failed.get(group, ())))
                for group, ranges in getattr(record, name).items()
            }
            for name in ("covers", "failed")
        }
        self.write_record(f"{kind}/{key[:KEY_DIGITS]}/record.json", record.model_copy(update=left))

    def write_part(self, kind: StreamKind, key: str, items: Sequence[Record]) -> Part:
        """Write `items` as one immutable file and return it; it counts when a record lists it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([item.model_dump() for item in items]), sink)
        data = sink.getvalue().to_pybytes()
        sha256 = hashlib.sha256(data).hexdigest()
        part = Part(
            name=f"part-{sha256[:16]}.parquet",
            rows=len(items),
            sha256=sha256,
            used=usage_by_judge(items),
        )
        self.files.write(f"{kind}/{key[:KEY_DIGITS]}/{part.name}", data)
        return part

    def unrecorded_parts(self, kind: StreamKind, key: str) -> list[Part]:
        """Return whole parts that no record lists: the work of an attempt that did not end.

        A torn file does not hash to its name and is left out.
        """
        record = self.stream(kind, key)
        known = {part.name for part in record.parts} if record else set()
        place = f"{kind}/{key[:KEY_DIGITS]}"
        found = []
        for name in self.files.names(place):
            if not name.startswith("part-") or name in known:
                continue
            part = whole_part(name, self.files.read(f"{place}/{name}") or b"")
            found += [part] if part else []
        return found

    def all_parts(self, kind: StreamKind, key: str) -> list[Part]:
        """Return the parts that a record lists, and those of `unrecorded_parts`."""
        record = self.stream(kind, key)
        return [*(record.parts if record else ()), *self.unrecorded_parts(kind, key)]

    def read_part(
        self,
        kind: StreamKind,
        key: str,
        part: Part,
        model: type[Item],
        columns: Sequence[str] | None = None,
    ) -> list[Item]:
        """Return the items of a part, of `columns` alone where they are given.

        Raises StoreError where its bytes are not those recorded.
        """
        place = f"{kind}/{key[:KEY_DIGITS]}/{part.name}"
        data = self.files.read(place)
        if data is None:
            raise StoreError(
                f"{self.url}/{place} is recorded but cannot be read: it is gone; {REPAIR}"
            )
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise StoreError(
                f"{self.url}/{place} is damaged: its sha256 is not the recorded {part.sha256}; "
                f"{REPAIR}"
            )
        return [model.model_validate(row) for row in rows_of(data, columns)]

    def read_stream(
        self,
        kind: StreamKind,
        key: str,
        model: type[Item],
        columns: Sequence[str] | None = None,
    ) -> list[Item]:
        """Return every recorded item of a stream, each key once: the first that is not failed."""
        record = self.stream(kind, key)
        items: dict[str, Item] = {}
        for part in record.parts if record else ():
            for item in self.read_part(kind, key, part, model, columns):
                key_of = item.key  # type: ignore[attr-defined]
                if key_of not in items or (is_failed(items[key_of]) and not is_failed(item)):
                    items[key_of] = item
        return list(items.values())

    def finish_stream(
        self,
        kind: StreamKind,
        key: str,
        identity: Mapping[str, Any],
        *,
        parts: Iterable[Part],
        covers: Mapping[str, Iterable[int]],
        provenance: Provenance,
        failed: Mapping[str, Iterable[int]] | None = None,
    ) -> None:
        """Add `parts`, which hold the indices `covers`, some `failed`, to the stream's record."""
        old = self.stream(kind, key)
        merged = {group: expand(ranges) for group, ranges in old.covers.items()} if old else {}
        for group, indices in covers.items():
            merged[group] = merged.get(group, set()) | set(indices)
        lost = {group: expand(ranges) for group, ranges in old.failed.items()} if old else {}
        for group, indices in (failed or {}).items():
            lost[group] = lost.get(group, set()) | set(indices)
        record = StreamRecord(
            key=key,
            identity=dict(identity),
            covers={group: condense(indices) for group, indices in sorted(merged.items())},
            failed={group: condense(indices) for group, indices in sorted(lost.items())},
            parts=[*(old.parts if old else []), *parts],
            provenance=[*(old.provenance if old else []), provenance],
        )
        self.write_record(f"{kind}/{key[:KEY_DIGITS]}/record.json", record)

    # --- sweeps -----------------------------------------------------------------------------

    def sweep_dir(self, sweep: str) -> str:
        """Return the folder of a sweep, relative to the root."""
        return f"sweeps/{sweep}"

    def attempts(self, sweep: str, cell_id: str) -> list[Attempt]:
        """Return every attempt at a cell in this sweep, oldest first."""
        folder = f"{self.sweep_dir(sweep)}/cells/{cell_id}"
        return self._all_in(folder, Attempt)

    def write_attempt(self, sweep: str, cell_id: str, attempt: Attempt) -> None:
        """Write (or overwrite, atomically) one attempt: of two drivers each has its own."""
        name = f"attempt-{attempt.attempt:04d}-{attempt.driver}.json"
        self.files.write_note(f"{self.sweep_dir(sweep)}/cells/{cell_id}/{name}", attempt)

    def write_driver(self, sweep: str, beat: DriverBeat) -> None:
        """Write (or overwrite, atomically) a driver's sign of life."""
        self.files.write_note(self.driver_path(sweep, beat.driver), beat)

    def drivers(self, sweep: str) -> list[DriverBeat]:
        """Return every driver of a sweep, oldest first."""
        beats = self._all_in(f"{self.sweep_dir(sweep)}/drivers", DriverBeat)
        return sorted(beats, key=lambda beat: beat.started)

    def driver(self, sweep: str, driver: str) -> DriverBeat | None:
        """Return the last sign of life of one driver, or None."""
        return self.files.read_note(self.driver_path(sweep, driver), DriverBeat)

    def driver_path(self, sweep: str, driver: str) -> str:
        """Return where a driver's sign of life is, relative to the root."""
        return f"{self.sweep_dir(sweep)}/drivers/{driver}.json"

    def _all_in(self, folder: str, model: type[Item]) -> list[Item]:
        paths = [f"{folder}/{name}" for name in self.files.names(folder)]
        found = self.each(lambda path: self.files.read_note(path, model), paths)
        return [record for record in found if record is not None]

    def read_json(self, path: str) -> dict[str, Any] | None:
        """Return a JSON object of a sweep's folder by its path from the root, or None."""
        return self.files.read_json(path)

    def write_record(self, path: str, record: Record) -> None:
        """Write a record as JSON, atomically."""
        self.files.write_record(path, record)

    def local_dir(self, path: str) -> Path:
        """Return a local folder for files that other programs write (logs, wandb), made."""
        folder = Path(self.files.root, path) if self.files.is_local else self._local(path)
        return _made(folder)

    def _local(self, *parts: str) -> Path:
        """Return a folder of this machine's cache for a store in a bucket."""
        return cache_dir("stores", _slug(self.url), *parts)

    def _record(self, path: str, model: type[Keyed], key: str) -> Keyed | None:
        record = self.files.read_record(path, model)
        if record is not None and record.key != key:
            raise StoreError(
                f"{self.url}/{path} holds another thing under this name: key {record.key}, "
                f"expected {key}; {REPAIR}"
            )
        return record


def open_store(url: str) -> Store:
    """Open the store that a user named. Raises StoreError where it cannot be one, or be reached."""
    check_url(url)
    try:
        store = Store(url)
        store.check()
    except StoreError:
        raise
    except Exception as error:  # many kinds, of each cloud's own library, as for no credentials
        raise StoreError(f"the store {url} cannot be opened: {error}") from error
    return store


def check_url(url: str) -> None:
    """Raise StoreError where a URL cannot be a store's, wherever it is opened."""
    if url.startswith("memory://"):
        raise StoreError(f"{url}: every process has a memory of its own; name a folder or a bucket")
    if "@" in urllib.parse.urlsplit(url).netloc:
        raise StoreError("the store's URL must not hold a name or password: it is written down")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(str(folder), error) from error
    return folder


def _slug(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]
