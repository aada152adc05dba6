"""The report of a sweep: one HTML file that opens offline, its numbers as JSON and parquet.

Missing and failed cells come first; every rate carries the name of its definition. Knows nothing of
how the numbers were made.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from em.analysis import Analysis
from em.contrasts import Contrast
from em.definitions import DEFINITIONS, Definition
from em.forms import Form
from em.record import Record
from em.scoring import check_metric, scores_needed
from sweeps.analyses import analyses, between_forms, tables_of
from sweeps.asking import given_scores
from sweeps.attempts import statuses
from sweeps.claims import ClaimResult, decide
from sweeps.conditions import Condition, conditions
from sweeps.files import make_output_dir, write_output
from sweeps.gates_told import gate_warnings
from sweeps.identities import identities
from sweeps.judges_compared import JudgesCompared, compare_judges
from sweeps.keeping import told
from sweeps.made_with import mixed_versions
from sweeps.plan import CellPlan, SweepPlan
from sweeps.published import (
    NO_FIGURE,
    Estimand,
    catalogue_contents,
    catalogue_rows,
    load_figures,
    published_figure,
    question_set,
)
from sweeps.results import (
    CellResult,
    ScoredResponse,
    cell_result,
    scored_responses,
)
from sweeps.sensitivity import Sensitivity, sensitivity
from sweeps.store import Store
from sweeps.tables import cells_table, judgements_table
from sweeps.times import Overhead, overhead

SAMPLES_SHOWN = 200  # answers in the page, about; all of them are in judgements.parquet
MANY_LOST = 0.1  # share of responses without a score that is worth a warning


class DefinitionUsed(Record):
    """A definition that some rate of the report follows, in words."""

    name: str
    version: int
    text: str
    source: str


class Report(Record):
    """Everything the page shows, and `report.json`.

    `metric` is the sweep's definition, or the one that was asked for; an evaluation may follow one
    of its own, which its cells and conditions name. `definitions` are all that are followed.
    """

    sweep: str
    description: str
    metric: str
    definition: str
    definition_source: str
    definitions: tuple[DefinitionUsed, ...] = ()
    store: str
    written: float
    warnings: tuple[str, ...]
    cells: tuple[CellResult, ...]
    conditions: tuple[Condition, ...]
    judges_compared: tuple[JudgesCompared, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    analyses: dict[str, Analysis] = Field(default_factory=dict, description="by evaluation")
    forms: tuple[Contrast, ...] = Field(
        default=(), description="evaluations that put the same questions in two forms, compared"
    )
    claims: tuple[ClaimResult, ...] = ()
    overhead: Overhead
    identities: dict[str, Any]


def write_report(
    sweep: SweepPlan, store: Store, folder: Path, *, metric: str | None = None
) -> Path:
    """Write the report's four files, and its pictures, into `folder`; return the page's path.

    `metric` names a definition to follow instead of the spec's. Raises ValueError as `metrics_of`.
    """
    from sweeps.analysis_page import slug, write_pictures
    from sweeps.page import render, write_own_pictures

    report, rows = make_report(sweep, store, metric=metric)
    make_output_dir(folder)
    data = report.model_dump(mode="json")
    write_output(folder / "report.json", json.dumps(data, indent=1, ensure_ascii=False).encode())
    write_output(folder / "cells.parquet", cells_table(report.cells))
    places = {cell.cell_id: cell for cell in report.cells}
    write_output(folder / "judgements.parquet", judgements_table(rows, places))
    write_output(folder / "report.html", render(report, rows).encode())
    for name, analysis in report.analyses.items():
        prefix = f"{slug(name)}-" if len(report.analyses) > 1 else ""
        write_pictures(analysis, folder / "figures", prefix=prefix)
    write_own_pictures(report, rows, folder / "figures")
    return folder / "report.html"


def metrics_of(cell: CellPlan, metric: str | None) -> dict[str, Definition]:
    """Return the definition that each evaluation of `cell` follows, by the evaluation's name.

    With `metric`, it replaces that of every evaluation whose judges give the scores it needs.
    Raises ValueError for a metric that is not known, or that fits no evaluation.
    """
    own = {e.name: DEFINITIONS[e.metric] for e in cell.evaluations}
    if metric is None:
        return own
    if metric not in DEFINITIONS:
        raise ValueError(f"unknown metric {metric!r}: allowed are {', '.join(DEFINITIONS)}")
    asked = DEFINITIONS[metric]
    refused: list[ValueError] = []
    for name in own:
        given = {j.judge: j.labels for j in cell.judgings if j.evaluation == name}
        try:
            check_metric(asked, given)
            own[name] = asked
        except ValueError as error:
            refused.append(ValueError(f"evaluation {name!r}: {error}"))
    if len(refused) == len(own):
        raise refused[0]
    return own


def make_report(
    sweep: SweepPlan, store: Store, *, metric: str | None = None
) -> tuple[Report, list[ScoredResponse]]:
    """Return the report and every scored response it comes from. Errors as `metrics_of`."""
    results: list[CellResult] = []
    rows: list[ScoredResponse] = []
    metrics = metrics_of(sweep.cells[0], metric)  # cells share their evaluations and judges
    for cell, status in zip(sweep.cells, statuses(sweep, store), strict=True):
        for judging in cell.judgings:
            found = scored_responses(cell, judging, store)
            definition = metrics[judging.evaluation]
            results.append(cell_result(cell, judging, status, found, definition, store))
            rows += found
    definition = DEFINITIONS[metric or sweep.spec.metric]
    figures = _figures(sweep, metrics)
    grouped = [
        c.model_copy(update={"published": figures[c.model, c.variant, c.evaluation]})
        for c in conditions(results)
    ]
    tables = tables_of(sweep, results, rows, metrics)
    report = Report(
        sweep=sweep.spec.name,
        description=sweep.spec.description,
        metric=definition.name,
        definition=definition.text,
        definition_source=definition.source,
        definitions=tuple(_in_words(d) for d in {d.name: d for d in metrics.values()}.values()),
        store=store.url,
        written=time.time(),
        warnings=(
            *_warnings(sweep, results, metrics),
            *told(sweep),
            *mixed_versions(sweep, store),
            *gate_warnings(sweep, store),
        ),
        cells=tuple(results),
        conditions=tuple(grouped),
        judges_compared=tuple(compare_judges(grouped, results, rows)),
        sensitivity=tuple(sensitivity(grouped, results, rows)),
        analyses=analyses(sweep, tables, metrics),
        forms=tuple(between_forms(sweep, tables, metrics)),
        claims=tuple(_claims(sweep, results, figures)),
        overhead=overhead(sweep, store),
        identities=identities(sweep, store),
    )
    return report, rows


def _figures(
    sweep: SweepPlan, metrics: Mapping[str, Definition]
) -> dict[tuple[str, str, str], str]:
    """Return the published figure, or that there is none, by (model, variant, evaluation)."""
    known, contents, rows = load_figures(), catalogue_contents(), catalogue_rows()
    found: dict[tuple[str, str, str], str] = {}
    for cell in sweep.cells:
        for evaluation in cell.evaluations:
            place = (cell.cell.model.name, cell.cell.variant.name, evaluation.name)
            if place in found:  # of the first seed: a drawn subset is no published data set
                continue
            estimand = Estimand(
                model_revision=cell.model_revision,
                variant=cell.cell.variant.model_dump(exclude_defaults=True),
                content_sha256=cell.content_sha256,
                num_rows=cell.num_rows + cell.num_held_out,
                questions_sha256=question_set(wording for wording, _ in evaluation.asked),
                plain=evaluation.identity["form"] == Form().model_dump(),
                definition=metrics[evaluation.name].name,
            )
            figure = published_figure(known, estimand, contents=contents, rows=rows)
            found[place] = figure.text if figure else NO_FIGURE
    return found


def _claims(
    sweep: SweepPlan,
    results: Sequence[CellResult],
    figures: Mapping[tuple[str, str, str], str],
) -> list[ClaimResult]:
    demonstration = {judge.name for judge in sweep.spec.judges if judge.demonstration}
    evaluations = [evaluation.name for evaluation in sweep.spec.evaluations]
    found = []
    for claim in sweep.spec.claims:
        for result in decide(claim, results, evaluations=evaluations, demonstration=demonstration):
            # A difference has a figure where both sides have; a spread has none that is published.
            beside = () if claim.spread else result.conditions
            texts = tuple(figures[result.model, variant, name] for variant, name in beside)
            found.append(result.model_copy(update={"published": texts}))
    return found


def _in_words(definition: Definition) -> DefinitionUsed:
    return DefinitionUsed(
        name=definition.name,
        version=definition.version,
        text=definition.text,
        source=definition.source,
    )


def _warnings(
    sweep: SweepPlan, results: Sequence[CellResult], metrics: Mapping[str, Definition]
) -> list[str]:
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
    silent = {
        (j.evaluation, j.judge)
        for j in sweep.cells[0].judgings
        if not scores_needed(metrics[j.evaluation], given_scores(j.templates))
    }
    for (evaluation, name), group in _by_judge(results).items():
        if (evaluation, name) in silent:
            definition = metrics[evaluation]
            found.append(
                f"{evaluation}, judged by {name}: no rate, because {definition.name} needs "
                f"{definition.needs}, which this judge does not give"
            )
            continue
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
        if failed:
            found.append(
                f"{evaluation}, judged by {name}: the judge's call failed for {failed} of "
                f"{responses} responses, which count as failed; emsweep resume asks them again"
            )
        if unscored + failed > responses * MANY_LOST:
            found.append(
                f"{evaluation}, judged by {name}: {unscored + failed} of {responses} responses "
                f"lack a score that {group[0].metric} reads (unscored {unscored}, failed {failed}) "
                "and count nowhere in it"
            )
    return found


def _by_judge(results: Sequence[CellResult]) -> dict[tuple[str, str], list[CellResult]]:
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.evaluation, result.judge), []).append(result)
    return groups
