"""The records that a store holds: what was made, of what, where, and how far an attempt is.

Knows nothing of paths or file systems (see sweeps.store).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from em.budget import Usage
from em.record import Record
from em.snapshots import snapshot_dir
from em.training import Canary, TrainingResult
from sweeps.failure_kinds import FailureKind

Stage = Literal["train", "generate", "judge"]
StreamKind = Literal["responses", "judgements"]
KEY_DIGITS = 32  # of a folder's name; the record holds all 64
SNAPSHOTS = "snapshots"
# What a stage makes, for a person.
PIECES: Mapping[Stage, str] = {
    "train": "trainings", "generate": "responses", "judge": "judgements"
}  # fmt: skip


class Provenance(Record):
    """Where, when and with what a piece of work was done."""

    commit: str | None
    versions: dict[str, str]
    host: str
    started: float = Field(description="seconds since 1970")
    seconds: float
    device: str
    gates: dict[str, str] = Field(
        default_factory=dict, description="what each gate found that let the work go on"
    )


class SnapshotRecord(Record):
    """The weights as they were after one step of a finished training: whole, beside its own."""

    step: int
    weights_sha256: str
    canaries: tuple[Canary, ...] = ()


class TrainingRecord(Record):
    """A finished training: the adapter beside it is whole, and so are its snapshots."""

    key: str
    identity: dict[str, Any]
    weights_sha256: str = Field(description="content hash of the adapter's (or model's) files")
    kind: Literal["adapter", "full", "api"]
    result: TrainingResult
    provenance: Provenance
    snapshots: tuple[SnapshotRecord, ...] = ()
    place: str = Field(default="adapter", description="the folder of the weights, beside it")

    def has(self, step: int | None) -> bool:
        """Whether the weights after a step were kept; None: at the end, which they are."""
        return step is None or any(snapshot.step == step for snapshot in self.snapshots)

    def after(self, step: int | None) -> "TrainingRecord":
        """Return the training as if it had ended after `step`; None: it, as it ended.

        Raises ValueError where nothing of that step was kept.
        """
        if step is None:
            return self
        kept = {snapshot.step: snapshot for snapshot in self.snapshots}
        if step not in kept:
            raise ValueError(
                f"of the training {self.key[:KEY_DIGITS]} nothing was kept of step {step}; kept "
                f"are {', '.join(map(str, kept)) or 'none'} and the end, step {self.result.steps}"
            )
        result = self.result.model_copy(update={"canaries": kept[step].canaries})
        return self.model_copy(
            update={
                "weights_sha256": kept[step].weights_sha256,
                "result": result,
                "snapshots": (),
                "place": snapshot_place(step),
            }
        )


def snapshot_place(step: int) -> str:
    """Return the folder of a step's snapshot, beside its training's record."""
    return f"{SNAPSHOTS}/{snapshot_dir(Path(), step)}"


class Part(Record):
    """One immutable file of a stream."""

    name: str
    rows: int
    sha256: str
    used: dict[str, Usage] | None = Field(
        default=None, description="by judge, what its calls used; None: not told"
    )


class StreamRecord(Record):
    """The finished part of a stream of responses or judgements.

    `covers` maps a group (a wording, or a wording and judge prompt) to its finished sample indices,
    as [start, stop) ranges; `failed`, in the same form, those of them whose judgement failed and
    would be asked for again by a resume.
    """

    key: str
    identity: dict[str, Any]
    covers: dict[str, list[tuple[int, int]]]
    failed: dict[str, list[tuple[int, int]]] = Field(default_factory=dict)
    parts: list[Part]
    provenance: list[Provenance]


class Attempt(Record):
    """What one attempt at a cell is doing, or how it ended."""

    attempt: int
    stage: Stage
    state: Literal["running", "waiting", "finished", "failed"] = Field(
        description="waiting: another driver does this cell's work"
    )
    updated: float
    driver: str = Field(description="the driver that this attempt belongs to")
    error: str | None = None
    error_class: str | None = None
    kind: FailureKind | None = Field(default=None, description="None: see classify_stored")


class Probe(Record):
    """A file that is left in the store to see who else finds it there."""

    made_by: str = Field(description="a machine's name")


class DriverBeat(Record):
    """One driver (a process that carries out a sweep): its sign of life, what it waited for."""

    driver: str
    host: str
    place: str = Field(default="", description="what processes share that see each other's ids")
    pid: int
    process_ticks: int | None = Field(default=None, description="its start: ids are used again")
    started: float
    updated: float
    count: int = Field(default=0, description="signs of life until now")
    finished: bool = False
    starts: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="what was started (Ray, pools), from when to when"
    )
