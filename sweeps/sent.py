"""What of a sweep W&B has, noted in the store: so that `status` can say what it has not.

Only a note: whoever sends asks W&B itself. Knows nothing of W&B.
"""

from pydantic import ConfigDict, Field

from em.record import Record
from sweeps.attempts import CellStatus
from sweeps.plan import SweepPlan
from sweeps.settings import TrackingConfig
from sweeps.store import Store
from sweeps.tracked_cell import version_of

OFFLINE = "offline"


class Sent(Record):
    """The version of each cell, and of the report, that was sent to `target`.

    `artifacts` are the names that W&B gave to what is uploaded once, by its content. Not frozen:
    one process adds to it, and writes it down now and then.
    """

    model_config = ConfigDict(frozen=False)

    target: str
    cells: dict[str, str] = Field(default_factory=dict)
    report: str | None = None
    artifacts: dict[str, str] = Field(default_factory=dict)


def target_of(config: TrackingConfig, *, online: bool) -> str:
    """Return the name of where runs are sent to."""
    return f"{config.entity or ''}/{config.project}" if online else OFFLINE


def read_sent(store: Store, sweep: str, target: str) -> Sent:
    """Return what was sent to `target`; nothing, where it was sent somewhere else."""
    sent = store.files.read_note(_place(store, sweep, target), Sent)
    return sent if sent is not None and sent.target == target else Sent(target=target)


def write_sent(store: Store, sweep: str, sent: Sent) -> None:
    """Note what was sent."""
    store.files.write_note(_place(store, sweep, sent.target), sent)


def not_sent(plan: SweepPlan, store: Store, told: list[CellStatus]) -> int:
    """Return how many cells that have begun are not, or not as they are now, in W&B."""
    target = target_of(plan.spec.tracking, online=True)
    sent = read_sent(store, plan.spec.name, target).cells
    begun = [
        (cell, status)
        for cell, status in zip(plan.cells, told, strict=True)
        if status.state != "missing" or status.attempts
    ]
    return sum(sent.get(cell.cell_id) != version_of(cell, status) for cell, status in begun)


def _place(store: Store, sweep: str, target: str) -> str:
    kind = OFFLINE if target == OFFLINE else "online"
    return f"{store.sweep_dir(sweep)}/tracking-{kind}.json"
