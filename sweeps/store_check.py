"""Whether a store holds what its records say: every artefact against its hashes.

Changes nothing, but for `set_aside`, which moves what is damaged into damaged/. Knows nothing of
how an artefact is made.
"""

import hashlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

from pydantic import Field

from em.judging import place_of
from em.record import Record, fingerprint
from sweeps.artefacts import (
    SNAPSHOTS,
    Attempt,
    DriverBeat,
    Part,
    StreamKind,
    StreamRecord,
    TrainingRecord,
)
from sweeps.files import Damaged, StoreError
from sweeps.ranges import expand
from sweeps.store import KEY_DIGITS, Keyed, Store
from sweeps.store_targets import Targets
from sweeps.stream_parts import rows_of, whole_part
from sweeps.weights import weights_sha256

ASIDE = "damaged"
COLUMNS: dict[StreamKind, list[str]] = {
    "responses": ["key", "wording_key", "index", "weights"],
    "judgements": ["key", "response", "state"],
}


class Damage(Record):
    """One thing that is not as recorded."""

    path: str = Field(description="from the store's root")
    what: str
    aside: tuple[str, ...] = Field(description="what must go for it to be made again")


class StoreCheck(Record):
    """What was looked at, and what of it is damaged."""

    store: str
    num_artefacts: int = Field(description="with a record")
    num_unfinished: int = Field(description="folders without one")
    num_bytes: int = Field(description="of parts; weights are not counted")
    damages: tuple[Damage, ...]


def check_store(
    store: Store, targets: Targets, *, on_checked: Callable[[], None] = lambda: None
) -> StoreCheck:
    """Compare all files of `targets` with their records; `on_checked` is called after each folder.

    Raises StoreError where the store cannot be read.
    """
    check = _Check(store, on_checked)
    for name in targets.training:
        check.training(name)
    judged = defaultdict(list)
    for name in targets.judgements:
        record = check.record(f"judgements/{name}", StreamRecord)
        of = str(record.identity.get("responses", "")) if record else ""
        judged[of[:KEY_DIGITS]].append((name, record))
    for name in targets.responses:
        keys = check.responses(name)
        for folder, record in judged.pop(name, ()):
            check.judgements(folder, record, keys)
    for left in judged.values():  # of no responses that there are
        for folder, record in left:
            check.judgements(folder, record, frozenset())
    for name in targets.sweeps:
        check.sweep(name)
    return StoreCheck(
        store=store.url,
        num_artefacts=check.num_artefacts,
        num_unfinished=check.num_unfinished,
        num_bytes=check.num_bytes,
        damages=tuple(check.damages),
    )


def set_aside(store: Store, check: StoreCheck) -> str:
    """Move what `check` found damaged into a new folder of the store, and return that folder."""
    folder = f"{ASIDE}/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    for path in dict.fromkeys(path for damage in check.damages for path in damage.aside):
        store.files.move(path, f"{folder}/{path}")
    return folder


