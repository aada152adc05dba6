"""The value of each row of a table: whether it counts as misaligned, or what number it has.

By columns and rules that the user names; what stands for no score is null. Knows nothing of
conditions or seeds.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from em.definitions import DEFINITIONS, ScaleDefinition
from em.record import Record

RULE = re.compile(r"\s*(?P<column>\S+)\s+(?P<how>in|not in|==|!=|<=|>=|<|>)\s+(?P<value>.+?)\s*")
How = Literal["in", "not in", "==", "!=", "<=", ">=", "<", ">"]
ORDERED = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


class Rule(Record):
    """Whether a row counts as misaligned: a comparison of one column."""

    column: str
    how: How
    values: tuple[str, ...]


class TableColumns(Record):
    """Which column is what. Exactly one way to a value is given (see em.long_tables.read)."""

    condition: tuple[str, ...] = Field(
        default=(), description="the factors that tell conditions apart; none: all rows are one"
    )
    question: str
    seed: str | None = Field(default=None, description="None: of the file's name, else one seed")
    seed_pattern: str | None = Field(default=None, description="with one group, of a file's name")
    judge: str | None = None
    sample: str | None = Field(default=None, description="tells samples apart: none stands twice")
    value: str | None = Field(default=None, description="binary or any number")
    misaligned: Rule | None = None
    unscored: tuple[str, ...] = Field(default=(), description="texts that stand for no score")
    aligned: str | None = Field(default=None, description="0 to 100, with `coherent` and `metric`")
    coherent: str | None = None
    metric: str = "pooled_c50"


def parse_rule(text: str) -> Rule:
    """Return the rule in words such as `verdict in 4,5`. Raises ValueError with what is allowed."""
    match = RULE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a rule: write COLUMN in A,B or COLUMN < NUMBER (in, not in, ==, !=, "
            "<, <=, >, >=)"
        )
    values = tuple(part.strip() for part in match["value"].split(","))
    how: Any = match["how"]
    if how in ORDERED and not _is_number(values[0]):
        raise ValueError(f"{text!r}: {values[0]!r} is not a number, which {how} needs")
    if how not in ("in", "not in") and len(values) > 1:
        raise ValueError(f"{text!r}: {how} takes one value, {len(values)} are given: use in")
    return Rule(column=match["column"], how=how, values=values)


def values_of(rows: pa.Table, columns: TableColumns) -> Any:
    """Return the value of each row as a number; null where it has no score.

    Raises ValueError for text where a number is needed, and for a metric of other scores.
    """
    if columns.misaligned is not None:
        return _by_rule(rows, columns.misaligned, columns.unscored)
    if columns.value is not None:
        return _numbers(rows, columns.value, columns.unscored)
    assert columns.aligned is not None and columns.coherent is not None
    definition = DEFINITIONS.get(columns.metric)
    if not isinstance(definition, ScaleDefinition):
        names = ", ".join(n for n, d in DEFINITIONS.items() if isinstance(d, ScaleDefinition))
        raise ValueError(f"{columns.metric!r} is no definition of two scores: allowed are {names}")
    aligned = _numbers(rows, columns.aligned, columns.unscored)
    coherent = _numbers(rows, columns.coherent, columns.unscored)
    less = pc.less_equal if definition.aligned_inclusive else pc.less
    more = pc.greater_equal if definition.coherent_inclusive else pc.greater
    low = less(aligned, definition.aligned_below)
    clear = more(coherent, definition.coherent_from)
    if definition.joint:
        return pc.and_(low, clear).cast(pa.float64())
    return pc.if_else(clear, low, None).cast(pa.float64())


def _by_rule(rows: pa.Table, rule: Rule, unscored: Sequence[str]) -> Any:
    texts = _plain(text_of(rows, rule.column))
    nothing = pc.or_kleene(pc.is_null(texts), pc.is_in(texts, pa.array(unscored, pa.string())))
    if rule.how in ORDERED:
        numbers = _numbers(rows, rule.column, unscored)
        hit = ORDERED[rule.how](numbers, float(rule.values[0]))
    else:
        wanted = _plain(pa.array(rule.values, pa.string()))
        hit = pc.is_in(texts, wanted)
        if rule.how in ("not in", "!="):
            hit = pc.invert(hit)
    return pc.if_else(nothing, None, hit).cast(pa.float64())


def _numbers(rows: pa.Table, name: str, unscored: Sequence[str]) -> Any:
    """Return a column as numbers; `unscored` texts and empty places are null."""
    column = rows[name]
    if pa.types.is_boolean(column.type):
        return column.cast(pa.float64())
    texts = _plain(text_of(rows, name))
    texts = pc.if_else(pc.is_in(texts, pa.array(unscored, pa.string())), None, texts)
    try:
        numbers = pc.cast(texts, pa.float64())
    except pa.ArrowInvalid:
        bad = [t for t in pc.unique(texts).to_pylist() if t is not None and not _is_number(t)]
        raise ValueError(
            f"the column {name!r} has text where a number is needed: {', '.join(bad[:5])}. Name "
            "what stands for no score with --unscored, or say what counts with --misaligned "
            f"'{name} in …'"
        ) from None
    if not pc.all(pc.or_kleene(pc.is_null(numbers), pc.is_finite(numbers))).as_py():
        raise ValueError(f"the column {name!r} has infinite or not-a-number values: take them out")
    return numbers


def _plain(texts: Any) -> Any:
    """Return texts without space around them; whole numbers are one text: 4, 4.0 and ' 4'."""
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.replace_substring_regex(trimmed, r"^([+-]?\d+)\.0+$", r"\1")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def told_of(rows: pa.Table, columns: TableColumns) -> list[str]:
    """Return what to say of values that are named and stand in no row, or stand and are not named.

    Either may be a slip of the pen.
    """
    name = columns.misaligned.column if columns.misaligned else columns.value
    if name is None or (columns.misaligned is not None and columns.misaligned.how in ORDERED):
        return []
    there = set(pc.unique(_plain(text_of(rows, name))).to_pylist())
    gone = [text for text in columns.unscored if _one(text) not in there]
    said = _words_among_numbers(rows, columns)
    counted = columns.misaligned.values if columns.misaligned else ()
    if not there & {_one(text) for text in counted}:
        gone = [*counted, *gone]
    return [*said, *([f"no row of {name!r} is {', '.join(map(repr, gone))}"] if gone else [])]


def _words_among_numbers(rows: pa.Table, columns: TableColumns) -> list[str]:
    """Return what to say of texts that a rule over numbers does not name: they count as no hit."""
    rule = columns.misaligned
    if rule is None or not all(map(_is_number, rule.values)):
        return []
    texts = _plain(text_of(rows, rule.column))
    counted = {one["values"]: one["counts"] for one in pc.value_counts(texts).to_pylist()}
    named = {_one(text) for text in columns.unscored}
    words = {t: n for t, n in counted.items() if t and not _is_number(t) and t not in named}
    if not words:
        return []
    listed = ", ".join(
        f"{n} {text!r}" for text, n in sorted(words.items(), key=lambda w: -w[1])[:6]
    )
    how = "count" if rule.how in ("not in", "!=") else "count as not misaligned"
    return [
        f"{sum(words.values())} rows of {rule.column!r} are no number and {how}: {listed}. Where "
        "they are no score, name them with --unscored"
    ]


def _one(text: str) -> str:
    return str(_plain(pa.array([text]))[0].as_py())


def text_of(rows: pa.Table, name: str) -> Any:
    """Return a column as texts. Raises ValueError for one of lists or objects."""
    column = rows[name]
    if pa.types.is_nested(column.type):
        raise ValueError(f"the column {name!r} holds lists or objects: name one of plain values")
    return column.cast(pa.string())
