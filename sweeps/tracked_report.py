"""What W&B is told of a sweep as a whole: progress, distributions, estimates, and the report.

Read from the store alone, as sweeps.tracked_cell. Knows nothing of W&B's SDK.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from sweeps.gathering import REPORT, report_name, write_values
from sweeps.plan import STAGES, SweepPlan
from sweeps.report import PAGE, Report, metrics_of
from sweeps.store import Store
from sweeps.tracked_artifacts import Artifact
from sweeps.tracked_cell import MOST_ROWS, Row

MOST_CONDITIONS = 200  # with a history, over all judges: W&B slows down with thousands of keys
MOST_PICTURES = 40
# Numbers of seeds at which estimates are told: all of a few, ever fewer of many.
SEEDS = (*range(2, 21), 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
SEEDS_STEP = "estimate/seeds"


def report_run_id(identity: str) -> str:
    """Return the id of the sweep's own run; `identity` is the sweep's in its store."""
    return fingerprint([identity, "the sweep itself"])[:16]


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
    told: Mapping[str, Any],
    *,
    most: int = MOST_CONDITIONS,
) -> Iterator[Row]:
    """Yield each condition's estimate and interval after its first k finished seeds, by k.

    In the order in which a judge was through with its seeds; a seed is finished with the last of
    its cells. `told` are the values of the rows that were yielded before: they are not again, but
    where more is asked of a cell now. `most` conditions are told, over all judges.
    """
    metrics = metrics_of(plan.cells[0], None)
    order = _seeds_in_order(plan, report, store)
    asked = {e.name: e.num_responses for e in plan.cells[0].evaluations}
    each = max(1, most // max(1, len({place[:2] for place in order})))
    for evaluation, table in tables_of(plan, report.cells, scores).items():
        design = design_of(plan, metrics[evaluation])
        for judge in table["judge"].unique().to_pylist():
            mine = table.filter(pc.equal(table["judge"], judge))
            names = mine["condition"].unique().to_pylist()[:each]
            places = {name: place_of(evaluation, judge, name) for name in names}
            done = {n: _last_told(told, places[n], asked[evaluation]) for n in names}
            seeds = {name: order.get((evaluation, judge, name), []) for name in names}
            ranks = _ranks(mine, seeds)
            for k in SEEDS:
                wanted = [n for n in names if done[n] < k <= len(seeds[n])]
                if not wanted:
                    continue
                within = pc.is_in(mine["condition"], pa.array(wanted)).to_numpy()
                for one in _analysed(mine.filter(pa.array((ranks < k) & within)), design):
                    if one.num_seeds == k:
                        row = _estimate(places[one.condition], k, one)
                        yield row | {f"{places[one.condition]}/asked": asked[evaluation]}


def _last_told(told: Mapping[str, Any], place: str, asked: int) -> int:
    return int(told.get(f"{place}/seeds", 0)) if told.get(f"{place}/asked") == asked else 0


def _ranks(table: pa.Table, seeds: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """Return, of each row, how many of its condition's seeds were finished before its own."""
    texts = (table[name].cast(pa.string()) for name in ("condition", "seed"))
    columns = [column.combine_chunks().dictionary_encode() for column in texts]
    names, numbers = (column.dictionary.to_pylist() for column in columns)
    place = {seed: number for number, seed in enumerate(numbers)}
    ranks = np.full((len(names), len(numbers)), np.iinfo(np.int64).max)
    for row, name in enumerate(names):
        for rank, seed in enumerate(seeds.get(name, ())):
            if seed in place:
                ranks[row, place[seed]] = rank
    condition, seed = (column.indices.to_numpy(zero_copy_only=False) for column in columns)
    return np.asarray(ranks[condition, seed])


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


def _seeds_in_order(
    plan: SweepPlan, report: Report, store: Store
) -> dict[tuple[str, str, str], list[str]]:
    """Return the finished seeds of each evaluation, judge and condition, by when they were judged.

    Moments are those that the stages noted, each by its machine's clock.
    """
    streams = {
        (cell.cell_id, j.evaluation, j.judge): j.stream
        for cell in plan.cells
        for j in cell.judgings
    }
    ended: dict[tuple[str, str, str], dict[str, float]] = {}
    open_seeds: set[tuple[tuple[str, str, str], str]] = set()
    for result in report.cells:
        place = (result.evaluation, result.judge, result.condition)
        if result.state != "finished":
            open_seeds.add((place, str(result.seed)))
            continue
        key = streams[result.cell_id, result.evaluation, result.judge]
        record = store.stream("judgements", key)
        last = max((p.started + p.seconds for p in record.provenance), default=0.0) if record else 0
        seeds = ended.setdefault(place, {})
        seeds[str(result.seed)] = max(last, seeds.get(str(result.seed), 0.0))
    return {
        place: [s for s in sorted(seeds, key=lambda s: seeds[s]) if (place, s) not in open_seeds]
        for place, seeds in ended.items()
    }


def pictures(folder: Path) -> dict[str, Path]:
    """Return the report's pictures by name, MOST_PICTURES at most."""
    found = sorted((folder / "figures").glob("*.png"))
    return {f"figures/{path.stem}": path for path in found[:MOST_PICTURES]}


def report_artifact(
    plan: SweepPlan, folder: Path, report: Report, scores: Mapping[Place, Scores]
) -> Artifact:
    """Return the report's files: its page, its numbers, and what its analyses are made from.

    See sweeps.gathering. The answers are in the artifacts of the cells.
    """
    given = write_values(folder, plan, tables_of(plan, report.cells, scores))
    files = (PAGE, "report.json", "cells.parquet", *given)
    return Artifact(
        name=report_name(plan.spec.name),
        type=REPORT,
        aliases=(),
        metadata={"sweep": plan.spec.name, "cells": len(plan.cells)},
        files={name: folder / name for name in files if (folder / name).exists()},
    )