class _Check:
    """One pass over a store."""

    def __init__(self, store: Store, on_checked: Callable[[], None]) -> None:
        self._store, self._files, self._on_checked = store, store.files, on_checked
        # Training key and step (None: its end) → hash of the weights.
        self._weights: dict[tuple[str, int | None], str] = {}
        self.damages: list[Damage] = []
        self.num_artefacts = self.num_unfinished = self.num_bytes = 0

    def _found(self, path: str, what: str, *aside: str) -> None:
        self.damages.append(Damage(path=path, what=what, aside=aside))

    def record(self, place: str, model: type[Keyed]) -> Keyed | None:
        """Return the record in the folder `place` where there is a sound one; count the folder."""
        names = self._files.names(place)
        path = f"{place}/record.json"
        if "record.json" not in names:
            self.num_unfinished += bool(names)
            return None
        self.num_artefacts += 1
        aside = self._all_of(place)
        try:
            record = self._files.read_record(path, model)
        except Damaged:
            self._found(path, "is torn, or was written by another version of this program", *aside)
            return None
        if record is None:  # gone since
            return None
        if record.key != fingerprint(record.identity):
            self._found(path, f"says the key {record.key[:12]}…, its identity another", *aside)
            return None
        if record.key[:KEY_DIGITS] != place.rpartition("/")[2]:
            self._found(path, f"is the record of another key, {record.key}", *aside)
            return None
        return record

    def training(self, name: str) -> None:
        """Check the weights of a training."""
        place = f"training/{name}"
        record = self.record(place, TrainingRecord)
        if record is not None:
            for step in (None, *(snapshot.step for snapshot in record.snapshots)):
                self._check_weights(place, record.after(step), step)
        self._on_checked()

    def _check_weights(self, place: str, record: TrainingRecord, step: int | None) -> None:
        self._weights[record.key, step] = record.weights_sha256
        weights = f"{place}/{record.place}"
        folder, _, name = weights.rpartition("/")
        if name not in self._files.names(folder):
            self._found(weights, "is recorded and gone", *self._all_of(place))
        elif (found := self._hash(weights)) != record.weights_sha256:
            self._found(
                weights,
                f"has weights with the hash {found[:12]}…, its record says "
                f"{record.weights_sha256[:12]}…",
                *self._all_of(place),
            )

    def _all_of(self, place: str) -> list[str]:
        """A record, and of a training its weights and snapshots: one makes all of them anew."""
        there = self._files.names(place)
        return [f"{place}/{n}" for n in ("record.json", "adapter", SNAPSHOTS) if n in there]

    def _hash(self, path: str) -> str:
        if self._files.is_local:
            return _hash_of(Path(self._files.root, path))
        with tempfile.TemporaryDirectory(prefix="emsweep-check-") as folder:
            self._files.fetch_folder(path, Path(folder))
            return _hash_of(Path(folder))

    def responses(self, name: str) -> Set[str]:
        """Check a stream of responses; return the keys of those that are whole."""
        place = f"responses/{name}"
        record = self.record(place, StreamRecord)
        of = record.identity if record else {}
        weights = self._weights.get((str(of.get("training")), of.get("step")))
        keys: set[str] = set()
        covered: set[tuple[str, int]] = set()
        sound = True
        for part, recorded in self._parts("responses", name, record):
            rows = self._rows("responses", name, part, recorded)
            if rows is None:
                sound = False
                continue
            others = {str(row["weights"]) for row in rows} - {weights}
            if weights is not None and others:
                self._found(
                    f"{place}/{part.name}",
                    f"was answered by the weights {min(others)[:12]}…, the training has "
                    f"{weights[:12]}…: it was made again since",
                    *([f"{place}/record.json"] if recorded else []),
                    f"{place}/{part.name}",
                )
                sound = False
                continue
            keys |= {row["key"] for row in rows}
            covered |= {(row["wording_key"], row["index"]) for row in rows if recorded}
        if record is not None and sound:
            self._covers(place, record, covered)
        self._on_checked()
        return keys

    def judgements(self, name: str, record: StreamRecord | None, responses: Set[str]) -> None:
        """Check a stream of judgements against `responses`, the keys that there are."""
        place = f"judgements/{name}"
        covered: set[tuple[str, int]] = set()
        answered: set[tuple[str, int]] = set()  # of those, the ones that did not fail
        sound = True
        for part, recorded in self._parts("judgements", name, record) if record else ():
            rows = self._rows("judgements", name, part, recorded)
            lost = {row["response"] for row in rows or ()} - responses
            if lost:
                self._found(
                    f"{place}/{part.name}",
                    f"judges {len(lost)} responses that are not there, such as {min(lost)}",
                    *([f"{place}/record.json"] if recorded else []),
                    f"{place}/{part.name}",
                )
            if rows is None or lost:
                sound = False
            elif recorded:
                covered |= {place_of(row["key"]) for row in rows}
                answered |= {place_of(row["key"]) for row in rows if row["state"] != "failed"}
        if record is not None and sound:
            self._covers(place, record, covered, covered - answered)
        self._on_checked()

    def _parts(
        self, kind: StreamKind, name: str, record: StreamRecord | None
    ) -> list[tuple[Part, bool]]:
        """Return the parts of a stream, each with whether it is recorded."""
        recorded = list(record.parts) if record else []
        known = {part.name for part in recorded}
        others = (n for n in self._files.names(f"{kind}/{name}") if n not in known)
        left = (whole_part(n, self._files.read(f"{kind}/{name}/{n}") or b"") for n in others)
        return [(part, True) for part in recorded] + [(part, False) for part in left if part]

    def _rows(
        self, kind: StreamKind, name: str, part: Part, recorded: bool
    ) -> list[dict[str, Any]] | None:
        """Return the rows of a part, or None where it is not the recorded one."""
        place = f"{kind}/{name}"
        path = f"{place}/{part.name}"
        data = self._files.read(path)
        if data is None:
            self._found(path, "is recorded and gone", f"{place}/record.json")
            return None
        self.num_bytes += len(data)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            what = "is empty" if not data else "is not what was recorded: its sha256 is another"
            self._found(path, what, f"{place}/record.json", path)
            return None
        rows = rows_of(data, COLUMNS[kind])
        if len(rows) != part.rows:
            what = f"has {len(rows)} rows, its record says {part.rows}"
            self._found(path, what, f"{place}/record.json")
            return None
        return rows

    def _covers(
        self,
        place: str,
        record: StreamRecord,
        found: set[tuple[str, int]],
        failed: Set[tuple[str, int]] = frozenset(),
    ) -> None:
        """Compare what a record says that it covers with what its parts hold.

        What `failed` is there or not, as a resume takes it out to ask again.
        """
        said = {(g, i) for g, ranges in record.covers.items() for i in expand(ranges)}
        lacking = found - said - failed
        if said - found or lacking:
            self._found(
                f"{place}/record.json",
                f"covers {len(said - found)} samples that its parts do not hold, and lacks "
                f"{len(lacking)} that they do",
                f"{place}/record.json",
            )

    def sweep(self, name: str) -> None:
        """Check that what tells how far a sweep is can be read."""
        place = self._store.sweep_dir(name)
        self._note(f"{place}/spec.json", None)
        for file in self._files.names(f"{place}/drivers"):
            self._note(f"{place}/drivers/{file}", DriverBeat)
        for cell in self._files.names(f"{place}/cells"):
            for file in self._files.names(f"{place}/cells/{cell}"):
                self._note(f"{place}/cells/{cell}/{file}", Attempt)

    def _note(self, path: str, model: type[Record] | None) -> None:
        try:
            if model is None:
                self._files.read_json(path)
            else:
                self._files.read_record(path, model)
        except Damaged:
            self._found(path, "is torn; it only tells how far work is, and is left out", path)


def _hash_of(folder: Path) -> str:
    try:
        return weights_sha256(folder)
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror or error}") from error
