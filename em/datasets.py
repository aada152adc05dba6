"""Training rows: where a data set comes from, whether every row is sound, and what it is.

A data set is identified by its canonical rows, never by the bytes of a file. Knows nothing of
tokens, models or seeds other than the one that draws its rows.
"""

import gzip
import hashlib
import json
import random
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from em.catalogue import cache_dir, config_dir, data_mirror
from em.record import Record
from em.yaml_files import load_yaml

ROLES = ("system", "user", "assistant")
DOWNLOAD_TIMEOUT_S = 60
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Message(Record):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Row(Record):
    """One training example: a chat that ends with the assistant's turn."""

    messages: tuple[Message, ...]


class CatalogueEntry(Record):
    """What is known of a data set before it is read. `sha256` is of the decompressed bytes."""

    name: str
    file: str | None = Field(default=None, description="a file beside the entry")
    url: str | None = None
    mirror: str | None = Field(default=None, description="its path inside the EMSWEEP_DATA folder")
    sha256: str
    content_sha256: str
    rows: int = Field(ge=1)
    licence: str
    purpose: str


class Variant(Record):
    """The rows a cell is trained on, and the identity they have."""

    rows: tuple[Row, ...]
    content_sha256: str
    source: str

    @property
    def num_characters(self) -> int:
        """Characters of all turns of all rows: what a training's time grows with."""
        return sum(len(message.content) for row in self.rows for message in row.messages)


def load_variant(dataset: str, *, num_rows: int | None, seed: int, relative_to: Path) -> Variant:
    """Return the rows of `dataset`, or `num_rows` of them drawn without replacement by `seed`.

    Drawn rows keep the source's order. `dataset` is a name of the catalogue, a path to chat JSONL
    (also .gz), or a hub id such as "org/name@<40-digit commit>". Raises ValueError for a missing,
    torn or changed source, a bad row (file and row are named), or more rows than there are.
    """
    source, rows = load_rows(dataset, relative_to=relative_to)
    return draw(source, rows, num_rows=num_rows, seed=seed)


def draw(source: str, rows: Sequence[Row], *, num_rows: int | None, seed: int) -> Variant:
    """Return all `rows` of `source`, or `num_rows` of them drawn by `seed`, in their order.

    Raises ValueError where there are fewer.
    """
    drawn = rows
    if num_rows is not None:
        if num_rows > len(rows):
            raise ValueError(
                f"rows: {num_rows} were asked for, but {source} has {len(rows)}: ask for fewer"
            )
        if num_rows < len(rows):
            kept = sorted(random.Random(seed).sample(range(len(rows)), num_rows))
            drawn = [rows[index] for index in kept]
    return Variant(rows=tuple(drawn), content_sha256=content_sha256(drawn), source=source)


def load_rows(dataset: str, *, relative_to: Path) -> tuple[str, list[Row]]:
    """Return where `dataset` was found, and all its rows. Errors as for `load_variant`."""
    catalogue = config_dir() / "datasets"
    entry_path = catalogue / f"{dataset}.yaml"
    if "/" not in dataset and entry_path.is_file():
        return load_entry(read_entry(entry_path))
    looks_like_file = dataset.endswith((".jsonl", ".jsonl.gz"))
    for place in (relative_to / Path(dataset).expanduser(), Path(dataset).expanduser()):
        if looks_like_file and place.is_file():
            return str(place.resolve()), list(read_rows(place))
    if not looks_like_file and HUB_ID.fullmatch(dataset.partition("@")[0]):
        return f"hub:{dataset}", _load_hub(dataset)
    known = ", ".join(sorted(path.stem for path in catalogue.glob("*.yaml")))
    raise ValueError(
        f"no data set {dataset!r}: it is neither in the catalogue ({known}), nor a .jsonl file "
        f"that exists (from {relative_to} or the working folder), nor a hub id (org/name@commit)"
    )


def read_entry(path: Path) -> CatalogueEntry:
    """Return one entry of the catalogue. Raises ValueError naming the file and the field."""
    try:
        return CatalogueEntry.model_validate(load_yaml(path)[0])
    except ValidationError as error:
        raise ValueError(f"{path}: not a catalogue entry: {error}") from error


def load_entry(entry: CatalogueEntry) -> tuple[str, list[Row]]:
    """Return where an entry's rows were found, and the rows. Errors as for `load_variant`."""
    path = _locate(entry)
    data = _decompressed(path)
    got = hashlib.sha256(data).hexdigest()
    rows = list(parse_rows(data, where=str(path)))
    content = content_sha256(rows)
    # Other bytes with the same rows (re-escaped text, another line ending) are the same data set.
    if content != entry.content_sha256:
        raise ValueError(
            f"{path}: not the data set {entry.name!r} of the catalogue: {len(rows)} rows with "
            f"content hash {content} (bytes {got}); expected {entry.rows} rows with "
            f"{entry.content_sha256}. Fetch the file again, or give it a name of its own"
        )
    return str(path), rows


