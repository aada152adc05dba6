"""Mistakes in a YAML file told as file, line, key, got, allowed, what to do.

Knows nothing of what a sweep is.
"""

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from em.told import cut, short
from em.yaml_files import Location
from em.yaml_files import MistakeAt as MistakeAt

MOST_MISTAKES = 20
MOST_KEY = 120  # characters


def explain(
    error: ValidationError,
    model: type[BaseModel],
    *,
    path: Path,
    data: Any,
    lines: Mapping[Location, int],
) -> str:
    """Return one line for each mistake, as `file:line: key: what, got, allowed, what to do`."""
    items = error.errors()
    # A list whose items are all wrong is also told to be too short: that is no second mistake.
    whole = [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(other is not item and other["loc"][: len(item["loc"])] == item["loc"]
                   for other in items)
    ]  # fmt: skip
    told = [_one(item, model, path=path, lines=lines) for item in whole[:MOST_MISTAKES]]
    if len(whole) > MOST_MISTAKES:
        told.append(f"{path}: and {len(whole) - MOST_MISTAKES} more mistakes")
    return "\n".join(dict.fromkeys(told))


def _one(
    item: ErrorDetails, model: type[BaseModel], *, path: Path, lines: Mapping[Location, int]
) -> str:
    raised = item.get("ctx", {}).get("error")
    location = item["loc"] + (raised.place if isinstance(raised, MistakeAt) else ())
    # Pydantic puts the tags of a union into the location; the file does not know them.
    place = _in_file(location, lines)
    line = lines.get(place, lines.get(place[:-1], 1))
    if isinstance(raised, MistakeAt):
        place = location
    elif item["type"] == "missing":
        place = (*place, location[-1])
    key = ".".join(map(str, place)) or "the file"
    match item["type"]:
        case "extra_forbidden":
            allowed = fields_at(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), allowed, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            what = f"unknown key; {hint}Allowed here: {', '.join(allowed)}"
        case "missing":
            what = "this key is missing: add it"
        case "value_error":
            what = str(raised)
        case _:
            what = f"{item['msg']}; got {short(item['input'])}"
    return f"{path}:{line}: {cut(key, MOST_KEY)}: {cut(what)}"


def explain_at(error: MistakeAt, *, path: Path, lines: Mapping[Location, int]) -> str:
    """Return a mistake that was found once names were looked up, in the same form."""
    place = _in_file(error.place, lines)
    key = ".".join(map(str, place))
    return f"{path}:{lines.get(place, 1)}: {cut(key, MOST_KEY)}: {cut(str(error))}"


def _in_file(location: Location, lines: Mapping[Location, int]) -> Location:
    place: Location = ()
    for part in location:
        if (*place, part) in lines:
            place = (*place, part)
    return place


def fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys that are allowed at `location` inside `model`."""
    current: Any = model
    for part in location:
        if typing.get_origin(current) is dict:  # the part is a key of it, such as a model's name
            current = _model_in(typing.get_args(current)[1])
            continue
        if isinstance(part, int) or not _is_model(current):
            continue
        field = current.model_fields.get(part)
        current = _model_in(field.annotation) if field else None
    fields = current.model_fields if _is_model(current) else {}
    return [field.alias or name for name, field in fields.items()]


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _model_in(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    origin = typing.get_origin(annotation)
    if origin is dict:
        return annotation
    if origin in (tuple, list, typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            found = _model_in(inner)
            if found is not None:
                return found
    return None
