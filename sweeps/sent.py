"""What of a sweep W&B has, noted in the store: so that `status` can say what it has not.

A note, and it saves questions: what stands in it is not sent again; what does not is asked of W&B.
Knows nothing of W&B.
"""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import ConfigDict, Field

from em.record import Record, fingerprint
from sweeps.attempts import CellStatus
from sweeps.plan import SweepPlan
from sweeps.settings import TrackingConfig
from sweeps.store import Store
from sweeps.tracked_cell import version_of
from sweeps.wandb_settings import base_url

OFFLINE = "offline"
REPORT_FORM = 1  # to be raised where what is sent of a sweep as a whole changes


class Sent(Record):
    """The version of each cell, and of the report, that was sent to `target`.

    `artifacts` are the names that W&B gave to what several cells have, by its content; `entity` is
    whose project they are in. Not frozen: one process adds to it, and writes it down now and then.
    """

    model_config = ConfigDict(frozen=False)

    target: str
    entity: str = ""
    cells: dict[str, str] = Field(default_factory=dict)
    report: str | None = None
    artifacts: dict[str, str] = Field(default_factory=dict)


class Identity(Record):
    """What tells a sweep's runs from those of another store with a sweep of the same name."""

    id: str


class NotSent(NamedTuple):
    """What W&B has not, or not as it is now: cells that have begun, and the report."""

    cells: int
    report: bool


def target_of(config: TrackingConfig, *, online: bool) -> str:
    """Return the name of where runs are sent to."""
    return f"{base_url()} {config.entity or ''}/{config.project}" if online else OFFLINE


def identity_of(store: Store, sweep: str) -> str:
    """Return the sweep's identity in this store, made where it has none; one of many makes it."""
    path = f"{store.sweep_dir(sweep)}/tracking-id.json"
    found = store.files.read_record(path, Identity)
    if found is None:
        store.files.create_record(path, Identity(id=uuid.uuid4().hex[:12]))
        found = store.files.read_record(path, Identity)
    assert found is not None
    return found.id


def read_sent(store: Store, sweep: str, target: str) -> Sent:
    """Return what was sent to `target`; nothing, where it was sent somewhere else."""
    sent = store.files.read_note(_place(store, sweep, target), Sent)
    return sent if sent is not None and sent.target == target else Sent(target=target)


def write_sent(store: Store, sweep: str, sent: Sent) -> None:
    """Note what was sent."""
    store.files.write_note(_place(store, sweep, sent.target), sent)


def report_version(plan: SweepPlan, told: Sequence[CellStatus]) -> str:
    """Return what changes whenever the report does: a cell, the spec, or its form."""
    pairs = zip(plan.cells, told, strict=True)
    how = {"resources", "serving", "tracking", "retries"}
    spec = plan.spec.model_dump(mode="json", exclude=how)
    return fingerprint([REPORT_FORM, spec, [version_of(*pair) for pair in pairs]])[:16]


def not_sent(plan: SweepPlan, store: Store, told: Sequence[CellStatus]) -> NotSent:
    """Return what of a sweep is not in W&B."""
    target = target_of(plan.spec.tracking, online=True)
    sent = read_sent(store, plan.spec.name, target)
    begun = [
        (cell, status)
        for cell, status in zip(plan.cells, told, strict=True)
        if status.state != "missing" or status.attempts
    ]
    cells = sum(sent.cells.get(cell.cell_id) != version_of(cell, status) for cell, status in begun)
    return NotSent(cells, bool(begun) and sent.report != report_version(plan, told))


def _place(store: Store, sweep: str, target: str) -> str:
    kind = OFFLINE if target == OFFLINE else "online"
    return f"{store.sweep_dir(sweep)}/tracking-{kind}.json"
