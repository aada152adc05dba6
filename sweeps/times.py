"""Where the wall time of a sweep went: its stages' own work, its starts, and the rest.

Knows nothing of how the work is done.
"""

from collections.abc import Iterable, Sequence

from em.record import Record
from sweeps.artefacts import DriverBeat
from sweeps.plan import CellPlan, SweepPlan
from sweeps.store import Store
from sweeps.work import work_done


class Overhead(Record):
    """Where the wall time of the sweep's drivers went, in seconds."""

    wall: float
    stage_work: float
    starts: float
    per_cell: float | None


def overhead(sweep: SweepPlan, store: Store) -> Overhead:
    """Wall time of the drivers, less what stages and starts cover; stages may overlap."""
    drivers = store.drivers(sweep.spec.name)
    work, cells = _stage_intervals(sweep.cells, store)
    # A clock that was set back has no say in how long a driver ran: that is then not known.
    wall = sum(max(0.0, driver.updated - driver.started) for driver in drivers)
    busy = starts = 0.0
    for driver in drivers:
        inside = _clip(work, driver)
        busy += union_length(inside)
        starts += union_length(_clip([*work, *driver.starts.values()], driver)) - union_length(
            inside
        )
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
        found = [p for work in work_done(cell, store).values() for p in work]
        finished += bool(found)
        done += [(p.started, p.started + p.seconds) for p in found]
    return done, finished


def _clip(spans: Sequence[tuple[float, float]], driver: DriverBeat) -> list[tuple[float, float]]:
    cut = [(max(a, driver.started), min(b, driver.updated)) for a, b in spans]
    return [(a, b) for a, b in cut if b > a]


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of `spans` (start, end) lasts."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
