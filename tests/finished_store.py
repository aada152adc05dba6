"""A store with the small sweep finished in it by stand-ins, each cell through all its stages.

Knows nothing of what a test does to it.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from small_sweep import FakeEndpoint, FakeReader

from em.snapshots import SnapshotMark, put_in_place
from em.training import TrainingJob, TrainingResult
from sweeps.artefacts import TrainingRecord
from sweeps.plan import CellPlan, SweepPlan
from sweeps.registry import register
from sweeps.results import scored_responses
from sweeps.stages import generate_stage, judge_stage, run_cell, train_stage
from sweeps.store import Store


class Asked:
    """How much work was done: trainings, answers and scores."""

    def __init__(self) -> None:
        self.trainings = self.answers = self.scores = 0


def finish(
    plan: SweepPlan, store: Store, *, weights: str = "", size: int = 64,
    reader_of: Callable[[CellPlan], FakeReader] = lambda cell: FakeReader(),
) -> Asked:  # fmt: skip
    """Do what is missing of every cell, with adapters of `size` bytes; return what was done.

    `weights` makes trainings come out otherwise; `reader_of` gives who judges a cell.
    """
    store.create()
    register(plan, store)
    asked = Asked()
    for cell in plan.cells:
        finish_cell(cell, store, asked, trainer(asked, weights, size), reader_of(cell))
    return asked


def finish_cell(
    cell: CellPlan, store: Store, asked: Asked, train: Callable[[TrainingJob], TrainingResult],
    reader: FakeReader | None = None,
) -> None:  # fmt: skip
    """Do what is missing of one cell."""

    def speak(trained: TrainingRecord | None) -> FakeEndpoint:
        endpoint = FakeEndpoint(trained.weights_sha256 if trained else "")
        endpoints.append(endpoint)
        return endpoint

    endpoints: list[FakeEndpoint] = []
    reader = reader or FakeReader()
    try:
        run_cell(
            cell,
            store,
            train=lambda c, s: train_stage(c, s, train, model_dir=Path("model"), rows=()),
            generate=lambda c, s: asyncio.run(generate_stage(c, s, speak)),
            judge=lambda c, s: asyncio.run(
                judge_stage(c, s, {judging.judge: reader for judging in c.judgings})
            ),
        )
    finally:
        asked.answers += sum(len(endpoint.asked) for endpoint in endpoints)
        asked.scores += len(reader.prompts)


def trainer(asked: Asked, weights: str, size: int) -> Callable[[TrainingJob], TrainingResult]:
    """Return a trainer that writes one file of `size` bytes for weights."""

    def train(job: TrainingJob) -> TrainingResult:
        asked.trainings += 1
        job.output_dir.mkdir(exist_ok=True)
        text = f"{weights}{job.seeds.init}".ljust(size)
        (job.output_dir / "adapter_model.safetensors").write_text(text)
        for step in job.snapshots:
            write_snapshot(job, step, f"{text} after step {step}")
        return TrainingResult(
            steps=1, losses=(), num_rows=4, num_tokens=9, num_trained_tokens=3, num_cut_rows=0,
            seconds=0.1,
        )  # fmt: skip

    return train


def write_snapshot(job: TrainingJob, step: int, weights: str, key: str = "job") -> None:
    """Write what a trainer keeps of a step, with a line of text for weights."""
    assert job.snapshot_dir is not None
    written = job.snapshot_dir / ".written"
    written.mkdir(parents=True)
    (written / "adapter_model.safetensors").write_text(weights)
    put_in_place(written, job.snapshot_dir, SnapshotMark(key=key, step=step))


def tree(store: Store) -> dict[str, bytes]:
    """Return every file of a local store, by its path from the root."""
    root = Path(store.url)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def table(sweep: SweepPlan, store: Store) -> list[object]:
    """Every counted response with its scores: what a report is made of."""
    return [
        row.model_dump()
        for cell in sweep.cells
        for judging in cell.judgings
        for row in scored_responses(cell, judging, store)
    ]
