"""A table of anyone's judged answers, read from csv, parquet or jsonl, as the analysis takes it.

Which column is what is told by the user; nothing is guessed, and nothing is left out in silence.
Knows nothing of what is made of the values.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from em.attribution import Grid
from em.table_files import FILE, read_files
from em.table_values import TableColumns as TableColumns
from em.table_values import parse_rule as parse_rule
from em.table_values import text_of, told_of, values_of

JOINT, LEVEL_OF = " · ", "level of "


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
    factors = {f"{LEVEL_OF}{name}": text_of(rows, name) for name in columns.condition}
    for name, levels in factors.items():
        _check_no_nulls(levels, name.removeprefix(LEVEL_OF))
    found = {
        "judge": text_of(rows, columns.judge) if columns.judge else pa.array([""] * rows.num_rows),
        "condition": pc.binary_join_element_wise(*factors.values(), JOINT)
        if factors
        else pa.array(["all"] * rows.num_rows),
        "unit": seeds,
        "seed": seeds,
        "question": text_of(rows, columns.question),
        "value": values_of(rows, columns),
    }
    for name in ("judge", "question"):
        _check_no_nulls(found[name], name)
    never = told_of(rows, columns)
    if columns.sample is None:
        return pa.table(found | factors), [*never, *_alike(rows)]
    keys = {name: found[name] for name in ("judge", "condition", "seed", "question")}
    _check_twice(rows, pa.table(keys | {"sample": text_of(rows, columns.sample)}))
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


def _seeds(rows: pa.Table, columns: TableColumns) -> Any:
    if columns.seed is not None:
        found = text_of(rows, columns.seed)
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
