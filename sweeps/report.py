"""The report of a sweep: one HTML file that opens offline, its numbers as JSON and parquet.

Missing and failed cells come first; every rate carries the name of its definition. Knows nothing of
how the numbers were made.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from em.analysis import Analysis
from em.contrasts import Contrast
from em.definitions import DEFINITIONS, Definition
from em.forms import Form
from em.record import Record
from em.scoring import check_metric
from sweeps.analyses import analyses, between_forms, tables_of
from sweeps.answers import Gathering, Place, Scores, ToRead
from sweeps.asking import given_scores
from sweeps.attempts import statuses
from sweeps.claims import ClaimResult, decide
from sweeps.conditions import Condition, conditions
from sweeps.for_others import without_places
from sweeps.gates_told import gate_warnings
from sweeps.identities import identities
from sweeps.judges_compared import JudgesCompared, compare_judges
from sweeps.keeping import told
from sweeps.made_with import mixed_versions
from sweeps.outputs import make_output_dir, write_output, writing_output
from sweeps.plan import CellPlan, SweepPlan, all_at_the_end, asked_of, at_the_end
from sweeps.progress import Counted
from sweeps.published import (
    NO_FIGURE,
    Estimand,
    catalogue_contents,
    catalogue_rows,
    load_figures,
    published_figure,
    question_set,
)
from sweeps.report_warnings import warnings_of
from sweeps.results import (
    CellResult,
    ScoredResponse,
    cell_result,
    scored_responses,
)
from sweeps.sensitivity import Sensitivity, sensitivity
from sweeps.store import Store
from sweeps.tables import JudgementsTable, cells_table
from sweeps.times import Overhead, overhead
from sweeps.trajectory import Gathered, Trajectory, lacking

Take = Callable[[CellResult, Sequence[ScoredResponse]], None]
PAGE = "report.html"
SAMPLES_SHOWN = 200  # answers in the page, about; all of them are in judgements.parquet


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
    trajectories: tuple[Trajectory, ...] = Field(
        default=(), description="what is asked before the end of trainings; nowhere else is it in"
    )
    overhead: Overhead
    identities: dict[str, Any]


def write_report(
    sweep: SweepPlan, store: Store, folder: Path, *, metric: str | None = None
) -> Path:
    """Write the report's four files, and its pictures, into `folder`; return the page's path.

    `metric` names a definition to follow instead of the spec's. Raises ValueError as `metrics_of`.
    """
    write_and_keep(sweep, store, folder, metric=metric)
    return folder / PAGE


def write_and_keep(
    sweep: SweepPlan, store: Store, folder: Path, *, metric: str | None = None,
    for_others: bool = False,
) -> tuple[Report, dict[Place, Scores]]:  # fmt: skip
    """As write_report; return what the files are made of.

    Those `for_others` name no place of this machine: not the store's, and no failure's message.
    """
    from sweeps.analysis_page import slug, write_pictures
    from sweeps.page import render, write_own_pictures

    metrics_of(sweep.cells[0], metric)  # before anything is written
    make_output_dir(folder)
    condition_of = {cell.cell_id: cell.cell.condition for cell in sweep.cells}
    judgings = at_the_end(sweep.cells[0]).judgings
    groups = len(set(condition_of.values())) * len(judgings)
    to_read = ToRead(max(1, SAMPLES_SHOWN // groups), condition_of)
    given = {score for judging in judgings for score in given_scores(judging.templates)}
    with writing_output(folder / "judgements.parquet") as place:
        table = JudgementsTable(place, given)

        def take(cell: CellResult, rows: Sequence[ScoredResponse]) -> None:
            to_read.add(rows)
            table.add(cell, rows)

        report, scores = make_report(sweep, store, metric=metric, take=take)
        if for_others:
            cells = tuple(cell.model_copy(update={"error": None}) for cell in report.cells)
            report = report.model_copy(
                update={
                    "store": "",
                    "cells": cells,
                    "warnings": tuple(without_places(list(report.warnings))),
                    "identities": without_places(report.identities),
                }
            )
        table.close()
        data = json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_output(folder / "report.json", data.encode())
    write_output(folder / "cells.parquet", cells_table(report.cells))
    write_output(folder / PAGE, render(report, scores, to_read).encode())
    for name, analysis in report.analyses.items():
        prefix = f"{slug(name)}-" if len(report.analyses) > 1 else ""
        write_pictures(analysis, folder / "figures", prefix=prefix)
    write_own_pictures(report, scores, folder / "figures")
    return report, scores


def metrics_of(cell: CellPlan, metric: str | None) -> dict[str, Definition]:
    """Return the definition that each evaluation of `cell` follows, by the evaluation's name.

    With `metric`, it replaces that of every evaluation whose judges give the scores it needs.
    Raises ValueError for a metric that is not known, or that fits no evaluation.
    """
    own = {e.name: DEFINITIONS[e.metric] for e in at_the_end(cell).evaluations}
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
    sweep: SweepPlan,
    store: Store,
    *,
    metric: str | None = None,
    take: Take = lambda cell, rows: None,
) -> tuple[Report, dict[Place, Scores]]:
    """Return the report and the scores it comes from, by evaluation and judge.

    `take` is given the scored responses of one cell after the other: no more than those are held
    whole. Errors as `metrics_of`.
    """
    metrics = metrics_of(sweep.cells[0], metric)  # cells share their evaluations and judges
    results, scores, trajectories = _read(sweep, store, metrics, take)
    at_end = all_at_the_end(sweep)
    definition = DEFINITIONS[metric or sweep.spec.metric]
    figures = _figures(at_end, metrics)
    grouped = [
        c.model_copy(update={"published": figures[c.model, c.variant, c.evaluation]})
        for c in conditions(results)
    ]
    tables = tables_of(sweep, results, scores)
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
            *warnings_of(at_end, results, metrics),
            *lacking(trajectories),
            *told(sweep),
            *mixed_versions(sweep, store),
            *gate_warnings(at_end, store),
        ),
        cells=tuple(results),
        conditions=tuple(grouped),
        judges_compared=tuple(compare_judges(grouped, results, scores)),
        sensitivity=tuple(sensitivity(grouped, results, scores)),
        analyses=analyses(sweep, tables, metrics),
        forms=tuple(between_forms(sweep, tables, metrics)),
        claims=tuple(_claims(sweep, results, figures)),
        trajectories=tuple(trajectories),
        overhead=overhead(sweep, store),
        identities=identities(at_end, store),
    )
    return report, scores


def _read(
    sweep: SweepPlan, store: Store, metrics: Mapping[str, Definition], take: Take
) -> tuple[list[CellResult], dict[Place, Scores], list[Trajectory]]:
    """Return the results of all cells, their scores, and what was asked before the end."""
    results: list[CellResult] = []
    gathering, before_the_end = Gathering(), Gathered(sweep.spec, metrics)
    reading = Counted(sys.stderr, "cells read", len(sweep.cells))
    for cell, status in zip(sweep.cells, statuses(sweep, store), strict=True):
        for judging in cell.judgings:
            rows = scored_responses(cell, judging, store)
            definition = metrics[asked_of(judging.evaluation)]
            result = cell_result(cell, judging, status, rows, definition, store)
            before_the_end.add(cell, judging, result, rows)
            if judging.step is None:
                results.append(result)
                gathering.add(rows, definition)
                take(result, rows)
        reading.step()
    return results, gathering.scores(), before_the_end.trajectories()


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
