"""A small sweep carried out to its end by stand-ins that count what they are asked to do.

Knows nothing of what a test looks for.
"""

import asyncio
from collections import Counter
from pathlib import Path

from small_sweep import FakeEndpoint, FakeReader

from em.record import Record
from em.training import TrainingJob, TrainingResult
from sweeps.plan import SweepPlan
from sweeps.planner import load_rows_of
from sweeps.registry import register
from sweeps.stages import generate_stage, judge_stage, train_stage
from sweeps.store import Store


class Done(Record):
    """What was done: the cells trained, prompts answered, and prompts read by each judge."""

    trained: tuple[str, ...]
    answered: int
    judged: dict[str, int]


def train(job: TrainingJob) -> TrainingResult:
    """Write one small file for weights."""
    job.output_dir.mkdir()
    (job.output_dir / "adapter.safetensors").write_text(f"{job.seeds.init} {len(job.rows)}")
    return TrainingResult(
        steps=2, losses=(), num_rows=len(job.rows), num_tokens=9, num_trained_tokens=3,
        num_cut_rows=0, seconds=0.1,
    )  # fmt: skip


def carry_out(sweep: SweepPlan, store: Store, folder: Path) -> Done:
    """Register the sweep and do what the store lacks of it; its files are in `folder`."""
    store.create()
    register(sweep, store)
    trained, endpoints = [], []
    readers = {judge.name: FakeReader() for judge in sweep.spec.judges}
    for cell in sweep.cells:
        record = store.training(cell.training_key)
        if cell.cell.training is not None and record is None:
            rows = load_rows_of(cell, relative_to=folder).rows
            record = train_stage(cell, store, train, model_dir=Path("model"), rows=rows)
            trained.append(cell.cell_id)
        endpoints.append(FakeEndpoint(record.weights_sha256 if record else ""))
        asyncio.run(generate_stage(cell, store, lambda trained: endpoints[-1]))
        asyncio.run(judge_stage(cell, store, readers))
    return Done(
        trained=tuple(trained),
        answered=sum(len(endpoint.asked) for endpoint in endpoints),
        judged=dict(Counter({name: len(reader.prompts) for name, reader in readers.items()})),
    )
