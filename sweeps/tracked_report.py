"""What W&B is told of a sweep as a whole: progress, distributions, estimates, and the report.

Read from the store alone, as sweeps.tracked_cell. Knows nothing of W&B's SDK.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from em.analysis import Analysis, analyse
from em.condition import Asked, ConditionAnalysis
from em.record import fingerprint
from sweeps.analyses import Design, design_of, tables_of
from sweeps.answers import Place, Scores
from sweeps.attempts import CellStatus, State
from sweeps.gathering import write_values
from sweeps.plan import STAGES, SweepPlan
from sweeps.report import PAGE, Report, metrics_of
from sweeps.store import Store
from sweeps.tracked_cell import MOST_ROWS, Artifact, Row, name_of

MOST_CONDITIONS = 200  # that have a history of their own: W&B slows down with thousands of keys
MOST_PICTURES = 40
# Numbers of seeds at which estimates are told: all of a few, ever fewer of many.
SEEDS = (*range(2, 21), 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
REPORT = "report"
SEEDS_STEP = "estimate/seeds"


def report_run_id(sweep: str) -> str:
    """Return the id of the sweep's own run."""
    return fingerprint([sweep, "the sweep itself"])[:16]


def report_config(plan: SweepPlan) -> Row:
    """Return what the sweep's own run can be filtered by."""
    spec = plan.spec
    return {
        "sweep": spec.name,
        "metric": spec.metric,
        "cells": len(plan.cells),
        "models": [model.name for model in spec.models],
        "variants": [variant.name for variant in spec.variants],
        "seeds": len({cell.cell.seed for cell in plan.cells}),
        "judges": [judge.name for judge in spec.judges],
    }


def progress_row(statuses: Sequence[CellStatus]) -> Row:
    """Return how many cells are where."""
    states = Counter(status.state for status in statuses)
    left = Counter(stage for status in statuses for stage in status.stages_left)
    shown: tuple[State, ...] = ("finished", "failed", "running")
    row: Row = {f"sweep/{state}": states[state] for state in shown}
    row["sweep/cells"] = len(statuses)
    return row | {f"sweep/{stage}_done": len(statuses) - left[stage] for stage in STAGES}


def cells_rows(statuses: Sequence[CellStatus], report: Report) -> list[Row]:
    """Return a row for each cell, evaluation and judge; MOST_ROWS at most, unfinished ones first.

    A failure's message may name this machine's paths: its kind is told.
    """
    kinds = {status.cell_id: status.kind or "" for status in statuses}
    rows = [
        {
            "cell": cell.cell_id, "condition": cell.condition, "model": cell.model,
            "variant": cell.variant, "seed": cell.seed_label, "state": cell.state,
            "stage": cell.stage or "", "attempts": cell.attempts, "failure": kinds[cell.cell_id],
            "evaluation": cell.evaluation, "judge": cell.judge, cell.metric: cell.em_rate,
            "responses": cell.counts.responses, "unscored": cell.counts.unscored,
        }
        for cell in report.cells
    ]  # fmt: skip
    rows.sort(key=lambda row: row["state"] == "finished")
    return rows[:MOST_ROWS]


def conditions_rows(analyses: Mapping[str, Analysis]) -> list[Row]:
    """Return a row for each condition under each evaluation and judge, with both intervals."""
    return [
        {
            "evaluation": evaluation, "condition": c.condition, "judge": c.judge,
            "seeds": c.num_seeds, "estimate": c.fixed.estimate,
            "fixed_questions_low": c.fixed.low, "fixed_questions_high": c.fixed.high,
            "new_questions_low": c.random.low, "new_questions_high": c.random.high,
            "seeds_showing": c.consistency.showing if c.consistency else None,
        }
        for evaluation, analysis in analyses.items()
        for c in analysis.conditions
    ][:MOST_ROWS]  # fmt: skip


def components_rows(analyses: Mapping[str, Analysis]) -> list[Row]:
    """Return a row for each component of variance of each condition."""
    return [
        {"evaluation": evaluation, "condition": c.condition, "judge": c.judge}
        | part.model_dump(include={"name", "estimate", "reported", "low", "high"})
        for evaluation, analysis in analyses.items()
        for c in analysis.conditions
        for part in c.components
    ][:MOST_ROWS]


