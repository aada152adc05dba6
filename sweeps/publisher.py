"""Tells W&B what the store says of a sweep, in a process of its own, while the sweep runs or later.

The store is the record; W&B has a copy. No cell waits for W&B, and whatever was not sent (an
outage, no account, a killed driver) is sent later, once, and in order. What W&B has is asked of
itself: its summary of a run says up to which step, and for which version of the cell. Decides when
what is sent; knows nothing of W&B's SDK (see sweeps.wandb_runs) or of what is told.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from sweeps.attempts import CellStatus, statuses
from sweeps.cell_runs import CellRuns
from sweeps.files import StoreError
from sweeps.plan import CellPlan, SweepPlan
from sweeps.sent import Sent, read_sent, report_version, target_of, write_sent
from sweeps.store import Store
from sweeps.sweep_run import SweepRun
from sweeps.tracked_cell import version_of
from sweeps.wandb_runs import Refused, Unreachable, WandbRuns

log = logging.getLogger(__name__)

# A cell takes about sixty requests, of the few hundred a minute that W&B may take.
CELLS_A_MINUTE = 8.0
CELLS_AT_ONCE = 30  # that need not wait, after a rest
NOTE_EVERY_S = 5.0
TRY_AGAIN_S = 30.0  # after W&B did not answer; doubled each time, up to LONGEST_S
LONGEST_S = 1800.0
SILENT = "W&B does not answer"


class Publisher:
    """Brings W&B's copy of one sweep up to the store; `look` again and again."""

    def __init__(
        self,
        plan: SweepPlan,
        store: Store,
        runs: WandbRuns,
        *,
        say: Callable[[str], None],
        step: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`say` is told, once, that W&B does not answer, and what it refuses.

        `step` is called after each cell that was looked at. To be made by who holds the sweep's
        tracking: what another process has sent is read here.
        """
        self._plan, self._store, self._runs = plan, store, runs
        self._say, self._step, self._now, self._sleep = say, step, now, sleep
        target = target_of(plan.spec.tracking, online=runs.online)
        self.sent: Sent = read_sent(store, plan.spec.name, target)
        self._written = self.sent.model_copy(deep=True)
        self._noted = now()
        self._sweep = SweepRun(plan, store, runs, now)
        self._cells = CellRuns(plan, store, runs, self.sent, self._sweep.use)
        self._wait_s, self._silent_until = TRY_AGAIN_S, 0.0
        self._said: set[str] = set()
        self._refused: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._just_failed: dict[str, int] = {}
        self._settled: dict[str, CellStatus] = {}
        self._closed = False  # W&B refuses everything
        self._account: str | None = None
        self._credit, self._credited = float(CELLS_AT_ONCE), now()
        self.reading_s = 0.0

    def begin(self) -> None:
        """Open the sweep's own run. Raises Refused or Unreachable."""
        self._know_account()
        self._sweep.open()

    def _know_account(self) -> None:
        """Forget what was sent from another account, once it is known whose this is."""
        if self._account is None:
            self._account = self._runs.entity()
            if self.sent.entity not in ("", self._account):
                self.sent.artifacts.clear()
                self.sent.cells.clear()
                self.sent.report = None
            self.sent.entity = self._account

    def look(self, *, last: bool) -> bool:
        """Send what is new; with `last`, all of it. Return whether nothing is left to send."""
        if self._closed or (self._now() < self._silent_until and not last):
            return False
        before = len(self.sent.cells)
        try:
            left = self._look(last=last)
        except Unreachable as error:
            if len(self.sent.cells) > before:  # it does answer, but for one cell
                self._wait_s = TRY_AGAIN_S
            self.lose(error)
            return False
        except Refused as error:
            self._closed = True
            self._say(f"W&B refuses, and nothing more is sent ({error})")
            return False
        except (StoreError, OSError) as error:
            self._say_once("the store cannot be read for W&B", str(error))
            return False
        finally:
            self._write_note()
        if SILENT in self._said:
            self._said.discard(SILENT)
            self._say("W&B answers again")
        self._wait_s = TRY_AGAIN_S
        return not left

    def lose(self, error: Unreachable) -> None:
        """Wait, longer each time: every run that is open is opened anew, as W&B has it then."""
        self._cells.forget()
        self._sweep.forget()
        self._runs.drop()
        self._silent_until = self._now() + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_S)
        self._say_once(
            SILENT,
            f"the cells go on without it ({error}). All of it is in the store: what is not sent "
            "when the sweep ends is sent by 'emsweep sync'",
        )

    def stop(self) -> None:
        """Close what is open, as what can be gone on with; errors are the end, too."""
        try:
            self._cells.close_all()
            self._sweep.close(None)
        except (Refused, Unreachable) as error:
            log.warning("W&B was not told that the sweep was stopped: %s", error)

    def _look(self, *, last: bool) -> int:
        self._know_account()
        told = self._statuses(last=last)
        pairs = list(zip(self._plan.cells, told, strict=True))
        # Cells under way first: their losses are looked at. What failed to be sent comes last.
        pairs.sort(key=lambda pair: (self._failures[pair[0].cell_id], pair[1].state != "running"))
        left = 0
        for cell, status in pairs:
            left += not self._cell(cell, status, last=last)
            self._step()
        return left + (not self._whole(told, last=last))

    def _statuses(self, *, last: bool) -> list[CellStatus]:
        """Return how far every cell is. What is finished and sent is read again with `last`."""
        began = self._now()
        known = {} if last else self._settled
        asked = [cell for cell in self._plan.cells if cell.cell_id not in known]
        read = statuses(self._plan, self._store, asked)
        found = known | {status.cell_id: status for status in read}
        self.reading_s = self._now() - began
        return [found[cell.cell_id] for cell in self._plan.cells]

    # Cells -----------------------------------------------------------------------------------

    def _cell(self, cell: CellPlan, status: CellStatus, *, last: bool) -> bool:
        """Send what is new of one cell; return whether nothing is left of it."""
        name, version = cell.cell_id, version_of(cell, status)
        if self.sent.cells.get(name) == version:
            if status.state == "finished":
                self._settled[name] = status
            return True
        if name in self._refused:
            return False
        try:
            return self._told(cell, status, version, last=last)
        except Refused as error:
            self._cells.forget(cell)
            if "deleted" not in str(error):
                raise  # of all cells
            self._refused.add(name)
            self._say(
                f"W&B has deleted the run of {name}, which cannot be made again ({error}): name "
                "another 'tracking: project', or the sweep anew"
            )
        except Unreachable:
            self._failures[name] += 1
            raise
        except (StoreError, OSError) as error:
            self._say_once(f"{name} cannot be read for W&B", str(error))
        return False

    def _told(self, cell: CellPlan, status: CellStatus, version: str, *, last: bool) -> bool:
        match status.state:
            case "running":
                if self._runs.online:  # offline each run is written whole, when it has ended
                    self._cells.follow(cell, status)
                return False
            case "missing":
                if not status.attempts:
                    return True  # nothing has been done of it
                if not last:
                    if self._cells.is_open(cell):
                        self._cells.follow(cell, status)
                    return False  # told with its next stage, or when the sweep ends
            case "failed" if not last and self._just_failed.get(cell.cell_id) != status.attempts:
                self._just_failed[cell.cell_id] = status.attempts
                return False  # it may be tried again by itself: told by the next look
        arrived = self._cells.end(cell, status, version)
        self._pace()
        if not arrived:
            self._say_once("W&B does not show all that it was told", f"first of {cell.cell_id}")
            return False
        self.sent.cells[cell.cell_id] = version
        if self._now() - self._noted > NOTE_EVERY_S:
            self._write_note()
        return True

    def _pace(self) -> None:
        """Wait where more cells were sent than W&B should be asked to take."""
        now = self._now()
        self._credit += (now - self._credited) * CELLS_A_MINUTE / 60
        self._credit, self._credited = min(self._credit, CELLS_AT_ONCE) - 1, now
        if self._runs.online and self._credit < 0:
            self._sleep(-self._credit * 60 / CELLS_A_MINUTE)

    # The sweep -------------------------------------------------------------------------------

    def _whole(self, told: Sequence[CellStatus], *, last: bool) -> bool:
        """Send what is new of the sweep as a whole; return whether all of that is sent."""
        version = report_version(self._plan, told)
        if self.sent.report == version:
            if last:
                self._sweep.close(told)
            return True
        if not last:
            if self._runs.online:
                self._sweep.progress(told)
            return False
        if not self._sweep.end(told, version):
            return False
        self.sent.report = version
        return True

    # Notes -----------------------------------------------------------------------------------

    def _say_once(self, what: str, why: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._say(f"{what}: {why}" if what != SILENT else f"{what}, {why}")

    def _write_note(self) -> None:
        """Note in the store what W&B has. A note that is lost costs a question to W&B."""
        self._noted = self._now()
        if self.sent == self._written:
            return
        try:
            write_sent(self._store, self._plan.spec.name, self.sent)
            self._written = self.sent.model_copy(deep=True)
        except Exception as error:  # noqa: BLE001  a store out of reach, of any kind
            log.warning("what W&B has could not be noted: %s", error)
