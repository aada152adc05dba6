"""What `emsweep plan` says: every cell, what is done, what would run and hold, about how long.

Knows nothing of how a sweep is run.
"""

from collections import Counter
from dataclasses import asdict
from typing import Any

from cluster.resources import ClusterTooSmall, Totals
from em.model_shape import shape_at_hand
from sweeps.api_spend import foreseen_of_models
from sweeps.attempts import statuses
from sweeps.console import printable
from sweeps.estimate import REFERENCE_BASIS, estimate
from sweeps.few import times
from sweeps.fit import Memory, memory
from sweeps.foresight import foreseen_weaknesses
from sweeps.gpu_hours import GpuHours, gpu_hours
from sweeps.graders import foreseen_of_graders
from sweeps.growth import Held, changes, held
from sweeps.keeping import told as told_drift
from sweeps.kept_steps import told_steps
from sweeps.layout import demands, feasible
from sweeps.plan import STAGES, EvaluationPlan, SweepPlan, at_the_end
from sweeps.progress import duration
from sweeps.selection import to_do, todo_of
from sweeps.spend import foreseen
from sweeps.store import Store
from sweeps.todo import Todo

# Where the code of a task runs that a model has written.
SANDBOXES = {"docker": "docker", "local": "NO SANDBOX, on the machine as it is"}
MOST_LISTED = 1000  # cells; of more, a person is told how many of each condition are how far


def describe(sweep: SweepPlan, store: Store, totals: Totals | None) -> dict[str, Any]:
    """Return the plan as plain values; without `totals` nothing of how it is laid out is known.

    `num_cells`, `cells` (of all seeds, or of a few that stand for them), `unresolved`, `held`,
    `changes`, `before_the_end`, `drift`, `warnings`, `holds`, `layout`, `memory` (of what asks for
    GPUs, where nothing looks at the GPUs themselves), `api_models`, `api_judges`, `estimate` and
    `gpu_hours`.
    """
    told = statuses(sweep, store)
    todo = todo_of(sweep.cells, told)
    cells = [
        status.shown | {"stages_to_run": status.stages_left if to_do(status) else []}
        for status in told
    ]
    trains, engines = demands(sweep.spec, todo)
    slots, fits = _layout(sweep, todo, totals) if todo.cells else (1, "nothing to run")
    holds = [str(demand) for demand in trains + engines] if todo.cells else []
    needed = memory(sweep.spec, todo, (), shape_of=shape_at_hand) if totals else []
    hours = gpu_hours(sweep.spec, todo, sweep.cells, store, times=times(sweep))
    return {
        "sweep": sweep.spec.name,
        "num_cells": sweep.spec.num_cells,
        "store": store.url,
        "cells": cells,
        "unresolved": [{"cell_id": u.cell.cell_id, "why": u.why} for u in sweep.unresolved],
        "held": [pieces.model_dump() for pieces in held(sweep, store)],
        "changes": changes(sweep, store),
        "before_the_end": told_steps(sweep),
        "drift": [drift.model_dump() for drift in sweep.drifts],
        "warnings": [
            *foreseen_weaknesses(sweep.spec),
            *sorted({text for cell in sweep.cells for text in cell.data_warnings}),
        ],
        "holds": holds,
        "layout": fits,
        "memory": [asdict(found) for found in needed],
        "api_judges": foreseen(sweep, todo.cells, store),
        "api_models": foreseen_of_models(sweep, todo.cells, store),
        "graders": foreseen_of_graders(sweep, todo.cells, store),
        "estimate": estimate(
            todo, sweep.cells, store, train_slots=slots, times=times(sweep)
        ).model_dump(),
        "gpu_hours": hours.model_dump() if hours else None,
    }


def _layout(sweep: SweepPlan, todo: Todo, totals: Totals | None) -> tuple[int, str]:
    """Return how many cells train side by side, and what to say of it."""
    if totals is None:
        return 1, "as the cluster has room, see below; the time is that of one cell at a time"
    try:
        layout = feasible(sweep.spec, todo, totals)
    except ClusterTooSmall as short:
        return 1, f"not on this machine: {short}"
    return layout.train_slots, str(layout)


