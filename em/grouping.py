"""A long table of values, grouped into one table of counts for each condition and judge.

Knows nothing of what is made of the counts.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from em.crossed import Crossed, Floats

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("judge", "condition", "unit", "seed", "question")
COLUMNS = (*KEYS, "value")


class Group(NamedTuple):
    """One condition under one judge: its counts, its rows, and the seed of each unit."""

    judge: str
    condition: str
    counts: Crossed
    num_rows: int
    seed_of: dict[str, str]


def grouped(table: pa.Table) -> list[Group]:
    """Return the groups of a table with the columns COLUMNS, in order of appearance.

    A null or NaN value is unscored: it is a row, and in no count. Raises ValueError for a table
    that lacks a column, or has a row without a judge, condition, unit, seed or question.
    """
    lacking = [name for name in COLUMNS if name not in table.column_names]
    if lacking:
        raise ValueError(f"the table has no column {lacking[0]!r}: it has {table.column_names}")
    import pyarrow.compute as pc

    for name in KEYS:
        if table[name].null_count:
            raise ValueError(f"{table[name].null_count} rows have no {name}: they count nowhere")
    values = table["value"].cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), None, values)
    texts = {name: table[name].cast(pa.string()) for name in KEYS}
    columns = pa.table({**texts, "value": values, "square": pc.multiply(values, values)})
    summed = columns.group_by(list(KEYS), use_threads=False).aggregate(
        [("value", "count"), ("value", "sum"), ("square", "sum"), ("seed", "count")]
    )
    parts = summed.to_pandas().groupby(["judge", "condition"], sort=False)
    return [_group(str(judge), str(condition), part) for (judge, condition), part in parts]


def _group(judge: str, condition: str, part: "pd.DataFrame") -> Group:
    import pandas as pd

    row, units = pd.factorize(part["unit"], sort=True)
    column, questions = pd.factorize(part["question"], sort=True)
    shape = (len(units), len(questions))

    def placed(name: str) -> Floats:
        found = np.zeros(shape)
        np.add.at(found, (row, column), part[name].fillna(0).to_numpy(dtype=float))
        return found

    return Group(
        judge=judge,
        condition=condition,
        counts=Crossed(
            units=tuple(units),
            questions=tuple(questions),
            num=placed("value_count").astype(np.int64),
            total=placed("value_sum"),
            squares=placed("square_sum"),
        ),
        num_rows=int(part["seed_count"].sum()),
        seed_of=dict(zip(part["unit"], part["seed"], strict=True)),
    )
