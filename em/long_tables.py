"""A table of anyone's judged answers, read from csv, parquet or jsonl, as the analysis takes it.

Which column is what is told by the user; nothing is guessed, and nothing is left out in silence.
Knows nothing of what is made of the values.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from em.attribution import Grid
from em.definitions import DEFINITIONS, ScaleDefinition
from em.record import Record
from em.table_files import FILE, read_files

RULE = re.compile(r"\s*(?P<column>\S+)\s+(?P<how>in|not in|==|!=|<=|>=|<|>)\s+(?P<value>.+?)\s*")
How = Literal["in", "not in", "==", "!=", "<=", ">=", "<", ">"]
JOINT, LEVEL_OF = " · ", "level of "
ORDERED = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}


class Rule(Record):
    """Whether a row counts as misaligned: a comparison of one column."""

    column: str
    how: How
    values: tuple[str, ...]


class TableColumns(Record):
    """Which column is what. Exactly one way to a value is given (see `read`)."""

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


def read(paths: Sequence[Path], columns: TableColumns) -> tuple[pa.Table, list[str]]:
    """Return the rows of `paths` with the columns of em.grouping, and what to say of them.

    Beside them stands a column for each factor of the conditions, for `grid_in`. Unscored values
    are null. Raises ValueError for files that cannot be read, columns that are not there, text
    where a number is needed, samples that stand twice, and where no way to a value, or more than
    one, is given.
    """
    given = [columns.value, columns.misaligned, columns.aligned]
    if sum(one is not None for one in given) != 1:
        raise ValueError(
            "say how a row counts in one way: --value COLUMN, --misaligned 'COLUMN in A,B', or "
            "--aligned and --coherent"
        )
    rows = read_files(paths)
    _check_columns(rows, columns)
    seeds = _seeds(rows, columns)
    factors = {f"{LEVEL_OF}{name}": _text(rows, name) for name in columns.condition}
    for name, levels in factors.items():
        _check_no_nulls(levels, name.removeprefix(LEVEL_OF))
    found = {
        "judge": _text(rows, columns.judge) if columns.judge else pa.array([""] * rows.num_rows),
        "condition": pc.binary_join_element_wise(*factors.values(), JOINT)
        if factors
        else pa.array(["all"] * rows.num_rows),
        "unit": seeds,
        "seed": seeds,
        "question": _text(rows, columns.question),
        "value": _values(rows, columns),
    }
    for name in ("judge", "question"):
        _check_no_nulls(found[name], name)
    never = _never(rows, columns)
    if columns.sample is None:
        return pa.table(found | factors), [*never, *_alike(rows)]
    keys = {name: found[name] for name in ("judge", "condition", "seed", "question")}
    _check_twice(rows, pa.table(keys | {"sample": _text(rows, columns.sample)}))
    return pa.table(found | factors), never


def grid_in(table: pa.Table) -> Grid | None:
    """Return the levels of each condition in a table that `read` gave; None without factors."""
    names = [name for name in table.column_names if name.startswith(LEVEL_OF)]
    if not names:
        return None
    rows = table.group_by(["condition", *names]).aggregate([]).to_pylist()
    levels = {row["condition"]: tuple(row[name] for name in names) for row in rows}
    if len(levels) < len(rows):
        twice = next(c for c, n in Counter(row["condition"] for row in rows).items() if n > 1)
        raise ValueError(
            f"two conditions would be called {twice!r}: give their columns other texts"
        )
    return Grid(factors=tuple(name.removeprefix(LEVEL_OF) for name in names), levels=levels)


def _never(rows: pa.Table, columns: TableColumns) -> list[str]:
    """Return what to say of values that are named and stand in no row: a slip of the pen."""
    name = columns.misaligned.column if columns.misaligned else columns.value
    if name is None or (columns.misaligned is not None and columns.misaligned.how in ORDERED):
        return []
    there = set(pc.unique(_plain(_text(rows, name))).to_pylist())
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
    texts = _plain(_text(rows, rule.column))
    counted = Counter(text for text in texts.to_pylist() if text is not None)
    named = {_one(text) for text in columns.unscored}
    words = {t: n for t, n in counted.items() if not _is_number(t) and t not in named}
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


def _check_columns(rows: pa.Table, columns: TableColumns) -> None:
    wanted = [
        *columns.condition, columns.question, columns.seed, columns.judge, columns.value,
        columns.aligned, columns.coherent, columns.sample,
        columns.misaligned.column if columns.misaligned else None,
    ]  # fmt: skip
    for name in wanted:
        if name is not None and name not in rows.column_names:
            there = ", ".join(name for name in rows.column_names if name != FILE)
            raise ValueError(f"no column {name!r}: the table has {there}")
    if columns.aligned and not columns.coherent:
        raise ValueError("--aligned needs --coherent, the other score that the definition reads")


def _check_twice(rows: pa.Table, keys: pa.Table) -> None:
    """Refuse two rows of one sample: they would count twice."""
    names = keys.column_names
    counted = keys.group_by(names).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted["count_all"], 1))
    if twice.num_rows:
        first = ", ".join(f"{name} {twice[name][0].as_py()}" for name in names)
        raise ValueError(
            f"{twice.num_rows} samples stand in several rows of {rows.num_rows}, the first is "
            f"{first}: they would count twice; take out the copies"
        )


def _alike(rows: pa.Table) -> list[str]:
    """Return what to say of rows that are alike in every column: they may be copies."""
    import pandas as pd

    flat = [
        name
        for name, kind in zip(rows.column_names, rows.schema.types, strict=True)
        if not pa.types.is_nested(kind) and name != FILE
    ]
    hashes = pd.util.hash_pandas_object(rows.select(flat).to_pandas(), index=False)
    twice = int(hashes.duplicated().sum())
    if not twice:
        return []
    return [
        f"{twice} of {rows.num_rows} rows are like another row in every column: if they are copies "
        "they count twice. Name a column that tells samples apart with --sample, and copies are "
        "refused"
    ]


def _check_no_nulls(values: Any, name: str) -> None:
    nulls = values.null_count
    if nulls:
        raise ValueError(
            f"{nulls} rows have no {name}: fill them or take them out, so that nothing is guessed"
        )


def _text(rows: pa.Table, name: str) -> Any:
    column = rows[name]
    if pa.types.is_nested(column.type):
        raise ValueError(f"the column {name!r} holds lists or objects: name one of plain values")
    return column.cast(pa.string())


def _seeds(rows: pa.Table, columns: TableColumns) -> Any:
    if columns.seed is not None:
        found = _text(rows, columns.seed)
        _check_no_nulls(found, "seed")
        return found
    if columns.seed_pattern is None:
        return pa.array(["0"] * rows.num_rows)
    try:
        pattern = re.compile(columns.seed_pattern)
    except re.error as error:
        raise ValueError(f"--seed-from {columns.seed_pattern!r} is no pattern: {error}") from error
    if pattern.groups != 1:
        raise ValueError(
            f"--seed-from {columns.seed_pattern!r} needs one group, as in 'seed(\\d+)'"
        )
    of: dict[str, str] = {}
    for name in pc.unique(rows[FILE]).to_pylist():
        match = pattern.search(name)
        if match is None:
            raise ValueError(
                f"--seed-from {columns.seed_pattern!r} is not in the file name {name!r}"
            )
        of[name] = match[1]
    return pa.array([of[name] for name in rows[FILE].to_pylist()])


def _values(rows: pa.Table, columns: TableColumns) -> Any:
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
    texts = _plain(_text(rows, rule.column))
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
    texts = _plain(_text(rows, name))
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