def lines(sweep: SweepPlan, told: dict[str, Any]) -> list[str]:
    """Return the plan as lines for a person."""
    spec, share = sweep.spec, times(sweep)
    cells, unresolved = told["cells"], told["unresolved"]
    work = Counter(stage for cell in cells for stage in cell["stages_to_run"])
    done = sum(cell["state"] == "finished" for cell in cells)
    said = [
        f"{spec.name}: {spec.num_cells} cells = {len(spec.models)} models x {len(spec.variants)} "
        f"variants x {len(spec.seeds)} seeds; {done} finished",
        f"store: {told['store']}",
        "",
    ]
    said += _grid(sweep, told) if spec.num_cells > MOST_LISTED else _listed(told)
    why = Counter(cell["why"] for cell in unresolved)
    said += [
        f"unresolved, {int(num * share)} cells: {printable(text)}" for text, num in why.items()
    ]
    beside = ", of the cells that are resolved" if unresolved else ""
    left = ", ".join(f"{s} {int(work[s] * share)} cells" for s in STAGES if work[s])
    said += ["", f"to do{beside}: {left or 'nothing'}"]
    said += [str(Held.model_validate(pieces)) for pieces in told["held"] if pieces["wanted"]]
    said += [printable(line) for line in told["changes"]]
    for cell in map(at_the_end, sweep.cells[:1]):
        responses = sum(e.num_responses for e in cell.evaluations)
        scores = sum(n for judging in cell.judgings for n in judging.wanted.values())
        judges = f"{len(spec.judges)} judge(s)"
        said.append(f"each cell: {responses} responses, {scores} scores by {judges}")
    said += told["before_the_end"]
    said += [printable(line) for line in _tasks(sweep)]
    said += [printable(line) for line in told_drift(sweep)]
    if any(not drift.answered for drift in sweep.drifts):
        said.append("run and resume refuse this until --keep stored or --keep current is given")
    said += [f"warning: {printable(text)}" for text in told["warnings"]]
    said += [f"holds  {line}" for line in told["holds"]]
    said.append(f"layout: {told['layout']}")
    said += [line for found in told["memory"] for line in _memory(Memory(**found))]
    said += told["api_models"] + told["graders"] + told["api_judges"]
    return said + _times(told)


def _tasks(sweep: SweepPlan) -> list[str]:
    """Return a line for each evaluation that is a task of Inspect, whose solver may ask often."""
    return [
        f"task {e.task.told} ({e.name}): {e.num_responses} answers of a cell, each a call of the "
        f"model or more; scored by its own {e.scorer}; {_made_of(e)}"
        for cell in sweep.cells[:1]
        for e in cell.evaluations
        if e.task is not None
    ]


def _made_of(evaluation: EvaluationPlan) -> str:
    task = evaluation.identity["inspect"]
    code = task["code"]
    by = (
        f"sha256 {code['sha256'][:12]}"
        if "sha256" in code
        else f"{code['package']} {code['version']}"
    )
    inside = evaluation.task.sandbox if evaluation.task else None
    where = f"; runs code of the model's in {SANDBOXES[inside]}" if inside else ""
    return f"{by}, inspect-ai {task['inspect_ai']}{where}"


def _memory(found: Memory) -> list[str]:
    """Return what a GPU holds for one training or engine, and the way out where it does not fit."""
    short = "does not fit: " if found.fits == "no" else ""
    said = [printable(f"memory  {found.what}: {short}{found}")]
    return said + ([f"        -> {found.cure}"] if found.cure else [])


def _times(told: dict[str, Any]) -> list[str]:
    rough, hours = told["estimate"], told["gpu_hours"]
    without = ["what is unresolved"] if told["unresolved"] else []
    without += ["what models behind APIs take"] if told["api_models"] else []
    known = f"time, without {' and '.join(without)}" if without else "time"
    said = [f"{known}: about {duration(rough['seconds'])} ({rough['basis']})"]
    if hours and rough["basis"] == REFERENCE_BASIS:
        said = []  # rates of two CPU cores say nothing of GPUs
    if hours:
        said += [printable(line) for line in GpuHours.model_validate(hours).told()]
    return said


def _listed(told: dict[str, Any]) -> list[str]:
    """Return a line for each cell."""
    cells, unresolved = told["cells"], told["unresolved"]
    width = max(len(cell["cell_id"]) for cell in cells + unresolved)
    said = [f"  {c['cell_id']:{width}}  {c['state']:8}  {_note(c)}" for c in cells]
    return said + [f"  {cell['cell_id']:{width}}  unresolved" for cell in unresolved]


def _grid(sweep: SweepPlan, told: dict[str, Any]) -> list[str]:
    """Return a line for the cells of each condition that are equally far: there are too many."""
    share = times(sweep)
    alike = Counter((c["model"], c["variant"], c["state"], _note(c)) for c in told["cells"])
    alike.update(
        (u.cell.model.name, u.cell.variant.name, "unresolved", "") for u in sweep.unresolved
    )
    names = {(model, variant): f"{model}.{variant}" for model, variant, _, _ in alike}
    width = max(map(len, names.values()))
    said = [
        f"  {names[model, variant]:{width}}  {int(num * share):>6} {state:8}  {note}".rstrip()
        for (model, variant, state, note), num in alike.items()
    ]
    if share != 1:
        said.append("nothing is begun and all seeds have the same work: counted from a few of them")
    return [*said, f"more than {MOST_LISTED} cells: --json lists each"]


def _note(cell: dict[str, Any]) -> str:
    todo = " > ".join(cell["stages_to_run"])
    return todo or ("failed: emsweep resume" if cell["state"] == "failed" else "nothing to do")
