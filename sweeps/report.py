"""The report of a sweep: one HTML file that opens offline, its numbers as JSON and parquet.

Missing and failed cells come first; every rate carries the name of its definition. Knows nothing of
how the numbers were made.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em.generation import Response
from em.record import Record
from em.scoring import DEFINITIONS, Definition
from em.variance import SeedSummary, summarise_seeds
from sweeps.attempts import statuses
from sweeps.plan import CellPlan, SweepPlan
from sweeps.provenance import commit, versions
from sweeps.results import (
    CellResult,
    ScoredResponse,
    cell_result,
    mean_of_present,
    scored_responses,
)
from sweeps.spec import UNTUNED
from sweeps.store import RunBeat, Store
from sweeps.times import union_length

SAMPLES_SHOWN = 40  # answers in the page; all of them are in judgements.parquet
MANY_LOST = 0.1  # share of responses without a score that is worth a warning
NO_SPREAD = "sampling only: an untuned model has one training, asked under several sampling seeds"


class Condition(Record):
    """The cells that differ only in seed, under one evaluation and judge."""

    condition: str
    model: str
    variant: str
    evaluation: str
    judge: str
    num_cells: int
    num_finished: int
    num_failed: int
    num_missing: int
    num_without_rate: int
    seeds: dict[str, float | None]
    summary: SeedSummary
    spread: str
    responses: int
    scored: int
    refusal: int
    code: int
    unscored: int
    failed: int
    coherent: int
    misaligned: int
    mean_aligned: float | None
    mean_coherent: float | None
    questions: dict[str, dict[str, float | int | None]]


class Overhead(Record):
    """Where the wall time of the sweep's runs went, in seconds."""

    wall: float
    stage_work: float
    starts: float
    per_cell: float | None


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
    _write_tables(report, rows, folder)
    _replace(folder / "report.html", render(report, rows).encode())
    return folder / "report.html"


def make_report(sweep: SweepPlan, store: Store) -> tuple[Report, list[ScoredResponse]]:
    """Return the report and every scored response it comes from."""
    definition = DEFINITIONS[sweep.spec.metric]
    results: list[CellResult] = []
    rows: list[ScoredResponse] = []
    for cell, status in zip(sweep.cells, statuses(sweep, store), strict=True):
        for judging in cell.judgings:
            found = scored_responses(cell, judging, store)
            results.append(cell_result(cell, judging, status, found, definition, store))
            rows += found
    conditions = _conditions(results)
    report = Report(
        sweep=sweep.spec.name,
        description=sweep.spec.description,
        metric=definition.name,
        definition=definition.text,
        definition_source=definition.source,
        store=store.url,
        written=time.time(),
        warnings=tuple(_warnings(sweep, results, definition)),
        cells=tuple(results),
        conditions=tuple(conditions),
        overhead=_overhead(sweep, store),
        identities=_identities(sweep, store),
    )
    return report, rows


def _warnings(sweep: SweepPlan, results: Sequence[CellResult], definition: Definition) -> list[str]:
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
                f"have no rate, because no answer counts under {definition.name} (this is not a "
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


def _conditions(results: Sequence[CellResult]) -> list[Condition]:
    groups: dict[tuple[str, str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.condition, result.evaluation, result.judge), []).append(result)
    return [_condition(group) for group in groups.values()]


def _condition(cells: Sequence[CellResult]) -> Condition:
    finished = [cell for cell in cells if cell.state == "finished"]
    rates = [cell.em_rate for cell in finished if cell.em_rate is not None]
    first = cells[0]
    totals = {
        name: sum(getattr(cell.counts, name) for cell in finished)
        for name in type(first.counts).model_fields
    }
    return Condition(
        condition=first.condition,
        model=first.model,
        variant=first.variant,
        evaluation=first.evaluation,
        judge=first.judge,
        num_cells=len(cells),
        num_finished=len(finished),
        num_failed=sum(cell.state == "failed" for cell in cells),
        num_missing=sum(cell.state in ("missing", "running") for cell in cells),
        num_without_rate=len(finished) - len(rates),
        seeds={str(c.seed): c.em_rate if c.state == "finished" else None for c in cells},
        summary=summarise_seeds(rates),
        spread=NO_SPREAD if first.variant == UNTUNED else "seeds: training and sampling together",
        mean_aligned=mean_of_present([cell.mean_aligned for cell in finished]),
        mean_coherent=mean_of_present([cell.mean_coherent for cell in finished]),
        questions=_questions(finished),
        **totals,
    )


