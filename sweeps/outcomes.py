"""What becomes of each cell while a driver runs: told to the person, and failures to the store.

Knows nothing of what is run next.
"""

from collections import defaultdict

from sweeps.artefacts import Attempt
from sweeps.attempts import Beat, kind_of
from sweeps.failures import CellFailure, Outcome, last_attempt, record_failure
from sweeps.files import StoreError
from sweeps.plan import CellPlan, stages_to_run, streams_of
from sweeps.progress import SweepProgress
from sweeps.spec import SweepSpec
from sweeps.store import Store
from sweeps.tracking import Tracking


class Outcomes:
    """The cells that one driver is through with, well or badly."""

    def __init__(
        self, spec: SweepSpec, store: Store, beat: Beat, progress: SweepProgress,
        tracking: Tracking,
    ) -> None:  # fmt: skip
        self._spec, self._store, self._beat, self._progress = spec, store, beat, progress
        self._sharing: dict[tuple[str, ...], list[CellPlan]] = defaultdict(list)
        self._tracking = tracking
        self.ended: set[str] = set()
        self.elsewhere: list[CellPlan] = []  # another driver is at work on them

    def is_first(self, cell: CellPlan) -> bool:
        """Note that the cell waits for its evaluation; whether no other shares its responses."""
        sharing = self._sharing[streams_of(cell)]
        sharing.append(cell)
        return len(sharing) == 1

    def trained(self, cell: CellPlan, *, by: str) -> bool:
        """Take down how the cell's training ended, which the cell `by` did; whether it is there."""
        self._tracking.look()
        if self._store.training(cell.training_key) is not None:
            self._progress.done("train", cell.cell_id)
            return True
        last = last_attempt(self._store, self._spec.name, by, self._beat.driver)
        if last is not None and last.state == "waiting":
            self.elsewhere.append(cell)
        else:
            self.failed(cell, self._failure_of(last, cell))
        return False

    def evaluated(self, cell: CellPlan, outcome: Outcome) -> None:
        """Take down how the evaluation of a cell, and of those that share its responses, ended.

        Of cells that share them and are asked other held-out rows the others wait for a next round.
        """
        self._tracking.look()
        for sharing in self._sharing.pop(streams_of(cell), [cell]):
            match outcome:
                case CellFailure():
                    self.failed(sharing, outcome.model_copy(update={"cell_id": sharing.cell_id}))
                case None if not stages_to_run(sharing, self._store):
                    self.done(sharing)
                case _:
                    self.elsewhere.append(sharing)

    def done(self, cell: CellPlan) -> None:
        """Take down that everything of the cell is in the store."""
        self.ended.add(cell.cell_id)
        self._progress.done("generate", cell.cell_id)
        self._progress.done("judge", cell.cell_id)

    def _failure_of(self, last: Attempt | None, cell: CellPlan) -> CellFailure | None:
        """Return the failed attempt `last`, of a cell with the same training, as one of `cell`."""
        if last is None or last.state != "failed":
            return None
        return CellFailure(
            cell_id=cell.cell_id,
            stage=last.stage,
            error_class=last.error_class or "",
            message=last.error or "",
            kind=kind_of(last),
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
            kind="process died",
        )
        try:
            record_failure(self._store, self._spec.name, self._beat.driver, failure)
        except StoreError:  # the run ends with this; what the cell failed with is told all the same
            if own is not None:
                self._progress.failed(cell.cell_id, own.stage, own.message)
            raise
        last = last_attempt(self._store, self._spec.name, cell.cell_id, self._beat.driver)
        assert last is not None
        self.failed_elsewhere(cell, last)

    def failed_elsewhere(self, cell: CellPlan, last: Attempt) -> None:
        """Take down and say that a cell failed in the attempt `last`, of whatever driver."""
        self.ended.add(cell.cell_id)
        self._progress.failed(cell.cell_id, last.stage, last.error or "")
