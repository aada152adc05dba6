"""The report as one page that opens offline. Escapes everything: answers are hostile text.

Knows nothing of how the numbers come about.
"""

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from em.definitions import DEFINITIONS, ScaleDefinition
from sweeps import figures, trajectory_page
from sweeps.analysis_page import pictures, slug
from sweeps.answers import NOTHING, Place, Scores, ToRead
from sweeps.conditions import Condition
from sweeps.drawing import save, svg
from sweeps.outputs import make_output_dir
from sweeps.report import Report
from sweeps.templating import environment, percent

MOST_SHOWN = 1000  # answers in a page, of however many conditions
MOST_SEEDS = 40  # of a condition that are told one by one


def render(report: Report, scores: Mapping[Place, Scores], to_read: ToRead) -> str:
    """Return the page of `report`, with its `scores` drawn and the answers `to_read`."""
    made = environment(
        value=percent,
        number=number,
        ratio=ratio,
        threshold="{:g}".format,
        bound=bound,
        each_seed=each_seed,
    )
    conditions_of = {cell.cell_id: cell.condition for cell in report.cells}
    groups = _groups(report, scores)
    # The one script that the page may run, by its hash: it filters the answers.
    script, _, _ = made.loader.get_source(made, "filter.js") if made.loader else ("", None, None)
    return made.get_template("report.html.j2").render(
        report=report,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.written)),
        unfinished=[c for c in _first_of_each_cell(report) if c.state != "finished"],
        groups=groups,
        losses=Markup(svg(figures.losses(_first_of_each_cell(report)))),
        has_losses=any(cell.losses for cell in report.cells),
        before=trajectory_page.shown(report.trajectories),
        answers=to_read.kept(MOST_SHOWN),
        conditions_of=conditions_of,
        num_answers=to_read.num_seen,
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )


def write_own_pictures(report: Report, scores: Mapping[Place, Scores], folder: Path) -> None:
    """Write the pictures that no analysis has as PNG and SVG: planes, thresholds, losses
    and what cells said before the end of their training."""
    make_output_dir(folder)
    trajectory_page.write(report.trajectories, folder)
    if any(cell.losses for cell in report.cells):
        save(figures.losses(_first_of_each_cell(report)), folder / "losses")
    condition_of = {cell.cell_id: cell.condition for cell in report.cells}
    for evaluation, judge in dict.fromkeys((c.evaluation, c.judge) for c in report.conditions):
        stem = f"{slug(evaluation)}-{slug(judge)}"
        grids = [s for s in report.sensitivity if (s.evaluation, s.judge) == (evaluation, judge)]
        if grids:
            save(figures.heat(grids), folder / f"thresholds-{stem}")
        mine = scores.get((evaluation, judge), NOTHING)
        metric = next(c.metric for c in report.conditions if c.evaluation == evaluation)
        definition = DEFINITIONS[metric]
        if isinstance(definition, ScaleDefinition):
            save(figures.planes(mine, condition_of, definition), folder / f"planes-{stem}")


def _groups(report: Report, scores: Mapping[Place, Scores]) -> list[dict[str, Any]]:
    """Return what is shown for each evaluation and judge."""
    found = []
    condition_of = {cell.cell_id: cell.condition for cell in report.cells}
    pairs = dict.fromkeys((c.evaluation, c.judge) for c in report.conditions)
    for evaluation, judge in pairs:
        conditions = [
            c for c in report.conditions if (c.evaluation, c.judge) == (evaluation, judge)
        ]
        mine = scores.get((evaluation, judge), NOTHING)
        grids = [s for s in report.sensitivity if (s.evaluation, s.judge) == (evaluation, judge)]
        definition = DEFINITIONS[conditions[0].metric]
        found.append(
            {
                "evaluation": evaluation,
                "judge": judge,
                "metric": definition.name,
                "definition": definition,
                "grids": grids,
                "heat": Markup(svg(figures.heat(grids))) if grids else "",
                "conditions": conditions,
                "questions": _question_names(conditions),
                "has_rates": any(c.summary.num_seeds for c in conditions),
                **_analysed(report, evaluation, judge),
                "planes": Markup(svg(figures.planes(mine, condition_of, definition)))
                if isinstance(definition, ScaleDefinition)
                else "",
            }
        )
    return found


def _analysed(report: Report, evaluation: str, judge: str) -> dict[str, Any]:
    """Return what the analysis says under one judge: empty where no cell has been judged."""
    analysis = report.analyses.get(evaluation)
    mine = [c for c in analysis.conditions if c.judge == judge] if analysis else []
    return {
        "analysed": mine,
        "pooled": analysis.pooled.get(judge, ()) if analysis else (),
        "contrasts": analysis.contrasts.get(judge, ()) if analysis else (),
        "whose": analysis.attribution.get(judge) if analysis else None,
        "drawn": pictures(analysis, judge) if analysis and mine else {},
    }


def _question_names(conditions: Sequence[Condition]) -> list[str]:
    return list(dict.fromkeys(name for c in conditions for name in c.questions))


def _first_of_each_cell(report: Report) -> list[Any]:
    return list({cell.cell_id: cell for cell in report.cells}.values())


def each_seed(rates: Mapping[str, float | None]) -> str:
    """Return the rate of each seed in words; of more than MOST_SEEDS, how they are spread."""
    if len(rates) <= MOST_SEEDS:
        return "; ".join(f"{seed}: {percent(rate)}" for seed, rate in rates.items())
    known = [rate for rate in rates.values() if rate is not None]
    if not known:
        return f"{len(rates)} seeds, none with a rate"
    low, first, middle, third, high = np.quantile(known, (0, 0.25, 0.5, 0.75, 1))
    without = f"; {len(rates) - len(known)} without a rate" if len(known) < len(rates) else ""
    return (
        f"{len(known)} seeds, from {percent(low)} to {percent(high)}: half of them within "
        f"{percent(first)} and {percent(third)}, the middle one {percent(middle)}{without}; each "
        "is in cells.parquet"
    )


def number(value: float | None) -> str:
    """Return a number with one decimal, and a dash where there is none."""
    return "–" if value is None else f"{value:.1f}"


def ratio(value: float | None) -> str:
    """Return a kappa or correlation with two decimals, and a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def bound(text: str) -> str:
    """Return a claim's bound, such as "above 0.8", with the share as a percentage."""
    side, _, share = text.partition(" ")
    return f"{side} {float(share) * 100:g} %"
