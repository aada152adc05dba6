"""Tells W&B what the store says of a sweep, in a process of its own, while the sweep runs or later.

The store is the record; W&B has a copy. No cell waits for W&B, and whatever was not sent (an
outage, no account, a killed driver) is sent later, once, and in order. What W&B has is asked of
itself: its summary of a run says up to which step, and for which version of the cell. Knows nothing
of W&B's SDK (see sweeps.wandb_runs) or of how a cell is carried out.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from em.record import fingerprint
from sweeps import tracked_cell, tracked_report
from sweeps.attempts import CellStatus, statuses
from sweeps.plan import CellPlan, SweepPlan
from sweeps.report import PAGE, metrics_of, write_and_keep
from sweeps.results import CellResult, ScoredResponse, cell_result, scored_responses
from sweeps.sent import read_sent, target_of, write_sent
from sweeps.store import Store
from sweeps.tracked_cell import Artifact, Row
from sweeps.wandb_runs import STEPS, About, Refused, Unreachable, WandbRun, WandbRuns

log = logging.getLogger(__name__)

MOST_OPEN = 64  # runs that are open at once; cells that wait for their next stage are closed first
CELLS_A_MINUTE = 30.0  # about 25 requests each, of the few hundred a minute that W&B takes
CELLS_AT_ONCE = 30  # that need not wait, after a rest
NOTE_EVERY_S = 5.0
REPORT_EVERY_S = 60.0
SHARE = 0.1  # of this process's time that looking, and writing reports, may take each
TRY_AGAIN_S = 30.0  # after W&B did not answer; doubled each time, up to LONGEST_S
LONGEST_S = 1800.0
REPORT = "report"


@dataclass
class _Open:
    """An open run of a cell: the last step that W&B has, and the version that it knows."""

    run: WandbRun
    step: int
    version: str | None
    state: str = ""
    used: float = field(default_factory=time.monotonic)


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
        """`say` is told, once, that W&B does not answer, and each thing that it refuses.

        `step` is called after each cell that was looked at.
        """
        self._plan, self._store, self._runs, self._say = plan, store, runs, say
        self._step = step
        self._now, self._sleep = now, sleep
        tracking = plan.spec.tracking
        self.sent = read_sent(store, plan.spec.name, target_of(tracking, online=runs.online))
        self._open: dict[str, _Open] = {}
        self._report: WandbRun | None = None
        self._told_progress: Row = {}
        self._report_due = 0.0
        self._wait_s, self._silent_until = TRY_AGAIN_S, 0.0
        self._said: set[str] = set()
        self._refused: set[str] = set()
        self._closed = False  # W&B refuses the sweep itself
        self._credit, self._credited = float(CELLS_AT_ONCE), now()
        self._noted = now()

    # One look --------------------------------------------------------------------------------

    def begin(self) -> WandbRun:
        """Open the sweep's own run, if it is not. Raises Refused or Unreachable."""
        if self._report is not None:
            return self._report
        spec = self._plan.spec
        about = About(
            id=tracked_report.report_run_id(spec.name),
            name=spec.name,
            job_type=REPORT,
            tags=(),
            config=tracked_report.report_config(self._plan),
        )
        self._report = self._runs.open(about)
        self._report.define("sweep", "sweep/finished")
        self._report.define("estimate", tracked_report.SEEDS_STEP)
        return self._report

    def look(self, *, last: bool) -> bool:
        """Send what is new; with `last`, all of it. Return whether nothing is left to send."""
        if self._closed or (self._now() < self._silent_until and not last):
            return False
        try:
            left = self._look(last=last)
        except Unreachable as error:
            self.lose(error)
            return False
        except Refused as error:
            self._closed = True
            self._say(f"W&B refuses this sweep's own run, and nothing more is sent ({error})")
            return False
        finally:
            self._write_note()
        if self._wait_s > TRY_AGAIN_S:
            self._say("W&B answers again")
        self._wait_s = TRY_AGAIN_S
        return not left

    def _look(self, *, last: bool) -> int:
        told = statuses(self._plan, self._store)
        left = 0
        for plan, status in zip(self._plan.cells, told, strict=True):
            left += not self._cell(plan, status, last=last)
            self._step()
        self._make_room(0 if last else MOST_OPEN)
        left += not self._sweep(told, last=last)
        return left

    def lose(self, error: Unreachable) -> None:
        """Wait, longer each time: every run that is open is opened anew, as W&B has it then."""
        self._open, self._report = {}, None
        self._runs.drop()
        self._silent_until = self._now() + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_S)
        self._say_once(
            f"W&B does not answer, the cells go on without it ({error}). All of it is in the "
            "store: what is not sent when the sweep ends is sent by 'emsweep sync'"
        )

    def _say_once(self, text: str) -> None:
        key = text.partition("(")[0]
        if key not in self._said:
            self._said.add(key)
            self._say(text)

    # Cells -----------------------------------------------------------------------------------

    def _cell(self, plan: CellPlan, status: CellStatus, *, last: bool) -> bool:
        """Send what is new of one cell; return whether nothing is left of it."""
        version = tracked_cell.version_of(plan, status)
        at_rest = status.state != "running"
        if self.sent.cells.get(plan.cell_id) == version:
            return True
        if plan.cell_id in self._refused:
            return False
        waits = status.state == "missing"
        if waits and not status.attempts:
            return True  # nothing has been done of it
        if waits and not last and plan.cell_id not in self._open:
            return False  # told with its next stage, or when the sweep ends
        if not self._runs.online and not at_rest:
            return False  # written whole when it has ended
        try:
            self._tell(plan, status, version, last=last)
        except Refused as error:
            self._open.pop(plan.cell_id, None)
            self._refused.add(plan.cell_id)
            self._say(
                f"W&B refuses the run of {plan.cell_id} ({error}). A run that was deleted there "
                "cannot be made again: name another 'tracking: project', or the sweep anew"
            )
            return False
        return at_rest

    def _tell(self, plan: CellPlan, status: CellStatus, version: str, *, last: bool) -> None:
        opened = self._open.get(plan.cell_id) or self._opened(plan, status)
        for row in tracked_cell.training_rows(plan, self._store, after=opened.step):
            opened.run.log(row)
            opened.step = row["train/step"]
            opened.used = self._now()
        if opened.state != status.state:
            opened.run.summarise(tracked_cell.summary_of(status))
            opened.state = status.state
        if status.state in ("finished", "failed") or (last and status.state == "missing"):
            self._end(plan, status, version, opened)

    def _opened(self, plan: CellPlan, status: CellStatus) -> _Open:
        about = About(
            id=tracked_cell.run_id(self._plan.spec.name, plan.cell_id),
            name=plan.cell_id,
            job_type="cell",
            tags=tuple(tracked_cell.tags_of(plan, status.attempts)),
            config=tracked_cell.config_of(plan, self._plan.spec.name),
        )
        self._make_room(MOST_OPEN - 1)
        run = self._runs.open(about)
        for group, step in STEPS.items():
            run.define(group, step)
        opened = _Open(run, run.summary.get("train/step", 0), run.summary.get("cell/version"))
        self._open[plan.cell_id] = opened
        return opened

    def _end(self, plan: CellPlan, status: CellStatus, version: str, opened: _Open) -> None:
        """Send what came of a cell that is at rest, and close its run."""
        used: list[str] = []
        if opened.version != version:
            used = self._results(plan, status, version, opened.run)
            opened.run.summarise(tracked_cell.summary_of(status) | {"cell/version": version})
            self._alert(plan, status, opened.run)
        self._open.pop(plan.cell_id, None)
        failed = status.state != "finished"
        opened.run.close(int(failed), preempted=status.state == "missing")
        if self._runs.online:
            if self._runs.told(opened.run.path).get("cell/version") != version:
                raise Unreachable(f"W&B has not all that it was told of {plan.cell_id}")
            for artifact in used:
                self.begin().use(artifact)
        self.sent.cells[plan.cell_id] = version
        if self._now() - self._noted > NOTE_EVERY_S:
            self._write_note()
        self._pace()

    def _pace(self) -> None:
        """Wait where more cells were sent than W&B should be asked to take."""
        now = self._now()
        self._credit += (now - self._credited) * CELLS_A_MINUTE / 60
        self._credit, self._credited = min(self._credit, CELLS_AT_ONCE) - 1, now
        if self._runs.online and self._credit < 0:
            self._sleep(-self._credit * 60 / CELLS_A_MINUTE)

    def _results(
        self, plan: CellPlan, status: CellStatus, version: str, run: WandbRun
    ) -> list[str]:
        """Send results, answers and artifacts; return the versions that the report is made from.

        The row of results says which version it is of: where it has arrived it is not sent again.
        """
        found = self._results_of(plan, status)
        if plan.cell.training is not None:
            self._artifact(tracked_cell.dataset_artifact(plan), run, use=True)
        most = self._plan.spec.tracking.adapters_mib
        adapter = tracked_cell.adapter_artifact(plan, self._store, most_mib=most)
        if adapter is not None:
            self._artifact(adapter, run, use=True)
        if not found:
            return []
        if run.summary.get("cell/results") != version:
            row = tracked_cell.result_row(plan, [result for result, _ in found])
            answers = {"answers": tracked_cell.answers_table(found)}
            run.log(row | {"cell/results": version}, tables=answers)
        self._artifact(tracked_cell.responses_artifact(plan, self._store), run, use=True)
        sent = self._artifact(tracked_cell.judgements_artifact(plan, found), run)
        return [sent] if sent else []

    def _results_of(
        self, plan: CellPlan, status: CellStatus
    ) -> list[tuple[CellResult, Sequence[ScoredResponse]]]:
        metrics = metrics_of(plan, None)
        found: list[tuple[CellResult, Sequence[ScoredResponse]]] = []
        for judging in plan.judgings:
            rows = scored_responses(plan, judging, self._store)
            if rows:
                metric = metrics[judging.evaluation]
                result = cell_result(plan, judging, status, rows, metric, self._store)
                found.append((result, rows))
        return found

    def _artifact(self, content: Artifact, run: WandbRun, *, use: bool = False) -> str | None:
        """Send an artifact once, whoever has it; with `use`, the run is also made from it."""
        key = fingerprint([content.name, *content.aliases, sorted(content.files)])
        version = self.sent.artifacts.get(key) or run.upload(content)
        if version is not None:
            self.sent.artifacts[key] = version
            if use:
                run.use(version)
        return version

    def _alert(self, plan: CellPlan, status: CellStatus, run: WandbRun) -> None:
        if self._plan.spec.tracking.alerts and status.state == "failed" and self._runs.online:
            title = f"{plan.cell_id} failed: {status.kind}"
            run.alert(title, f"In stage {status.stage}. {status.cure or ''}")

    def _make_room(self, most: int) -> None:
        """Close runs of cells that wait for their next stage, those longest at rest first."""
        resting = sorted(self._open.items(), key=lambda item: item[1].used)
        for cell_id, opened in resting[: max(0, len(self._open) - most)]:
            del self._open[cell_id]
            opened.run.close(1, preempted=True)

    # The sweep ----------------------------------------------------------------------------------

    def _sweep(self, told: Sequence[CellStatus], *, last: bool) -> bool:
        """Send the sweep's progress and, when it is due, its report; return whether all is sent."""
        pairs = zip(self._plan.cells, told, strict=True)
        version = fingerprint([tracked_cell.version_of(*pair) for pair in pairs])[:16]
        if self.sent.report == version:
            if last and self._report is not None:
                self._close_report(self._report, told)
            return True
        if not self._runs.online and not last:
            return False  # written whole when the sweep has ended
        run = self.begin()
        progress = tracked_report.progress_row(told)
        if progress != self._told_progress:
            run.log(progress)
            self._told_progress = progress
        is_due = last or self._now() >= self._report_due
        if is_due and any(status.state == "finished" for status in told):
            began = self._now()
            self._write_report(run, told, last=last)
            self._report_due = self._now() + max(REPORT_EVERY_S, (self._now() - began) / SHARE)
        if not last:
            return False
        run.summarise({"sweep/version": version})
        self._close_report(run, told)
        if self._runs.online and self._runs.told(run.path).get("sweep/version") != version:
            raise Unreachable("W&B has not all that it was told of the sweep")
        self.sent.report = version
        return True

    def _write_report(self, run: WandbRun, told: Sequence[CellStatus], *, last: bool) -> None:
        known = {k: v for k, v in run.summary.items() if k.startswith("estimate/")}
        seeds = {k.removesuffix("/seeds"): int(v) for k, v in known.items() if k.endswith("/seeds")}
        with tempfile.TemporaryDirectory(prefix="emsweep-report-") as temporary:
            folder = Path(temporary)
            report, scores = write_and_keep(self._plan, self._store, folder, for_others=True)
            for row in tracked_report.estimate_rows(self._plan, self._store, report, scores, seeds):
                run.log(row)
                run.summary |= row
            run.log(
                {"sweep/finished": sum(status.state == "finished" for status in told)},
                tables={
                    "cells": tracked_report.cells_rows(told, report),
                    "conditions": tracked_report.conditions_rows(report.analyses),
                    "components": tracked_report.components_rows(report.analyses),
                },
                pictures=tracked_report.pictures(folder),
                pages={"report": folder / PAGE},
            )
            if last:
                run.upload(tracked_report.report_artifact(self._plan, folder, report, scores))

    def _close_report(self, run: WandbRun, told: Sequence[CellStatus]) -> None:
        self._report = None
        states = {status.state for status in told}
        run.close(int(states != {"finished"}), preempted=not states <= {"finished", "failed"})

    def _write_note(self) -> None:
        """Note in the store what W&B has. A note that is lost costs a question to W&B."""
        self._noted = self._now()
        try:
            write_sent(self._store, self._plan.spec.name, self.sent)
        except Exception as error:  # noqa: BLE001  a store out of reach, of any kind
            log.warning("what W&B has could not be noted: %s", error)
