"""What asking cells before their training's end adds, and whether trainings kept what it needs.

A training keeps the steps that were asked for when it was done, and no step of it comes back
without training again. Knows nothing of how one is kept.
"""

from em.snapshots import snapshot_steps
from sweeps.plan import CellPlan, SweepPlan, at_the_end
from sweeps.store import KEY_DIGITS, Store
from sweeps.yaml_errors import MistakeAt


def told_steps(sweep: SweepPlan) -> list[str]:
    """Return a line on what is asked before the end, of the cell that it adds most to."""
    wanted = any(e.at and e.at != (1.0,) for e in sweep.spec.evaluations)
    far = [model.name for model in sweep.spec.models if model.api is not None and wanted]
    end_alone = "asked at the end alone: what an API keeps of earlier steps is not asked"
    said = [f"{', '.join(far)}: {end_alone}"] if far else []
    cells = [cell for cell in sweep.cells if cell.snapshots]
    if not cells:
        return said
    most = max(cells, key=lambda cell: sum(e.num_responses for e in cell.evaluations))
    end = at_the_end(most)
    responses = sum(e.num_responses for e in most.evaluations) - sum(
        e.num_responses for e in end.evaluations
    )
    scores = sum(n for j in most.judgings if j.step is not None for n in j.wanted.values())
    named = "; ".join(
        f"{e.name} after {', '.join(f'{f:g}' for f in e.at if f < 1)}"
        for e in sweep.spec.evaluations
        if e.at and e.at != (1.0,)
    )
    weights = "adapters" if sweep.spec.training.method == "lora" else "sets of all weights"
    return [
        *said,
        f"before the end of a training, {named} of it: {responses} more responses and {scores} "
        f"more scores a tuned cell; each training keeps {len(most.snapshots)} more {weights} "
        f"(steps {', '.join(map(str, most.snapshots))} of {most.num_steps})",
    ]


def check_steps_kept(sweep: SweepPlan, store: Store) -> None:
    """Raise MistakeAt, at the evaluation's 'at', for a step that a finished training lacks."""
    for cell in sweep.cells:
        trained = store.training(cell.training_key) if cell.snapshots else None
        if trained is None:
            continue
        lacking = [step for step in cell.snapshots if not trained.has(step)]
        if lacking:
            kept = [snapshot.step for snapshot in trained.snapshots]
            raise _not_kept(sweep, cell, lacking[0], kept, store)


def _not_kept(
    sweep: SweepPlan, cell: CellPlan, step: int, kept: list[int], store: Store
) -> MistakeAt:
    name = next(evaluation.of for evaluation in cell.evaluations if evaluation.step == step)
    number = next(n for n, e in enumerate(sweep.spec.evaluations) if e.name == name)
    total = cell.num_steps
    asked = (f for f in sweep.spec.evaluations[number].at or () if f < 1)
    fraction = next(f for f in asked if snapshot_steps([f], total) == (step,))
    steps = ", ".join(map(str, kept))
    there = f"steps {steps} and the end, {total}" if kept else f"nothing but the end, step {total}"
    return MistakeAt(
        ("evaluations", number, "at"),
        f"{cell.cell_id} is trained, and of {fraction:g} of its training (step {step}) nothing was "
        f"kept: kept are {there}. Take {fraction:g} out; or name another store with --store, where "
        f"it is trained anew; or remove {store.url}/training/{cell.training_key[:KEY_DIGITS]}, "
        "and 'run' trains it again: its answers count on where the same weights come out of it",
    )
