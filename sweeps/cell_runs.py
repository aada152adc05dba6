"""The runs of a sweep's cells in W&B: which are open, and what each is told next.

A cell's run goes on from what W&B has of it. Knows nothing of outages, or of the sweep as a whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sweeps import tracked_artifacts, tracked_cell
from sweeps.attempts import CellStatus
from sweeps.plan import CellPlan, SweepPlan, at_the_end
from sweeps.report import metrics_of
from sweeps.results import CellResult, ScoredResponse, cell_result, scored_responses
from sweeps.sent import Sent, identity_of
from sweeps.store import Store
from sweeps.tracked_artifacts import Artifact
from sweeps.tracked_cell import Row
from sweeps.wandb_runs import STEPS, About, WandbRun, WandbRuns

MOST_OPEN = 64  # runs at once; each is memory and a connection


@dataclass
class _Open:
    """An open run: the last step that W&B has, and how far the cell was said to be."""

    run: WandbRun
    step: int
    told: Row = field(default_factory=dict)
    attempts: int = 0

    @property
    def waits(self) -> bool:
        """Whether the cell is between its stages."""
        return self.told.get("cell/state") != "running"


class CellRuns:
    """One run a cell; `made` is told the judgements that the sweep's report is made from."""

    def __init__(
        self, plan: SweepPlan, store: Store, runs: WandbRuns, sent: Sent,
        made: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._plan, self._store, self._runs, self._sent, self._made = plan, store, runs, sent, made
        self._identity = identity_of(store, plan.spec.name)
        self._open: dict[str, _Open] = {}

    def is_open(self, cell: CellPlan) -> bool:
        """Whether the cell's run is open."""
        return cell.cell_id in self._open

    def forget(self, cell: CellPlan | None = None) -> None:
        """Take a cell's run, or every run, as lost: it is opened anew, as W&B has it then."""
        for cell_id in list(self._open) if cell is None else [cell.cell_id]:
            self._open.pop(cell_id, None)

    def close_all(self) -> None:
        """Close what is open: those cells will be gone on with."""
        for cell_id in list(self._open):
            self._open.pop(cell_id).run.close(1, preempted=True)

    def follow(self, cell: CellPlan, status: CellStatus) -> None:
        """Tell what is new of a cell that is under way, where there is room for its run."""
        opened = self._open.get(cell.cell_id)
        if opened is None:
            if not self._make_room():
                return  # told when it has ended
            opened = self._opened(cell, status)
        self._steps(cell, status, opened)

    def end(self, cell: CellPlan, status: CellStatus, version: str) -> bool:
        """Tell all that came of a cell that is at rest, close its run; whether W&B has all of it.

        Raises Refused or Unreachable.
        """
        opened = self._open.get(cell.cell_id) or self._opened(cell, status)
        self._steps(cell, status, opened)
        if opened.run.summary.get("cell/version") != version:
            judgements = self._results(cell, status, opened.run)
            if judgements is not None:
                self._made(judgements)
            self._alert(cell, status, opened.run)
            opened.run.summarise({"cell/version": version})
        del self._open[cell.cell_id]
        opened.run.close(int(status.state != "finished"), preempted=status.state == "missing")
        return not self._runs.online or self._runs.has(opened.run.path, "cell/version", version)

    def _steps(self, cell: CellPlan, status: CellStatus, opened: _Open) -> None:
        for row in tracked_cell.training_rows(cell, self._store, after=opened.step):
            opened.run.log(row)
            opened.step = row["train/step"]
        told = tracked_cell.summary_of(status)
        if told != opened.told:
            opened.run.summarise(told)
            opened.told = told
        if status.attempts != opened.attempts:
            opened.run.tag(tracked_cell.tags_of(cell, status.attempts))
            opened.attempts = status.attempts

    def _opened(self, cell: CellPlan, status: CellStatus) -> _Open:
        about = About(
            id=tracked_cell.run_id(self._identity, cell),
            name=cell.cell_id,
            job_type="cell",
            tags=tuple(tracked_cell.tags_of(cell, status.attempts)),
            config=tracked_cell.config_of(cell, self._plan.spec.name),
        )
        run = self._runs.open(about)
        for group, step in STEPS.items():
            run.define(group, step)
        step = run.summary.get("train/step", 0)
        opened = _Open(run, step, attempts=status.attempts)
        self._open[cell.cell_id] = opened
        return opened

    def _make_room(self) -> bool:
        """Whether one more run may be open; one of a cell between its stages is closed for it."""
        if len(self._open) < MOST_OPEN:
            return True
        waiting = next((cell_id for cell_id, one in self._open.items() if one.waits), None)
        if waiting is None:
            return False
        self._open.pop(waiting).run.close(1, preempted=True)
        return True

    def _results(self, cell: CellPlan, status: CellStatus, run: WandbRun) -> str | None:
        """Send results, answers and artifacts; return the version of the judgements.

        The row of results says which version it is of: where it has arrived it is not sent again.
        """
        found = self._results_of(cell, status)
        if cell.cell.training is not None:
            self._shared(tracked_artifacts.dataset_artifact(cell), run)
        most = self._plan.spec.tracking.adapters_mib
        adapter = tracked_artifacts.adapter_artifact(cell, self._store, most_mib=most)
        if adapter is not None:
            self._shared(adapter, run)
        if not found:
            return None
        version = tracked_cell.results_version(cell, status)
        if run.summary.get("cell/results") != version:
            row = tracked_cell.result_row(cell, [result for result, _ in found])
            answers = {"answers": tracked_cell.answers_table(found)}
            run.log(row | {"cell/results": version}, tables=answers)
        responses = run.upload(tracked_artifacts.responses_artifact(cell, self._store))
        if responses is not None:
            run.use(responses)
        return run.upload(tracked_artifacts.judgements_artifact(cell, found))

    def _results_of(
        self, cell: CellPlan, status: CellStatus
    ) -> list[tuple[CellResult, Sequence[ScoredResponse]]]:
        metrics = metrics_of(cell, None)
        found: list[tuple[CellResult, Sequence[ScoredResponse]]] = []
        for judging in at_the_end(cell).judgings:
            rows = scored_responses(cell, judging, self._store)
            if rows:
                metric = metrics[judging.evaluation]
                result = cell_result(cell, judging, status, rows, metric, self._store)
                found.append((result, rows))
        return found

    def _shared(self, content: Artifact, run: WandbRun) -> None:
        """Send what several cells may have, once; say that the run is made from it."""
        key = content.digest
        version = self._sent.artifacts.get(key) or run.upload(content)
        if version is not None:
            self._sent.artifacts[key] = version
            run.use(version)

    def _alert(self, cell: CellPlan, status: CellStatus, run: WandbRun) -> None:
        wanted = self._plan.spec.tracking.alerts and self._runs.online and status.state == "failed"
        if wanted and run.summary.get("cell/alerted") != status.attempts:
            title = f"{cell.cell_id} failed: {status.kind}"
            run.alert(title, f"In stage {status.stage}. {status.cure or ''}")
            run.summarise({"cell/alerted": status.attempts})
