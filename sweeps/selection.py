"""Which cells a command is to carry out, as its options `--only` and `--stage` name them.

Knows nothing of the command line, nor of how cells are carried out.
"""

import difflib
import fnmatch
from collections.abc import Sequence

from sweeps.attempts import CellStatus, statuses
from sweeps.plan import CellPlan, Stage, SweepPlan, is_whole
from sweeps.store import Store
from sweeps.todo import Todo

NEAR = 3  # ids that a mistaken one is compared with in the error
GLOB = "*?["


def cells_named(plan: SweepPlan, names: Sequence[str]) -> list[CellPlan]:
    """Return the cells of `names`, in the plan's order; all of them where `names` is empty.

    A name is a cell's id, the start of one id alone, or a pattern such as `*.insecure.*`. Raises
    ValueError, with the ids that are near, where one names no cell or is the start of several.
    """
    ids = [cell.cell_id for cell in plan.cells]
    wanted = {found for name in names for found in _ids_of(name, ids)}
    return [cell for cell in plan.cells if not names or cell.cell_id in wanted]


def _ids_of(name: str, ids: Sequence[str], given: str = "--only") -> list[str]:
    if name in ids:
        return [name]
    starts = [one for one in ids if one.startswith(name)]
    if len(starts) > 1:
        raise ValueError(
            f"{given} {name}: {len(starts)} cells begin so, such as {', '.join(starts[:NEAR])}: "
            f"write more of the id{f', or {name}* for all of them' if given == '--only' else ''}"
        )
    found = starts or [
        one for one in ids if any(c in name for c in GLOB) and fnmatch.fnmatchcase(one, name)
    ]
    if not found:
        near = difflib.get_close_matches(name, ids, n=NEAR, cutoff=0.3) or ids[:NEAR]
        raise ValueError(
            f"{given} {name}: no cell has this id, begins so or fits it: near are "
            f"{', '.join(near)}; 'emsweep status' lists all {len(ids)}"
        )
    return found


def cell_named(plan: SweepPlan, name: str) -> CellPlan:
    """Return the one cell that `name` stands for: its id, or the start of it alone.

    Raises ValueError as cells_named, and for a pattern that fits several.
    """
    ids = [cell.cell_id for cell in plan.cells]
    found = _ids_of(name, ids, given="CELL")
    if len(found) > 1:
        raise ValueError(
            f"CELL {name}: {len(found)} cells fit it, such as {', '.join(found[:NEAR])}: name one"
        )
    return plan.cells[ids.index(found[0])]


def cells_to_do(
    plan: SweepPlan,
    store: Store,
    *,
    retry_failed: bool,
    only: Sequence[str] = (),
    stage: Stage | None = None,
) -> list[CellPlan]:
    """Return the cells with work left; what failed only where it is to be retried.

    Of those named in `only`; with `stage`, only what failed in it. A finished cell has work left
    for a retry where judgements of it failed. Raises ValueError as cells_named.
    """
    # Of a whole cell no attempt is read: most are whole when a large sweep is continued.
    named = cells_named(plan, only)
    whole = store.each(lambda cell: is_whole(cell, store), named)
    left = [cell for cell, done in zip(named, whole, strict=True) if not done]
    told = zip(left, statuses(plan, store, left), strict=True)
    return [
        cell
        for cell, status in told
        if (retry_failed and _failed_in(status, stage)) or (stage is None and to_do(status))
    ]


def to_do(status: CellStatus) -> bool:
    """Whether a cell has work left that has not failed."""
    return status.state in ("missing", "running")


def todo_of(cells: Sequence[CellPlan], told: Sequence[CellStatus]) -> Todo:
    """Return the cells with work left that has not failed, as their statuses tell it."""
    left = [(cell, status) for cell, status in zip(cells, told, strict=True) if to_do(status)]
    return Todo(
        cells=tuple(cell for cell, _ in left),
        stages={cell.cell_id: status.stages_left for cell, status in left},
    )


def _failed_in(status: CellStatus, stage: Stage | None) -> bool:
    """Whether something of the cell failed: all of it, or some judgements."""
    if status.state == "failed":
        return stage in (None, status.stage)
    return status.state == "finished" and status.failed_judgements > 0 and stage in (None, "judge")
