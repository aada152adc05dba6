"""The last checkpoint of a training, kept in a store that is in a bucket, so that another machine
can go on from it. In a folder that every machine sees, the checkpoints themselves lie there.

Only of adapters, and of one rank: those of all weights are too large to send along, and several
ranks have theirs on several machines. It only saves work: where it is not to be had whole, the
training begins anew. Knows nothing of what a checkpoint holds.

    training/<key>/attempt-<driver>/checkpoint.json     which one is whole; written last
    training/<key>/attempt-<driver>/checkpoint-<step>/
    training/<key>/attempt-<driver>/snapshots/step-<step>/   the model after earlier steps, if asked
"""

import logging
import shutil
import tempfile
from pathlib import Path

from pydantic import Field

from em.checkpoints import MARK, step_of
from em.record import Record
from em.snapshots import snapshot_dir, whole_snapshots
from em.training import LossPoint, TrainingConfig
from sweeps.artefacts import SNAPSHOTS
from sweeps.files import StoreError
from sweeps.store import KEY_DIGITS, Store

log = logging.getLogger(__name__)


class KeptCheckpoint(Record):
    """The checkpoint of an attempt that is whole in the bucket."""

    step: int
    files: dict[str, int] = Field(description="size in bytes, by path in the checkpoint")
    snapshots: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="the same for each snapshot beside it, by its name"
    )


class CheckpointKeeper:
    """Copies each new checkpoint of one attempt into the bucket; does nothing for a folder."""

    def __init__(
        self, store: Store, key: str, driver: str, folder: Path, config: TrainingConfig
    ) -> None:
        """`folder` is where the trainer writes checkpoints on this machine."""
        self._store, self._folder = store, folder
        self._place = f"{_attempts(key)}/attempt-{driver}"
        self._on = not store.files.is_local and config.ranks == 1 and config.method == "lora"
        self._snapshots: dict[str, dict[str, int]] = {}  # that are in the bucket
        self._kept = _last_step(folder)  # it is there already, or was when an attempt began

    def on_step(self, point: LossPoint) -> None:
        """After a step: copy a checkpoint that has been written since. Training waits for it.

        A bucket that does not answer is told in the log, and the next checkpoint is tried.
        """
        newest = _last_step(self._folder) if self._on else -1
        if newest <= self._kept:
            return
        self._kept = newest
        try:
            self._keep(newest)
        except (ConnectionError, TimeoutError) as error:
            log.warning("the checkpoint of step %d is kept on this machine only: %s", newest, error)

    def _keep(self, step: int) -> None:
        files, name = self._store.files, f"checkpoint-{step}"
        self._keep_snapshots()
        files.put_folder(self._folder / name, f"{self._place}/{name}")
        kept = KeptCheckpoint(
            step=step, files=_sizes(self._folder / name), snapshots=self._snapshots
        )
        files.write_record(f"{self._place}/checkpoint.json", kept)
        for other in files.names(self._place):
            if other not in (name, "checkpoint.json", SNAPSHOTS):
                files.remove(f"{self._place}/{other}")

    def _keep_snapshots(self) -> None:
        """Copy the snapshots that have come since: without them the checkpoint is worth nothing."""
        beside = self._folder.parent / SNAPSHOTS
        for step in whole_snapshots(beside):
            folder = snapshot_dir(beside, step)
            if folder.name not in self._snapshots:
                self._store.files.put_folder(folder, f"{self._place}/{SNAPSHOTS}/{folder.name}")
                self._snapshots[folder.name] = _sizes(folder)


def fetch_checkpoint(store: Store, key: str, folder: Path) -> None:
    """Have the last checkpoint that any attempt at the training kept in `folder`.

    Does nothing where this machine has a later one, or the store is a folder.
    """
    files = store.files
    if files.is_local:
        return
    found: list[tuple[int, str, KeptCheckpoint]] = []
    for name in files.names(_attempts(key)):
        if name.startswith("attempt-"):
            place = f"{_attempts(key)}/{name}"
            kept = files.read_note(f"{place}/checkpoint.json", KeptCheckpoint)
            found += [(kept.step, place, kept)] if kept else []
    if not found:
        return
    step, place, kept = max(found, key=lambda one: one[0])
    if step <= _last_step(folder):
        return
    target = folder / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetched-") as place_here:
        fetched = Path(place_here) / "whole"
        try:
            files.fetch_folder(f"{place}/{target.name}", fetched)
        except StoreError as error:
            log.warning("the training begins without its checkpoint of step %d: %s", step, error)
            return
        if _sizes(fetched) != kept.files:
            log.warning("the checkpoint of step %d is torn: the training begins anew", step)
            return
        _fetch_snapshots(store, place, kept, folder.parent / SNAPSHOTS)
        shutil.rmtree(target, ignore_errors=True)  # one without its mark
        fetched.rename(target)


def _fetch_snapshots(store: Store, place: str, kept: KeptCheckpoint, folder: Path) -> None:
    """Have the snapshots beside a checkpoint below `folder`; one that is torn is left out.

    The trainer looks which are there, and goes back to before one that is not.
    """
    for name, sizes in kept.snapshots.items():
        if (folder / name).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetched-") as place_here:
            fetched = Path(place_here) / "whole"
            try:
                store.files.fetch_folder(f"{place}/{SNAPSHOTS}/{name}", fetched)
            except StoreError as error:
                log.warning("the snapshot %s of the training cannot be had: %s", name, error)
                continue
            if _sizes(fetched) == sizes:
                fetched.rename(folder / name)


def forget_checkpoints(store: Store, key: str) -> None:
    """Remove what attempts kept in the bucket: the training is finished."""
    if store.files.is_local:
        return
    for name in store.files.names(_attempts(key)):
        if name.startswith("attempt-"):
            store.files.remove(f"{_attempts(key)}/{name}")


def _attempts(key: str) -> str:
    return f"training/{key[:KEY_DIGITS]}"


def _last_step(folder: Path) -> int:
    marked = (path.parent for path in folder.glob(f"checkpoint-*/{MARK}"))
    return max((step_of(path) for path in marked), default=-1)


def _sizes(folder: Path) -> dict[str, int]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}
