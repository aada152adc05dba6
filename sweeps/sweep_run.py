"""The sweep's own run in W&B: progress, and the report as it grows.

Knows nothing of the runs of its cells.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from em.record import fingerprint
from sweeps import tracked_report
from sweeps.attempts import CellStatus
from sweeps.gathering import REPORT
from sweeps.plan import SweepPlan
from sweeps.report import PAGE, write_and_keep
from sweeps.sent import identity_of
from sweeps.store import Store
from sweeps.tracked_cell import Row
from sweeps.wandb_runs import About, WandbRun, WandbRuns

# A report is a page, pictures and tables, all of which W&B keeps: a sweep of an hour has about
# fifty of them at most, one of a week about 300: every minute for fifty minutes, then every 2 %.
REPORT_EVERY_S = 60.0
REPORT_SHARE = 0.02  # of the time since this process began, until the next one
COST_SHARE = 0.1  # of this process's time that writing reports may take


class SweepRun:
    """What W&B is told of a sweep as a whole."""

    def __init__(
        self, plan: SweepPlan, store: Store, runs: WandbRuns, now: Callable[[], float]
    ) -> None:
        """Open nothing yet."""
        self._plan, self._store, self._runs, self._now = plan, store, runs, now
        self._began, self._due = now(), 0.0
        self._run: WandbRun | None = None
        self._told: Row = {}
        self._reported: str | None = None

    def open(self) -> WandbRun:
        """Return the run, opened where it is not. Raises Refused or Unreachable."""
        if self._run is None:
            about = About(
                id=tracked_report.report_run_id(identity_of(self._store, self._plan.spec.name)),
                name=self._plan.spec.name,
                job_type=REPORT,
                tags=(),
                config=tracked_report.report_config(self._plan),
            )
            self._run = self._runs.open(about)
            self._run.define("sweep", "sweep/finished")
            self._run.define("estimate", tracked_report.SEEDS_STEP)
        return self._run

    def use(self, version: str) -> None:
        """Say that the report is made from a version of a cell's judgements."""
        self.open().use(version)

    def forget(self) -> None:
        """Take the run as lost: it is opened anew, and told anew what may not have arrived."""
        self._run, self._told, self._reported = None, {}, None

    def progress(self, told: Sequence[CellStatus]) -> None:
        """Tell how many cells are where, and write the report anew where it is due."""
        run = self.open()
        progress = tracked_report.progress_row(told)
        if progress != self._told:
            run.log(progress)
            self._told = progress
        version = _finished(told)
        if self._now() < self._due or version in (None, self._reported):
            return
        began = self._now()
        self._write(run, told, last=False)
        self._reported = version
        cost = (self._now() - began) / COST_SHARE
        age = (self._now() - self._began) * REPORT_SHARE
        self._due = self._now() + max(REPORT_EVERY_S, cost, age)

    def end(self, told: Sequence[CellStatus], version: str) -> bool:
        """Tell all, with the report's artifact, and close the run; whether W&B has all of it."""
        run = self.open()
        if run.summary.get("sweep/version") != version:
            progress = tracked_report.progress_row(told)
            if progress != self._told:
                run.log(progress)
            if _finished(told) is not None:
                self._write(run, told, last=True)
            run.summarise({"sweep/version": version})
        self.close(told)
        return not self._runs.online or self._runs.has(run.path, "sweep/version", version)

    def close(self, told: Sequence[CellStatus] | None) -> None:
        """Close the run, if it is open: as failed with a failed cell, else as what can go on.

        None for `told`: the sweep was stopped.
        """
        run, self._run = self._run, None
        if run is not None:
            states = {"stopped"} if told is None else {status.state for status in told}
            run.close(int(states != {"finished"}), preempted=not states <= {"finished", "failed"})

    def _write(self, run: WandbRun, told: Sequence[CellStatus], *, last: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="emsweep-report-") as temporary:
            folder = Path(temporary)
            report, scores = write_and_keep(self._plan, self._store, folder, for_others=True)
            for row in tracked_report.estimate_rows(
                self._plan, self._store, report, scores, run.summary
            ):
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


def _finished(told: Sequence[CellStatus]) -> str | None:
    """Return what changes with the set of finished cells; None where there is none."""
    found = [status.cell_id for status in told if status.state == "finished"]
    return fingerprint(found) if found else None
