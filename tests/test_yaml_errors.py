import time
from pathlib import Path

import pytest
from fuzzing import ALIASES, MERGES
from pydantic import ValidationError, model_validator

from em.record import Record
from em.yaml_files import load_yaml
from sweeps.yaml_errors import MistakeAt, explain, fields_at


class Leaf(Record):
    size: int
    colour: str = "green"


class Tree(Record):
    leaves: tuple[Leaf, ...] = ()
    trunk: Leaf | None = None
    ids: tuple[str, ...] | int | None = None

    @model_validator(mode="after")
    def _sound(self) -> "Tree":
        for number, leaf in enumerate(self.leaves):
            if leaf.size > 9:
                raise MistakeAt(("leaves", number, "size"), f"{leaf.size} is too large")
        return self


def write(folder: Path, text: str) -> Path:
    path = folder / "t.yaml"
    path.write_bytes(text.encode())
    return path


def told(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    data, lines = load_yaml(path)
    with pytest.raises(ValidationError) as error:
        Tree.model_validate(data)
    text = explain(error.value, Tree, path=path, data=data, lines=lines)
    return text.replace(f"{folder}/", "").split("\n")


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    text = (
        "# a comment\nleaves:\n  - size: 1\n\n  - {size: 2,\n     colour: red}\ntrunk:\n  size: 3\n"
    )
    data, lines = load_yaml(write(tmp_path, text))
    assert data == {
        "leaves": [{"size": 1}, {"size": 2, "colour": "red"}],
        "trunk": {"size": 3},
    }
    assert lines == {
        (): 2,
        ("leaves",): 2,
        ("leaves", 0): 3,
        ("leaves", 0, "size"): 3,
        ("leaves", 1): 5,
        ("leaves", 1, "size"): 5,
        ("leaves", 1, "colour"): 6,
        ("trunk",): 7,
        ("trunk", "size"): 8,
    }


def test_one_key_in_two_places_is_no_duplicate(tmp_path: Path) -> None:
    data, _ = load_yaml(write(tmp_path, "a: &x {k: 1}\nb: *x\nc: {k: 2}\n"))
    assert data == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 2}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", ":5: the key 'c' is given twice (first in line 3)"),
        ("a: 1\nb: [1\n", ":3: not YAML: "),
        ("a: 1\n\tb: 2\n", ":2: not YAML: "),
        ("a: *nobody\n", ":1: not YAML: found undefined alias"),
        ("? [a]\n: 1\n", ":1: not YAML: "),
        ("a: \x07\n", ": not YAML: "),
        ("1: a\n0x1: b\n", ":1: the key '1' is not text to YAML: quote it"),
        ("a: 1\nyes: b\n", ":2: the key 'yes' is not text to YAML: quote it"),
        ("a: !!set {x, y}\n", ":1: not YAML: could not determine a constructor for the tag"),
        ("a: !!binary eA==\n", ":1: not YAML: could not determine a constructor for the tag"),
        ("a: !!omap [? [x] : 1]\n", ":1: not YAML: a key must be text"),
        ("a: !!bool maybe\n", ":1: not YAML: 'maybe' is not what its tag !!bool says"),
        ("a: !!int ''\n", ":1: not YAML: '' is not what its tag !!int says"),
        ("a: 0x" + "f" * 5000, ":1: not YAML: a whole number of 5002 digits is too long"),
        ("a: &a [*a]\n", ": it refers to itself, or is nested too deeply"),
        ("a: " + "[" * 101 + "]" * 101, ": it refers to itself, or is nested too deeply"),
        ("", ": the file is empty"),
        ("null\n", ": the file is empty"),
    ],
)
def test_what_is_not_sound_yaml_is_told(text: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        load_yaml(path)
    assert str(error.value).startswith(f"{path}{says}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001), ("-1.5E+3", -1500.0), (".5", 0.5), ("1_000", 1000), ("0x1f", 31),
        ("010", "010"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("yes", True),
        ("!!float 1", 1.0), ("!!str 1", "1"), ("~", None),
    ],
)  # fmt: skip
def test_a_value_is_what_it_shows(text: str, value: object, tmp_path: Path) -> None:
    """YAML 1.1 reads 010 as 8, 1:30 as 90, 1e-4 as text, and the day as an object."""
    read = load_yaml(write(tmp_path, f"a: {text}\n"))[0]["a"]
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("text", [ALIASES, MERGES], ids=["aliases", "merge keys"])
def test_a_few_lines_that_mean_billions_of_values_are_refused_at_once(
    text: bytes, tmp_path: Path
) -> None:
    assert len(text) < 1000
    start = time.process_time()
    with pytest.raises(ValueError, match=r"t\.yaml: its aliases \(\*\) make more than 20000"):
        load_yaml(write(tmp_path, text.decode()))
    assert time.process_time() - start < 5


def test_a_hundred_mistakes_are_told_in_twenty_lines(tmp_path: Path) -> None:
    lines = told(tmp_path, "leaves: [" + "{}, " * 100 + "]")
    assert len(lines) == 21
    assert lines[-1] == "t.yaml: and 80 more mistakes"


def test_what_a_terminal_would_not_show_is_escaped(tmp_path: Path) -> None:
    (line,) = told(tmp_path, '"\\e[31m": 1\n')
    assert line.startswith("t.yaml:1: \\x1b[31m: unknown key")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    with pytest.raises(ValueError, match=r"cannot read .*t\.yaml: No such file"):
        load_yaml(path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match=r"cannot read .*t\.yaml: .*utf-8"):
        load_yaml(path)


def test_a_misspelt_key_deep_inside(tmp_path: Path) -> None:
    assert told(tmp_path, "leaves:\n  - size: 1\n  - size: 2\n    color: red\n") == [
        "t.yaml:4: leaves.1.color: unknown key; did you mean 'colour'? Allowed here: size, colour"
    ]


def test_an_unknown_key_that_is_like_no_other(tmp_path: Path) -> None:
    assert told(tmp_path, "zzz: 1\n") == [
        "t.yaml:1: zzz: unknown key; Allowed here: leaves, trunk, ids"
    ]


def test_a_missing_key_is_told_at_its_parent(tmp_path: Path) -> None:
    assert told(tmp_path, "trunk:\n  colour: red\nleaves:\n  - size: 1\n  - colour: red\n") == [
        "t.yaml:5: leaves.1.size: this key is missing: add it",
        "t.yaml:1: trunk.size: this key is missing: add it",
    ]


def test_a_mistake_between_fields_is_told_where_it_is(tmp_path: Path) -> None:
    assert told(tmp_path, "leaves:\n  - size: 1\n  - size: 10\n") == [
        "t.yaml:3: leaves.1.size: 10 is too large"
    ]


def test_a_choice_between_types_is_told_by_the_files_own_key(tmp_path: Path) -> None:
    lines = told(tmp_path, "trunk:\n  size: 1\nids: {a: b}\n")
    assert lines
    assert all(line.startswith("t.yaml:3: ids: Input should be") for line in lines)


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    (line,) = told(tmp_path, f"trunk: {{size: {'x' * 500}}}\n")
    assert len(line) < 200
    assert line.endswith("...")


def test_the_keys_that_are_allowed_at_a_place() -> None:
    assert fields_at(Tree, ()) == ["leaves", "trunk", "ids"]
    assert fields_at(Tree, ("leaves", 3)) == ["size", "colour"]
    assert fields_at(Tree, ("trunk",)) == ["size", "colour"]
    assert fields_at(Tree, ("ids",)) == []
