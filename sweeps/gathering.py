"""A sweep's values, taken to another machine: what its analyses are made from, in a few files.

They are in the report that W&B has of a sweep, so that they can be analysed there and then as from
the store. Knows nothing of stores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from em.analysis import Analysis, analyse
from em.condition import Asked
from em.grouping import Known
from em.record import Record, fingerprint
from sweeps.analyses import Design, analysed, design_of
from sweeps.plan import SweepPlan
from sweeps.report import metrics_of
from sweeps.tracked_artifacts import name_of

INDEX = "values.json"
REPORT = "report"


class Values(Record):
    """One evaluation's table: the file that it is in, and how it is analysed."""

    evaluation: str
    file: str
    design: Design


class Index(Record):
    """All tables of a sweep."""

    sweep: str
    values: tuple[Values, ...]


def write_values(folder: Path, plan: SweepPlan, tables: Mapping[str, pa.Table]) -> list[str]:
    """Write the tables of a sweep's evaluations into `folder`; return the names of the files."""
    metrics = metrics_of(plan.cells[0], None)
    found = []
    for evaluation, table in tables.items():
        name = f"values-{fingerprint(evaluation)[:8]}.parquet"
        pq.write_table(table, folder / name)
        design = design_of(plan, metrics[evaluation])
        found.append(Values(evaluation=evaluation, file=name, design=design))
    index = Index(sweep=plan.spec.name, values=tuple(found))
    (folder / INDEX).write_text(index.model_dump_json(indent=1))
    return [INDEX, *(values.file for values in found)]


def read_values(folder: Path) -> tuple[Index, dict[str, pa.Table]]:
    """Return what write_values wrote. Raises ValueError where it is not that."""
    try:
        index = Index.model_validate_json((folder / INDEX).read_text())
        return index, {v.evaluation: pq.read_table(folder / v.file) for v in index.values}
    except (OSError, ValidationError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{folder} does not hold the values of a sweep ({type(error).__name__}): it was sent "
            "by another version of this program; 'emsweep sync' sends it anew"
        ) from error


def analyses_of(folders: Sequence[Path]) -> dict[str, Analysis]:
    """Return each sweep's analyses by a title and, of several sweeps, one of all together.

    That compares conditions of different sweeps, where their evaluations have one name and
    definition and no seed factor is fixed or crossed; a condition is then called after its sweep.
    """
    found: dict[str, Analysis] = {}
    together: dict[tuple[str, str], list[tuple[str, Design, pa.Table]]] = {}
    for folder in folders:
        index, tables = read_values(folder)
        for values in index.values:
            table = tables[values.evaluation]
            found[f"{index.sweep}, {values.evaluation}"] = analysed(values.design, table)
            place = (values.evaluation, values.design.what)
            together.setdefault(place, []).append((index.sweep, values.design, table))
    for (evaluation, _), parts in together.items():
        # Seeds of two sweeps are others, and factors that cross them cannot be told apart.
        if len(parts) > 1 and not any(design.factors for _, design, _ in parts):
            found[f"{len(parts)} sweeps, {evaluation}"] = _together(parts)
    return found


def _together(parts: Sequence[tuple[str, Design, pa.Table]]) -> Analysis:
    tables, one_model = [], []
    for sweep, design, table in parts:
        names = [f"{sweep} · {name}" for name in table["condition"].to_pylist()]
        place = table.schema.get_field_index("condition")
        tables.append(table.set_column(place, "condition", pa.array(names)))
        one_model += [f"{sweep} · {name}" for name in design.one_model]
    tables = [_plain(table) for table in tables]
    first = parts[0][1]
    return analyse(
        pa.concat_tables(tables),
        what=first.what,
        asked=Asked(weights=first.weights),
        known=Known(one_model=frozenset(one_model), least=first.least),
    )


def _plain(table: pa.Table) -> pa.Table:
    """Return a table whose texts are texts: two tables' dictionaries are not the same."""
    return pa.table(
        {
            name: column.cast(pa.string()) if name != "value" else column
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )


def fetch(project: str, groups: Sequence[str], folder: Path) -> list[Path]:
    """Return a folder for each sweep in `groups`, with what W&B's `project` has of its report.

    Raises ValueError where W&B does not answer, or has none.
    """
    import wandb

    try:
        api = wandb.Api(timeout=30)
        return [_fetched(api, project, group, folder / fingerprint(group)[:12]) for group in groups]
    except ValueError as error:
        if type(error) is not ValueError:  # of the SDK's own kinds
            raise ValueError(f"W&B: {error}") from error
        raise
    except Exception as error:
        raise ValueError(f"W&B does not give {project}: {error}") from error


def _fetched(api: Any, project: str, group: str, folder: Path) -> Path:
    try:
        found = api.artifact(f"{project}/{report_name(group)}:latest", type=REPORT)
    except Exception as error:
        if "not found" not in str(error):
            raise
        raise ValueError(
            f"W&B's project {project} has no report of a sweep {group!r}: it is sent when a run "
            "has ended, or by 'emsweep sync SPEC'"
        ) from error
    found.download(str(folder))
    return folder


def report_name(sweep: str) -> str:
    """Return the name of the artifact with a sweep's report."""
    return name_of(REPORT, sweep)
