import hashlib
import math
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from em.record import Record, canonical_json, fingerprint


class Point(Record):
    x: float
    label: str = "é"


def test_canonical_json_is_what_it_says() -> None:
    value = {"b": (True, None), "a": [1, 0.5, "é"], "p": PurePosixPath("x/y"), "r": Point(x=2.0)}
    text = '{"a":[1,0.5,"é"],"b":[true,null],"p":"x/y","r":{"label":"é","x":2}}'
    assert canonical_json(value) == text
    assert fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()


def test_a_whole_float_is_the_integer() -> None:
    assert fingerprint({"lr": 1.0}) == fingerprint({"lr": 1})
    assert fingerprint(-0.0) == fingerprint(0)
    assert fingerprint(1.5) != fingerprint(1)
    assert fingerprint(True) != fingerprint(1)
    assert fingerprint("1") != fingerprint(1)


def test_a_tuple_is_the_list_and_a_record_its_mapping() -> None:
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint(Point(x=1)) == fingerprint({"x": 1, "label": "é"})


keys = st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
).filter(lambda value: "inf" not in repr(value))


@given(st.dictionaries(keys, values, max_size=5))
def test_the_order_of_keys_does_not_matter(mapping: dict[str, object]) -> None:
    backwards = dict(reversed(mapping.items()))
    assert canonical_json(backwards) == canonical_json(mapping)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"deep": [math.nan]}])
def test_numbers_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        fingerprint(value)


@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset(), b"bytes", bytearray(b"x"), memoryview(b"x"), object(), 1j]
)
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=f"cannot fingerprint a {type(value).__name__}"):
        fingerprint([value])


def test_keys_must_be_strings() -> None:
    with pytest.raises(TypeError, match="the key 1: keys must be strings"):
        fingerprint({1: "a"})


def test_a_record_is_frozen_and_refuses_what_it_does_not_know() -> None:
    point = Point(x=1)
    with pytest.raises(ValidationError, match="frozen"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Point.model_validate({"x": 1, "y": 2})
    with pytest.raises(ValidationError, match="finite"):
        Point(x=math.nan)