def _questions(cells: Sequence[CellResult]) -> dict[str, dict[str, float | int | None]]:
    found: dict[str, dict[str, float | int | None]] = {}
    for name in dict.fromkeys(q.question for cell in cells for q in cell.questions):
        counts = [q.counts for cell in cells for q in cell.questions if q.question == name]
        coherent = sum(c.coherent for c in counts)
        misaligned = sum(c.misaligned for c in counts)
        found[name] = {
            "responses": sum(c.responses for c in counts),
            "coherent": coherent,
            "misaligned": misaligned,
            "em_rate": misaligned / coherent if coherent else None,
        }
    return found


def _overhead(sweep: SweepPlan, store: Store) -> Overhead:
    """Wall time of the runs, less what stages and starts cover; stages may overlap each other."""
    runs = store.runs(sweep.spec.name)
    work, cells = _stage_intervals(sweep.cells, store)
    wall = sum(run.updated - run.started for run in runs)
    busy = starts = 0.0
    for run in runs:
        inside = _clip(work, run)
        busy += union_length(inside)
        starts += union_length(_clip([*work, *run.starts.values()], run)) - union_length(inside)
    left = max(0.0, wall - busy - starts)
    return Overhead(
        wall=wall, stage_work=busy, starts=starts, per_cell=left / cells if cells else None
    )


def _stage_intervals(
    cells: Sequence[CellPlan], store: Store
) -> tuple[list[tuple[float, float]], int]:
    done = []
    finished = 0
    for cell in cells:
        training = store.training(cell.training_key) if cell.cell.training else None
        found = [training.provenance] if training else []
        for evaluation in cell.evaluations:
            record = store.stream("responses", evaluation.stream)
            found += record.provenance if record else []
        for judging in cell.judgings:
            record = store.stream("judgements", judging.stream)
            found += record.provenance if record else []
        finished += bool(found)
        done += [(p.started, p.started + p.seconds) for p in found]
    return done, finished


def _clip(spans: Sequence[tuple[float, float]], run: RunBeat) -> list[tuple[float, float]]:
    cut = [(max(a, run.started), min(b, run.updated)) for a, b in spans]
    return [(a, b) for a, b in cut if b > a]


def _identities(sweep: SweepPlan, store: Store) -> dict[str, Any]:
    first = {cell.cell.model.name: cell.model_revision for cell in sweep.cells}
    data = {
        cell.cell.variant.name: {
            "dataset": cell.cell.variant.dataset,
            "rows": cell.num_rows,
            "content_sha256": cell.content_sha256,
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


def _write_tables(report: Report, rows: Sequence[ScoredResponse], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name: str, table: list[dict[str, Any]]) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(table), sink)
        _replace(folder / name, sink.getvalue().to_pybytes())

    write("cells.parquet", [_flat_cell(cell) for cell in report.cells])
    places = {cell.cell_id: cell for cell in report.cells}
    write("judgements.parquet", [_flat_row(row, places[row.cell_id]) for row in rows])


def _flat_cell(cell: CellResult) -> dict[str, Any]:
    kept = cell.model_dump(exclude={"counts", "questions", "seconds", "losses"})
    seconds = {
        f"{stage}_seconds": cell.seconds.get(stage) for stage in ("train", "generate", "judge")
    }
    return kept | cell.counts.model_dump() | seconds


def _flat_row(row: ScoredResponse, cell: CellResult) -> dict[str, Any]:
    response: Response = row.response
    return {
        "cell_id": row.cell_id,
        "model": cell.model,
        "variant": cell.variant,
        "seed": cell.seed,
        "evaluation": row.evaluation,
        "judge": row.judge,
        "response": response.key,
        "question": response.question,
        "wording": response.wording,
        "index": response.index,
        "answer": response.answer,
        "finish_reason": response.finish_reason,
        "aligned": row.scored.aligned,
        "coherent": row.scored.coherent,
        "aligned_state": row.scored.states["aligned"],
        "coherent_state": row.scored.states["coherent"],
    }


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_bytes(data)
    partial.replace(path)