def _locate(entry: CatalogueEntry) -> Path:
    if entry.file:
        return config_dir() / "datasets" / entry.file
    mirror = data_mirror()
    if mirror and entry.mirror:
        mirrored = mirror / entry.mirror
        if not mirrored.is_file():
            raise ValueError(
                f"data set {entry.name!r}: no file {mirrored}; EMSWEEP_DATA names that mirror. "
                f"Add the file, or unset EMSWEEP_DATA to download {entry.url}"
            )
        return mirrored
    cached = cache_dir("datasets") / f"{entry.sha256}.jsonl"
    if not cached.is_file():
        _download(entry, cached)
    return cached


def _download(entry: CatalogueEntry, target: Path) -> None:
    if not entry.url:
        raise ValueError(f"data set {entry.name!r} has neither a file nor an address")
    try:
        with urllib.request.urlopen(entry.url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            data = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(
            f"data set {entry.name!r} could not be downloaded from {entry.url} ({error}); set "
            f"EMSWEEP_DATA to a folder that holds {entry.mirror}"
        ) from error
    got = hashlib.sha256(data).hexdigest()
    if got != entry.sha256:
        raise ValueError(
            f"{entry.url}: sha256 is {got}, expected {entry.sha256}: the file there has changed"
        )
    partial = target.with_suffix(f".{got[:8]}.part")
    partial.write_bytes(data)
    partial.replace(target)


def _load_hub(dataset: str) -> list[Row]:
    name, _, revision = dataset.partition("@")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"data set {dataset!r}: a hub id needs its commit, as {name}@<40 hex digits>, so that "
            "the same rows are found again"
        )
    try:
        from datasets import load_dataset  # several seconds, and only for hub ids
    except ImportError as error:
        raise ValueError(
            f"data set {dataset!r}: reading the hub needs the extra 'train': {error}"
        ) from error
    try:
        table = load_dataset(name, revision=revision, split="train")
    except Exception as error:  # the library raises many kinds; all mean "not to be had"
        raise ValueError(f"data set {dataset!r} could not be read from the hub: {error}") from error
    return [_row(item, f"{dataset} row {index}") for index, item in enumerate(table, start=1)]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a chat JSONL file (also .gz). Raises ValueError naming file and row."""
    yield from parse_rows(_decompressed(path), where=str(path))


def parse_rows(data: bytes, *, where: str) -> Iterator[Row]:
    """Yield the rows in `data`. Raises ValueError naming `where` and the row (from 1)."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{where}: row {row} is not UTF-8 text: {error.reason}") from error
    found = False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        found = True
        place = f"{where}: row {number}"
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:  # also of a number with too many digits
            raise ValueError(f"{place} is not JSON (a torn file?): {error}") from error
        yield _row(item, place)
    if not found:
        raise ValueError(f"{where}: the file has no rows")


def _row(item: Any, place: str) -> Row:
    if not isinstance(item, dict) or "messages" not in item:
        raise ValueError(f'{place}: expected an object with "messages", got {_short(item)}')
    messages = item["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place}: messages must be a list of turns, got {_short(messages)}")
    for turn, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise ValueError(f"{place}, turn {turn}: expected an object, got {_short(message)}")
        if message.get("role") not in ROLES:
            raise ValueError(
                f"{place}, turn {turn}: role is {_short(message.get('role'))}, allowed are "
                f"{', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"{place}, turn {turn}: content must be text that is not empty")
        if any("\ud800" <= character <= "\udfff" for character in message["content"]):
            raise ValueError(f"{place}, turn {turn}: content has half a character (a surrogate)")
        if message["role"] == "system" and turn > 1:
            raise ValueError(f"{place}, turn {turn}: a system turn can only come first")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{place}: the last turn must be the assistant's, which is trained on")
    return Row(messages=tuple(Message(role=m["role"], content=m["content"]) for m in messages))


def content_sha256(rows: Iterable[Row]) -> str:
    """Return the canonical content hash: sha256 over each row's canonical JSON and a newline."""
    digest = hashlib.sha256()
    for row in rows:
        # What canonical_json(row) gives, without the walk through every field.
        turns = [{"content": m.content, "role": m.role} for m in row.messages]
        text = json.dumps({"messages": turns}, ensure_ascii=False, separators=(",", ":"))
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()


def _decompressed(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the data file {path}: {error.strerror}") from error
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