def estimate_rows(
    plan: SweepPlan,
    store: Store,
    report: Report,
    scores: Mapping[Place, Scores],
    told: Mapping[str, int],
) -> Iterator[Row]:
    """Yield each condition's estimate and interval after its first k finished seeds, by k.

    In the order in which its seeds were finished, so that the rows are the same whenever they are
    made. `told` is the last k of each condition's place that needs no row any more.
    """
    metrics = metrics_of(plan.cells[0], None)
    order = _finished_in_order(plan, report, store)
    for evaluation, table in tables_of(plan, report.cells, scores).items():
        design = design_of(plan, metrics[evaluation])
        judges = table["judge"].unique().to_pylist()
        names = table["condition"].unique().to_pylist()[:MOST_CONDITIONS]
        done = {n: min(told.get(place_of(evaluation, j, n), 0) for j in judges) for n in names}
        seeds = {name: order.get((evaluation, name), []) for name in names}
        ranks = _ranks(table, seeds)
        for k in SEEDS:
            wanted = [n for n in names if done[n] < k <= len(seeds[n])]
            if not wanted:
                continue
            mask = (ranks < k) & pc.is_in(table["condition"], pa.array(wanted)).to_numpy()
            for analysed in _analysed(table.filter(pa.array(mask)), design):
                place = place_of(evaluation, analysed.judge, analysed.condition)
                if told.get(place, 0) < k:
                    yield _estimate(place, k, analysed)


def _ranks(table: pa.Table, seeds: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """Return, of each row, how many of its condition's seeds were finished before its own."""
    columns = [table[name].unify_dictionaries().combine_chunks() for name in ("condition", "unit")]
    names, units = (column.dictionary.to_pylist() for column in columns)
    place = {unit: number for number, unit in enumerate(units)}
    ranks = np.full((len(names), len(units)), np.iinfo(np.int64).max)
    for row, name in enumerate(names):
        for rank, unit in enumerate(seeds.get(name, ())):
            if unit in place:
                ranks[row, place[unit]] = rank
    condition, unit = (column.indices.to_numpy(zero_copy_only=False) for column in columns)
    return np.asarray(ranks[condition, unit])


def _analysed(table: pa.Table, design: Design) -> Sequence[ConditionAnalysis]:
    if not pc.any(pc.is_valid(table["value"])).as_py():
        return ()
    asked = Asked(weights=design.weights, simulate=False)
    return analyse(table, what="", asked=asked, pairs=(), known=design.known).conditions


def _estimate(place: str, k: int, analysed: ConditionAnalysis) -> Row:
    interval = analysed.fixed
    told = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    row: Row = {f"{place}/{name}": v for name, v in told.items() if v is not None}
    return row | {f"{place}/seeds": k, SEEDS_STEP: k}


def place_of(evaluation: str, judge: str, condition: str) -> str:
    """Return where a condition's estimates are in the history: names of a spec have no slash."""
    return "/".join(["estimate", evaluation, judge, *condition.split(" · ")])


def _finished_in_order(
    plan: SweepPlan, report: Report, store: Store
) -> dict[tuple[str, str], list[str]]:
    """Return the seed labels of each evaluation and condition, by when their judging ended."""
    cells = {cell.cell_id: cell for cell in plan.cells}
    ended: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for result in report.cells:
        if result.state != "finished":
            continue
        judgings = cells[result.cell_id].judgings
        streams = [j.stream for j in judgings if j.evaluation == result.evaluation]
        records = [store.stream("judgements", stream) for stream in streams]
        last = max((p.started + p.seconds for r in records if r for p in r.provenance), default=0.0)
        ended.setdefault((result.evaluation, result.condition), []).append(
            (last, result.seed_label)
        )
    return {
        place: list(dict.fromkeys(label for _, label in sorted(seeds)))
        for place, seeds in ended.items()
    }


def pictures(folder: Path) -> dict[str, Path]:
    """Return the report's pictures by name, MOST_PICTURES at most."""
    found = sorted((folder / "figures").glob("*.png"))
    return {f"figures/{path.stem}": path for path in found[:MOST_PICTURES]}


def report_artifact(
    plan: SweepPlan, folder: Path, report: Report, scores: Mapping[Place, Scores]
) -> Artifact:
    """Return the report's files: its page, its numbers, and every scored answer of the sweep.

    With them is what its analyses are made from (see sweeps.gathering).
    """
    given = write_values(folder, plan, tables_of(plan, report.cells, scores))
    files = (PAGE, "report.json", "cells.parquet", "judgements.parquet", *given)
    return Artifact(
        name=name_of(REPORT, plan.spec.name),
        type=REPORT,
        aliases=(),
        metadata={"sweep": plan.spec.name, "cells": len(plan.cells)},
        files={name: folder / name for name in files if (folder / name).exists()},
    )
