"""YAML with line numbers, and pydantic's errors told as file, line, key, got, allowed, what to do.

Knows nothing of what a sweep is.
"""

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]


class MistakeAt(ValueError):
    """A mistake that a validator of a whole record found at a place inside it."""

    def __init__(self, place: Location, text: str) -> None:
        super().__init__(text)
        self.place = place


def load_yaml(path: Path) -> tuple[Any, Mapping[Location, int]]:
    """Return the value in a YAML file and the line (from 1) of every key and item.

    Raises ValueError naming file and line for a missing file, bad YAML, or a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{path}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if node is None or data is None:
        raise ValueError(f"{path}: the file is empty")
    lines: dict[Location, int] = {}
    try:
        _walk(node, (), lines, path)
    except RecursionError as error:
        raise ValueError(f"{path}: it refers to itself, or is nested too deeply") from error
    return data, lines


def _walk(node: yaml.Node, place: Location, lines: dict[Location, int], path: Path) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, key.value)
            if inner in lines:
                raise ValueError(
                    f"{path}:{key.start_mark.line + 1}: the key {key.value!r} is given twice "
                    f"(first in line {lines[inner]}): keep one"
                )
            lines[inner] = key.start_mark.line + 1
            _walk(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*place, index), lines, path)


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
    told = [_one(item, model, path=path, lines=lines) for item in whole]
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
            what = f"{item['msg']}; got {_short(item['input'])}"
    return f"{path}:{line}: {key}: {what}"


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
        if isinstance(part, int) or not _is_model(current):
            continue
        field = current.model_fields.get(part)
        current = _model_in(field.annotation) if field else None
    return list(current.model_fields) if _is_model(current) else []


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _model_in(annotation: Any) -> Any:
    if _is_model(annotation):
        return annotation
    origin = typing.get_origin(annotation)
    if origin in (tuple, list, typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            found = _model_in(inner)
            if found is not None:
                return found
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
