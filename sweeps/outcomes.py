"""What becomes of each cell while a driver runs: told to the person, and failures to the store.

Knows nothing of what is run next.
"""

from collections import defaultdict

from sweeps.attempts import Beat
from sweeps.failures import CellFailure, record_failure
from sweeps.files import StoreError
from sweeps.plan import CellPlan, streams_of
from sweeps.progress import SweepProgress
from sweeps.spec import SweepSpec
from sweeps.store import Store


class Outcomes:
    """The cells that one driver is through with, well or badly."""

    def __init__(self, spec: SweepSpec, store: Store, beat: Beat, progress: SweepProgress) -> None:
        self._spec, self._store, self._beat, self._progress = spec, store, beat, progress
        self._sharing: dict[tuple[str, ...], list[CellPlan]] = defaultdict(list)
        self.ended: set[str] = set()

    def is_first(self, cell: CellPlan) -> bool:
        """Note that the cell waits for its evaluation; whether no other shares its responses."""
        sharing = self._sharing[streams_of(cell)]
        sharing.append(cell)
        return len(sharing) == 1

    def trained(self, cell: CellPlan, *, by: str) -> bool:
        """Take down how the cell's training ended, which the cell `by` did; whether it is there."""
        if self._store.training(cell.training_key) is None:
            self.failed(cell, self.failure_of(by, cell))
            return False
        self._progress.done("train", cell.cell_id)
        return True

    def evaluated(self, cell: CellPlan, failure: CellFailure | None) -> None:
        """Take down that a cell, and those that share its responses, are through."""
        for sharing in self._sharing.get(streams_of(cell), [cell]):
            if failure is not None:
                own = failure.model_copy(update={"cell_id": sharing.cell_id})
                self.failed(sharing, own)
                continue
            self.ended.add(sharing.cell_id)
            self._progress.done("generate", sharing.cell_id)
            self._progress.done("judge", sharing.cell_id)

    def failure_of(self, trained: str, cell: CellPlan) -> CellFailure | None:
        """Return why the training of the cell `trained` failed, as a failure of `cell`."""
        attempts = self._store.attempts(self._spec.name, trained)
        last = attempts[-1] if attempts else None
        if last is None or last.driver != self._beat.driver or last.state != "failed":
            return None
        return CellFailure(
            cell_id=cell.cell_id,
            stage=last.stage,
            error_class=last.error_class or "",
            message=last.error or "",
            transient=False,
        )

    def failed(self, cell: CellPlan, failure: CellFailure | None = None) -> None:
        """Make sure that the store has the failure, and say it. Raises StoreError if it cannot."""
        self.ended.add(cell.cell_id)
        own = failure
        failure = failure or CellFailure(
            cell_id=cell.cell_id,
            stage="train",
            error_class="ProcessDied",
            message="the process that trained it died (killed, or out of memory), "
            f"{self._spec.retries + 1} times",
            transient=True,
        )
        try:
            record_failure(self._store, self._spec.name, self._beat.driver, failure)
        except StoreError:  # the run ends with this; what the cell failed with is told all the same
            if own is not None:
                self._progress.failed(cell.cell_id, own.stage, own.message)
            raise
        last = self._store.attempts(self._spec.name, cell.cell_id)[-1]
        self._progress.failed(cell.cell_id, last.stage, last.error or failure.message)
