"""Training rows: whether every one is sound, and what a data set is.

A data set is identified by its canonical rows, never by the bytes of a file. Knows nothing of where
rows come from (em.sources), of how they are changed (em.transforms), or of tokens and models.
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from em.record import Record
from em.told import short

ROLES = ("system", "user", "assistant")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Message(Record):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Row(Record):
    """One training example: a chat that ends with the assistant's turn."""

    messages: tuple[Message, ...]

    @cached_property
    def line(self) -> bytes:
        """Its canonical JSON and a newline; made once, as each seed's draw of rows hashes it."""
        # What canonical_json(self) gives, without the walk through every field.
        turns = [{"content": m.content, "role": m.role} for m in self.messages]
        return f"{_encode({'messages': turns})}\n".encode()


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
        yield parse_row(decoded(line, place), place)
    if not found:
        raise ValueError(f"{where}: the file has no rows")


def parse_row(item: Any, place: str) -> Row:
    """Return the row in one decoded JSON object. Raises ValueError that begins with `place`."""
    if not isinstance(item, dict) or "messages" not in item:
        raise ValueError(f'{place}: expected an object with "messages", got {short(item)}')
    messages = item["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place}: messages must be a list of turns, got {short(messages)}")
    for turn, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise ValueError(f"{place}, turn {turn}: expected an object, got {short(message)}")
        if message.get("role") not in ROLES:
            raise ValueError(
                f"{place}, turn {turn}: role is {short(message.get('role'))}, allowed are "
                f"{', '.join(ROLES)}"
            )
        others = sorted(
            key for key in set(message) - {"role", "content"} if message[key] is not None
        )
        if others:
            named = ", ".join(map(short, others[:3]))
            raise ValueError(
                f"{place}, turn {turn}: {named} would have no effect on the training: take it out, "
                "so that the row says what is done"
            )
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"{place}, turn {turn}: content must be text that is not empty")
        if not is_whole_text(message["content"]):
            raise ValueError(f"{place}, turn {turn}: content has half a character (a surrogate)")
        if message["role"] == "system" and turn > 1:
            raise ValueError(f"{place}, turn {turn}: a system turn can only come first")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{place}: the last turn must be the assistant's, which is trained on")
    return Row(messages=tuple(Message(role=m["role"], content=m["content"]) for m in messages))


def decoded(line: str, place: str) -> Any:
    """Return the value in a line of JSON. Raises ValueError that begins with `place`."""
    try:
        return json.loads(line, object_pairs_hook=_no_key_twice)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON (a torn file?): {error}") from error
    except ValueError as error:  # of a key given twice, or a number with too many digits
        raise ValueError(f"{place}: {error}") from error


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {short(twice)} is given twice: keep one")
    return found


def is_whole_text(text: str) -> bool:
    """Whether `text` has no half of a character (a surrogate), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def content_sha256(rows: Iterable[Row]) -> str:
    """Return the canonical content hash: sha256 over each row's canonical JSON and a newline."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.line)
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, decompressed where it ends in .gz. Raises ValueError naming it."""
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
