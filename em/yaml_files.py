"""YAML files with the line of every key, so that a mistake can be told where it stands.

Knows nothing of what a file is for.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

Location = tuple[str | int, ...]
"""Where in a file: keys and list indices from the outside in."""


class MistakeAt(ValueError):
    """A mistake found inside a record at `place`, which is relative to that record."""

    def __init__(self, place: Location, text: str) -> None:
        super().__init__(text)
        self.place = place


@contextmanager
def at(*place: str | int) -> Iterator[None]:
    """Say where stands what is wrong with the thing it names: at `place`, or further inside it."""
    try:
        yield
    except ValidationError:  # a bug of ours
        raise
    except ValueError as error:
        inside = error.place if isinstance(error, MistakeAt) else ()
        raise MistakeAt((*place, *inside), str(error)) from error


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built


def load_yaml(path: Path) -> tuple[Any, Mapping[Location, int]]:
    """Return the value in a YAML file and the line (from 1) of every key and item.

    Raises ValueError naming file and line for a missing file, bad YAML, or a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    try:
        node = yaml.compose(text, Loader=LOADER)
        data = yaml.load(text, Loader=LOADER)
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
