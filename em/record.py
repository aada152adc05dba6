"""Frozen records, and the fingerprint that gives every artefact its name.

Knows nothing of what a record means, or of where one is stored.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen value: unknown fields are refused, NaN and infinity are not numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def fingerprint(value: Any) -> str:
    """Return the sha256 (64 hex digits) of `value` in canonical JSON.

    Takes records, mappings with string keys, sequences, strings, numbers, booleans and None.
    Raises TypeError for anything whose text is not stable (sets, objects, bytes) and ValueError
    for NaN or infinity.
    """
    text = canonical_json(value)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def dumped(record: Record) -> dict[str, Any]:
    """Return a record as plain values, to be read only: ten thousand cells share a few of them.

    Raises TypeError for one that holds a dict or list, which cannot be remembered.
    """
    return record.model_dump()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys, no spaces, and non-ASCII text as it is."""
    return CANONICAL.encode(_plain(value))


CANONICAL = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
)
AS_IT_IS = frozenset((str, int, bool, type(None)))


def _plain(value: Any) -> Any:
    if type(value) in AS_IT_IS:  # most are: a plan of ten thousand cells has millions
        return value
    if type(value) is dict:
        return {
            name: item if type(item) in AS_IT_IS else _plain(item)
            for name, item in _checked(value).items()
        }
    if type(value) is list or type(value) is tuple:
        return [item if type(item) in AS_IT_IS else _plain(item) for item in value]
    if type(value) is float:
        return _number(value)
    if isinstance(value, BaseModel):  # after the others, because asking takes long
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in _checked(value).items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item) for item in value]
    raise TypeError(f"cannot fingerprint a {type(value).__name__}: it has no stable form")


def _number(value: float) -> float | int:
    if not math.isfinite(value):
        raise ValueError(f"cannot fingerprint {value!r}: it is not a finite number")
    # 1.0 and 1 are one setting: YAML writers do not tell them apart.
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _checked(value: Mapping[Any, Any]) -> Mapping[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"cannot fingerprint the key {key!r}: keys must be strings")
    return value
