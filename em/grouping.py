"""A long table of values, grouped into one table of counts for each condition and judge.

What is known of its seeds goes with the counts. Knows nothing of what is made of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from em.crossed import Crossed, Floats

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("judge", "condition", "unit", "seed", "question")
COLUMNS = (*KEYS, "value")


Factors = Mapping[str, Mapping[str, str]]
"""Seed factor → its level of each unit."""


class Known(NamedTuple):
    """What is known of a table beside its values.

    The seeds of the conditions in `one_model` are one model's answers. A pair of unit and question
    with fewer than `least` scored values counts nowhere.
    """

    factors: Factors = MappingProxyType({})
    one_model: frozenset[str] = frozenset()
    least: int = 1


class Group(NamedTuple):
    """One condition under one judge: its counts, its rows, and the seed of each unit."""

    judge: str
    condition: str
    counts: Crossed
    num_rows: int
    num_left_out: int
    seed_of: dict[str, str]

    @property
    def seeds(self) -> list[str]:
        """The seed of each unit of the counts."""
        return [self.seed_of.get(unit, unit) for unit in self.counts.units]

    @property
    def by_seed(self) -> Crossed:
        """The counts with the units of one seed as one: they share causes."""
        apart = self.counts.reused or len(set(self.seeds)) == len(self.counts.units)
        return self.counts if apart else self.counts.together(self.seeds)


def grouped(table: pa.Table, known: Known | None = None) -> list[Group]:
    """Return the groups of a table with the columns COLUMNS, in order of appearance.

    A null or NaN value is unscored: it is a row, and in no count. Where one group has values beside
    0 and 1, all are of a scale. Raises ValueError for a table that lacks a column, or has a row
    without a judge, condition, unit, seed or question.
    """
    known = known or Known()
    lacking = [name for name in COLUMNS if name not in table.column_names]
    if lacking:
        raise ValueError(f"the table has no column {lacking[0]!r}: it has {table.column_names}")
    import pyarrow.compute as pc

    for name in KEYS:
        if table[name].null_count:
            raise ValueError(f"{table[name].null_count} rows have no {name}: they count nowhere")
    values = table["value"].cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), None, values)
    # Names by number stay so until they are few: millions of rows have the same ones.
    texts = {
        name: table[name]
        if pa.types.is_dictionary(table[name].type)
        else table[name].cast(pa.string())
        for name in KEYS
    }
    columns = pa.table({**texts, "value": values, "square": pc.multiply(values, values)})
    columns = columns.unify_dictionaries()
    summed = columns.group_by(list(KEYS), use_threads=False).aggregate(
        [("value", "count"), ("value", "sum"), ("square", "sum"), ("seed", "count")]
    )
    for place, name in enumerate(summed.column_names):
        if name in KEYS:
            summed = summed.set_column(place, name, summed[name].cast(pa.string()))
    parts = summed.to_pandas().groupby(["judge", "condition"], sort=False)
    groups = [_group(str(judge), str(name), part, known) for (judge, name), part in parts]
    if all(group.counts.binary for group in groups):
        return groups
    return [group._replace(counts=replace(group.counts, scale=True)) for group in groups]


def _group(judge: str, condition: str, part: "pd.DataFrame", known: Known) -> Group:
    import pandas as pd

    row, units = pd.factorize(part["unit"], sort=True)
    column, questions = pd.factorize(part["question"], sort=True)
    shape = (len(units), len(questions))

    def placed(name: str) -> Floats:
        found = np.zeros(shape)
        np.add.at(found, (row, column), part[name].fillna(0).to_numpy(dtype=float))
        return found

    num = placed("value_count").astype(np.int64)
    counted = num >= known.least
    seed_of = dict(zip(part["unit"], part["seed"], strict=True))
    counts = Crossed(
        units=tuple(units),
        questions=tuple(questions),
        num=np.where(counted, num, 0),
        total=np.where(counted, placed("value_sum"), 0.0),
        squares=np.where(counted, placed("square_sum"), 0.0),
        one_model=condition in known.one_model,
    )
    return Group(
        judge=judge,
        condition=condition,
        counts=_with_factors(counts, [seed_of[unit] for unit in units], known.factors),
        num_rows=int(part["seed_count"].sum()),
        num_left_out=int(num[~counted].sum()),
        seed_of=seed_of,
    )


def _with_factors(counts: Crossed, seeds: Sequence[str], factors: Factors) -> Crossed:
    """Return the counts with the factors' levels, and whether seeds share any that varies.

    So they do where one seed alone is crossed, or a level stands in two of them.
    """
    known = {
        name: tuple(levels[unit] for unit in counts.units)
        for name, levels in factors.items()
        if all(unit in levels for unit in counts.units)
    }
    if not known or counts.one_model:
        return counts
    alone = len(set(seeds)) == 1 < len(counts.units)
    shared = any(
        len(set(levels)) > 1 and len(set(zip(levels, seeds, strict=True))) > len(set(levels))
        for levels in known.values()
    )
    return replace(counts, factors=known, reused=alone or shared)
