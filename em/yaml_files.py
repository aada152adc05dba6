"""YAML files with the line of every key, so that a mistake can be told where it stands.

Knows nothing of what a file is for.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from em.told import cut, short
from em.yaml_values import MERGE, STR, PlainLoader, scalar_mistake

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


MAX_DEPTH = 100
MAX_VALUES = 20_000  # of a short file: aliases in aliases make billions of a few lines


def load_yaml(path: Path) -> tuple[Any, Mapping[Location, int]]:
    """Return the value in a YAML file and the line (from 1) of every key and item.

    It is made of dict (with text as keys), list, str, int, float, bool and None. Raises ValueError
    naming file and line for a missing file, bad YAML, or a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    lines: dict[Location, int] = {}
    try:
        loader = PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ValueError(f"{path}: the file is empty")
        # Before the values are made: one that is too large never is.
        _Walk(path, lines, most=max(MAX_VALUES, len(text))).see(node, ())
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(cut(f"{path}:{line}: not YAML: {error.problem}")) from error
    except yaml.YAMLError as error:
        raise ValueError(cut(f"{path}: not YAML: {error}")) from error
    except RecursionError as error:
        raise ValueError(f"{path}: {TOO_DEEP}") from error
    if data is None:
        raise ValueError(f"{path}: the file is empty")
    return data, lines


T = TypeVar("T")
TOO_DEEP = "it refers to itself, or is nested too deeply"


def checked(kind: TypeAdapter[T], data: Any) -> T:
    """Return what `load_yaml` found as a value of `kind`: "1" and true are no 1, and 3.0 is no 3.

    Raises ValidationError.
    """
    # As JSON: by pydantic's strict rules for Python values a list would be no tuple.
    return kind.validate_json(json.dumps(data), strict=True)


class _Walk:
    """Notes the line of every key and item in `lines`, which has no more than `most`."""

    def __init__(self, path: Path, lines: dict[Location, int], *, most: int) -> None:
        self._path, self._lines, self._most = path, lines, most

    def see(self, node: yaml.Node, place: Location) -> None:
        """Go through `node`, which stands at `place`. Raises ValueError."""
        self._lines.setdefault(place, node.start_mark.line + 1)
        if len(place) > MAX_DEPTH:
            raise ValueError(f"{self._path}: {TOO_DEEP}")
        if len(self._lines) > self._most:
            raise ValueError(
                f"{self._path}: its aliases (*) make more than {self._most} values of it: write "
                "out what is meant"
            )
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self.see(value, self._key(key, place))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.see(value, (*place, index))
        elif isinstance(node, yaml.ScalarNode) and (wrong := scalar_mistake(node)):
            raise ValueError(f"{self._path}:{node.start_mark.line + 1}: not YAML: {wrong}")

    def _key(self, key: yaml.Node, place: Location) -> Location:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{self._path}:{line}: not YAML: a key must be text")
        if key.tag not in (STR, MERGE):
            raise ValueError(
                f"{self._path}:{line}: the key {short(key.value)} is not text to YAML: quote it"
            )
        inner = (*place, key.value)
        if inner in self._lines:
            raise ValueError(
                f"{self._path}:{line}: the key {short(key.value)} is given twice "
                f"(first in line {self._lines[inner]}): keep one"
            )
        self._lines[inner] = line
        return inner
