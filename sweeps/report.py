"""The report of a sweep: one HTML file that opens offline, its numbers as JSON and parquet.

Missing and failed cells come first; every rate carries the name of its definition. Knows nothing of
how the numbers were made.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em.record import Record
from em.scoring import DEFINITIONS
from sweeps.attempts import statuses
from sweeps.conditions import Condition, conditions
from sweeps.plan import SweepPlan
from sweeps.provenance import commit, versions
from sweeps.results import (
    CellResult,
    ScoredResponse,
    cell_result,
    scored_responses,
)
from sweeps.store import Store
from sweeps.tables import cells_table, judgements_table
from sweeps.times import Overhead, overhead

SAMPLES_SHOWN = 40  # answers in the page; all of them are in judgements.parquet
MANY_LOST = 0.1  # share of responses without a score that is worth a warning


class Report(Record):
    """Everything the page shows, and `report.json`."""

    sweep: str
    description: str
    metric: str
    definition: str
    definition_source: str
    store: str
    written: float
    warnings: tuple[str, ...]
    cells: tuple[CellResult, ...]
    conditions: tuple[Condition, ...]
    overhead: Overhead
    identities: dict[str, Any]


def write_report(sweep: SweepPlan, store: Store, folder: Path) -> Path:
    """Write the four files of the report into `folder` and return the path of the page."""
    from sweeps.page import render

    folder.mkdir(parents=True, exist_ok=True)
    report, rows = make_report(sweep, store)
    data = report.model_dump(mode="json")
    _replace(folder / "report.json", json.dumps(data, indent=1, ensure_ascii=False).encode())
    _replace(folder / "cells.parquet", cells_table(report.cells))
    places = {cell.cell_id: cell for cell in report.cells}
    _replace(folder / "judgements.parquet", judgements_table(rows, places))
    _replace(folder / "report.html", render(report, rows).encode())
    return folder / "report.html"


def make_report(sweep: SweepPlan, store: Store) -> tuple[Report, list[ScoredResponse]]:
    """Return the report and every scored response it comes from."""
    results: list[CellResult] = []
    rows: list[ScoredResponse] = []
    for cell, status in zip(sweep.cells, statuses(sweep, store), strict=True):
        metrics = {e.name: DEFINITIONS[e.metric] for e in cell.evaluations}
        for judging in cell.judgings:
            definition = metrics[judging.evaluation]
            found = scored_responses(cell, judging, store)
            results.append(cell_result(cell, judging, status, found, definition, store))
            rows += found
    definition = DEFINITIONS[sweep.spec.metric]
    report = Report(
        sweep=sweep.spec.name,
        description=sweep.spec.description,
        metric=definition.name,
        definition=definition.text,
        definition_source=definition.source,
        store=store.url,
        written=time.time(),
        warnings=tuple(_warnings(sweep, results)),
        cells=tuple(results),
        conditions=tuple(conditions(results)),
        overhead=overhead(sweep, store),
        identities=_identities(sweep, store),
    )
    return report, rows


def _warnings(sweep: SweepPlan, results: Sequence[CellResult]) -> list[str]:
    found = []
    for judge in sweep.spec.judges:
        if judge.demonstration:
            found.append(
                f"The judge {judge.name!r} is a demonstration: it cannot judge, and every rate in "
                "this report that comes from it means nothing. It shows that the machinery works."
            )
    for state in ("failed", "missing", "running"):
        names = sorted({r.cell_id for r in results if r.state == state})
        if names:
            found.append(
                f"{len(names)} of {len(sweep.cells)} cells are {state}: {', '.join(names)}"
            )
    for (evaluation, name), group in _by_judge(results).items():
        finished = [r for r in group if r.state == "finished"]
        empty = [r.cell_id for r in finished if r.em_rate is None]
        if empty:
            found.append(
                f"{evaluation}, judged by {name}: {len(empty)} of {len(finished)} finished cells "
                f"have no rate, because no answer counts under {group[0].metric} (this is not a "
                f"rate of zero): {', '.join(empty)}"
            )
        responses = sum(r.counts.responses for r in finished)
        unscored = sum(r.counts.unscored for r in finished)
        failed = sum(r.counts.failed for r in finished)
        if unscored + failed > responses * MANY_LOST:
            found.append(
                f"{evaluation}, judged by {name}: {unscored + failed} of {responses} responses "
                f"have no score (unscored {unscored}, failed {failed}); rates speak of the others"
            )
    return found


def _by_judge(results: Sequence[CellResult]) -> dict[tuple[str, str], list[CellResult]]:
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.evaluation, result.judge), []).append(result)
    return groups


def _identities(sweep: SweepPlan, store: Store) -> dict[str, Any]:
    first = {cell.cell.model.name: cell.model_revision for cell in sweep.cells}
    data = {
        cell.cell.variant.name: {
            "datasets": cell.cell.variant.datasets,
            "rows": cell.num_rows,
            "held out": cell.num_held_out,
            "content_sha256": cell.content_sha256,
            "steps": [step.model_dump() for step in cell.steps],
            "warnings": cell.data_warnings,
        }
        for cell in sweep.cells
        if cell.content_sha256
    }
    judges = {j.judge: j.identity["judge"] for j in sweep.cells[0].judgings}
    return {
        "models": first,
        "data (of the first seed)": data,
        "judges": judges,
        "training": sweep.spec.training.model_dump(),
        "serving": sweep.spec.serving.model_dump(),
        "report written with": {"commit": commit(), "versions": versions()},
        "cells made with": _made_with(sweep, store),
    }


def _made_with(sweep: SweepPlan, store: Store) -> list[dict[str, Any]]:
    """Return each distinct (commit, device, versions) that made a finished stage."""
    found: dict[str, dict[str, Any]] = {}
    for cell in sweep.cells:
        training = store.training(cell.training_key) if cell.cell.training else None
        streams = [store.stream("responses", e.stream) for e in cell.evaluations]
        streams += [store.stream("judgements", j.stream) for j in cell.judgings]
        made = [training.provenance] if training else []
        made += [p for stream in streams if stream for p in stream.provenance]
        for p in made:
            one = {"commit": p.commit, "device": p.device, "host": p.host, "versions": p.versions}
            found[json.dumps(one, sort_keys=True)] = one
    return list(found.values())


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_bytes(data)
    partial.replace(path)
