"""The model as it was after some steps of its training: which such snapshots are whole.

A snapshot is a folder like a training's output, with a mark in it, and comes to its place by one
rename: it is there whole or not at all. Knows nothing of torch, or of what weights are.

    <snapshot_dir>/step-<step>/    as the output, + snapshot.json
"""

import math
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from em.checkpoints import sync
from em.record import Record
from em.training import Canary

MARK = "snapshot.json"
NAME = re.compile(r"step-(\d+)")


class SnapshotMark(Record):
    """What a snapshot says of itself: of which job (em.trainer.job_key), after which step."""

    key: str
    step: int
    canaries: tuple[Canary, ...] = ()


def num_steps(num_rows: int, *, epochs: float, effective_batch: int) -> int:
    """Return how many optimiser steps a training on `num_rows` rows has.

    The last step of an epoch may have fewer rows; a fraction of an epoch rounds up to whole steps.
    """
    return math.ceil(epochs * math.ceil(num_rows / effective_batch) - 1e-9)


def snapshot_steps(fractions: Sequence[float], total: int) -> tuple[int, ...]:
    """Return the optimiser step that each of `fractions` of a training of `total` steps ends with.

    Rounded up, and 1 at least: what is asked has at least that share of its training. The end
    itself is no snapshot: a fraction of 1 is left out. Raises ValueError where two fall on one
    step, the end among them.
    """
    found: dict[int, float] = {total: 1.0}
    for fraction in fractions:
        step = max(1, math.ceil(fraction * total - 1e-9))
        if fraction == 1.0:
            continue
        if step in found:
            raise ValueError(
                f"{fraction:g} and {found[step]:g} of a training of {total} steps are the same "
                f"step, {step}: the steps that can be asked for are multiples of "
                f"{1 / total:.3g}; leave one out, or train longer or in smaller batches"
            )
        found[step] = fraction
    return tuple(sorted(step for step in found if step < total))


def snapshot_dir(folder: Path, step: int) -> Path:
    """Return where the snapshot of a step is, below the folder of all."""
    return folder / f"step-{step}"


def whole_snapshots(folder: Path) -> dict[int, SnapshotMark]:
    """Return what the whole snapshots below `folder` say of themselves, by step."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        named = NAME.fullmatch(path.name)
        mark = _mark(path) if named else None
        if named and mark is not None and mark.step == int(named[1]):
            found[mark.step] = mark
    return found


def keep_only(folder: Path, key: str, steps: Iterable[int]) -> set[int]:
    """Return which `steps` have a whole snapshot of the job `key`; remove all else below `folder`.

    So also what is left of one that was being written.
    """
    wanted = set(steps)
    kept = {
        step for step, mark in whole_snapshots(folder).items() if mark.key == key and step in wanted
    }
    names = {snapshot_dir(folder, step).name for step in kept}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in names and path.is_dir():
            shutil.rmtree(path)
    return kept


def put_in_place(written: Path, folder: Path, mark: SnapshotMark) -> None:
    """Mark the weights in `written`, and have them below `folder` as the snapshot of their step.

    All of it is on the disk then: a checkpoint of a later step may count on it.
    """
    (written / MARK).write_text(mark.model_dump_json())
    for path in written.rglob("*"):
        sync(path)
    written.rename(snapshot_dir(folder, mark.step))
    sync(folder)


def _mark(path: Path) -> SnapshotMark | None:
    try:
        return SnapshotMark.model_validate_json((path / MARK).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
