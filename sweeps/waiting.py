"""Waiting for other drivers that are at work on cells of ours: until they are done, or dead.

Knows nothing of how a cell is carried out.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sweeps.artefacts import Attempt
from sweeps.failures import last_attempt
from sweeps.leases import Holder, Lease, Signs, held_elsewhere
from sweeps.plan import CellPlan, stages_to_run
from sweeps.store import Store

LOOK_S = 1.0


@dataclass
class Free:
    """What became of cells that other drivers were at work on; `dead` are drivers given up."""

    dead: frozenset[str]
    done: list[CellPlan] = field(default_factory=list)
    failed: list[tuple[CellPlan, Attempt]] = field(default_factory=list)
    todo: list[CellPlan] = field(default_factory=list)
    still_waiting: list[CellPlan] = field(default_factory=list)


class Others:
    """The other drivers, as this one sees them: who works on what, and who has died."""

    def __init__(
        self,
        store: Store,
        say: Callable[[str], None],
        *,
        signs: Signs | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Look at `store`; `say` is told once that there is somebody to wait for."""
        self._store, self._say, self._sleep = store, say, sleep
        self._signs = signs or Signs(store)
        self._workers: dict[str, set[str]] = defaultdict(set)

    def wait_for(self, cells: Sequence[CellPlan], holder: Holder) -> Free:
        """Wait until one of `cells` is done, or failed, or nobody's any more.

        A cell that another driver of the same sweep fails while it is waited for stays failed.
        """
        while True:
            free = self._look(cells, holder)
            if len(free.still_waiting) < len(cells):
                return free
            self._sleep(LOOK_S)

    def _look(self, cells: Sequence[CellPlan], holder: Holder) -> Free:
        store = self._store
        # Of all drivers, also of those given up before: one that was only paused is back.
        anew = replace(holder, dead=frozenset())
        held = {cell.cell_id: _leases(cell, store, anew) for cell in cells}
        dead = self._signs.dead([lease for leases in held.values() for lease in leases])
        free = Free(dead=dead)
        for cell in cells:
            workers = self._workers[cell.cell_id]
            if not stages_to_run(cell, store):
                free.done.append(cell)
            elif any(lease.driver not in free.dead for lease in held[cell.cell_id]):
                free.still_waiting.append(cell)
            elif (failed := _failed_by(workers, cell, store, holder.sweep)) is not None:
                free.failed.append((cell, failed))
            else:
                free.todo.append(cell)
            self._note(cell, held[cell.cell_id])
        return free

    def _note(self, cell: CellPlan, leases: Sequence[Lease]) -> None:
        if leases and not any(self._workers.values()):
            self._say(f"another driver (of the sweep {leases[0].sweep!r}) is at work on cells of "
                      "this sweep: what it does is not done twice")  # fmt: skip
        self._workers[cell.cell_id] |= {lease.driver for lease in leases}


def _failed_by(drivers: set[str], cell: CellPlan, store: Store, sweep: str) -> Attempt | None:
    attempts = (last_attempt(store, sweep, cell.cell_id, driver) for driver in drivers)
    return next((a for a in attempts if a is not None and a.state == "failed"), None)


def _leases(cell: CellPlan, store: Store, holder: Holder) -> list[Lease]:
    """Return what others hold of the cell's work that is not done."""
    stages = stages_to_run(cell, store)
    keys = [cell.training_key] if "train" in stages else []
    keys += [e.stream for e in cell.evaluations] if "generate" in stages else []
    keys += [j.stream for j in cell.judgings] if "judge" in stages else []
    held = (held_elsewhere(store, key, holder) for key in keys)
    return [lease for lease in held if lease is not None]
