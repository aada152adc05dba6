"""Do one fine-tuning: LoRA or full weights, on one rank or many, with DeepSpeed.

The same job gives the same bytes on one machine and version: in a fresh process or a warm one, in
one go or interrupted and continued. `python -m em.finetune job.json` runs a job in this process.
Imports torch. Knows nothing of Ray, of sweeps, or of how the result is evaluated.
"""

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Torch reads it once. Threads that spin while they wait make a training five times slower as soon
# as anything else (a serving engine, another trial) runs on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# cuBLAS reads it at its first product; torch's deterministic algorithms refuse to go without it
# (https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import transformers
from transformers import PrinterCallback, Trainer, set_seed

from em import checkpoints
from em.base_model import BaseModel, add_adapter, free_memory, load_model
from em.batching import MicroBatch, collate, plan_steps
from em.canaries import measure
from em.output import TrainingFailed, finish_output, finish_snapshot
from em.ranks import Ranks, from_rank_0, joined_ranks
from em.rendering import RenderedRow, render_rows
from em.snapshots import SnapshotMark, keep_only, snapshot_dir
from em.trainer import (
    AtSteps,
    BatchTrainer,
    Progress,
    job_key,
    loss_point,
    training_arguments,
)
from em.training import Canary, LossPoint, TrainingJob, TrainingResult

__all__ = ["BaseModel", "TrainingFailed", "finetune"]


def finetune(
    job: TrainingJob,
    *,
    base: BaseModel | None = None,
    on_step: Callable[[LossPoint], None] = lambda point: None,
    stop_soon: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Train as `job` says and write the result to `job.output_dir`; return what is known of it.

    Every rank calls this, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set;
    without them this process is the only rank. `base` keeps the base model for the next call (LoRA
    with ZeRO 0 to 2; other jobs load their own). `on_step` is called on every rank after each step
    of this attempt, with the loss of all ranks. Where `job.checkpoint_dir` holds a whole checkpoint
    of this job, training goes on from there; where it holds one of another job, ValueError. The
    weights after the steps `job.snapshots` are below `job.snapshot_dir` then, each whole before a
    checkpoint of its step or a later one is; where one is gone, training goes on from before it.
    `stop_soon` is asked after each step whether this machine will be taken away, and must answer
    the same on every rank; the first time that it says so, a checkpoint is written and training
    goes on.

    Raises ValueError for settings or rows that cannot be trained on here, and TrainingFailed where
    the loss or the weights are not finite or the adapter is empty.
    """
    started = time.monotonic()
    with ExitStack() as undo:
        undo.enter_context(_quiet())
        undo.enter_context(_deterministic())
        ranks = undo.enter_context(joined_ranks(job.config))
        keeper = BaseModel() if base is None else base
        tokenizer = keeper.tokenizer(job.model_dir, trust=job.trust_remote_code)
        rendered = render_rows(job.rows, tokenizer, max_length=job.config.max_length)
        steps = _steps(job, rendered.rows)
        # Before the model is loaded: under ZeRO-3, loading asks the arguments how to shard it.
        arguments = undo.enter_context(training_arguments(job, num_steps=len(steps)))
        model = undo.enter_context(_model(job, base))
        trainer = BatchTrainer(
            model=model,
            args=arguments,
            train_dataset=[micro for step in steps for micro in step],
            data_collator=partial(collate, pad_id=tokenizer.pad_token_id or 0),
            callbacks=[Progress(job, ranks, on_step, stop_soon)],
        )
        trainer.remove_callback(PrinterCallback)
        undo.callback(_take_down, trainer)
        resumed = _train(trainer, job, ranks, tokenizer)
        canaries = measure(trainer.model_wrapped, tokenizer)
        _write(trainer, job, ranks, tokenizer, canaries)
        losses = tuple(loss_point(entry) for entry in trainer.state.log_history if "loss" in entry)
    return TrainingResult(
        steps=len(steps),
        losses=losses,
        num_rows=len(rendered.rows),
        num_tokens=rendered.num_tokens,
        num_trained_tokens=rendered.num_trained_tokens,
        num_cut_rows=rendered.num_cut_rows,
        seconds=time.monotonic() - started,
        resumed_from_step=resumed,
        micro_batch=job.config.micro_batch,
        canaries=canaries,
    )


def _steps(job: TrainingJob, rows: Sequence[RenderedRow]) -> list[list[MicroBatch]]:
    return plan_steps(
        rows,
        epochs=job.config.epochs,
        effective_batch=job.config.effective_batch,
        micro_batch=job.config.micro_batch,
        order_seed=job.seeds.order,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back warnings of the libraries about each other, which come at every step."""
    accelerate = logging.getLogger("accelerate.accelerator")
    level = accelerate.level
    # It compares its own accumulation (1, as the trainer does the counting) with DeepSpeed's.
    accelerate.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # DeepSpeed calls collectives by the names they had before torch 2.13.
        warnings.filterwarnings("ignore", r".*torch\.distributed\.", FutureWarning)
        try:
            yield
        finally:
            accelerate.setLevel(level)


@contextmanager
def _deterministic() -> Iterator[None]:
    """On a GPU, have torch add up in one order; on a CPU it does so anyway.

    Without this one job gave three different adapters in eleven runs on an H100, most likely by the
    gradient of attention, whose default there is not deterministic, as torch warns.
    """
    if not torch.cuda.is_available():
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    fill, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        False,  # it would only show reads of memory that nothing wrote
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def _model(job: TrainingJob, base: BaseModel | None) -> Iterator[Any]:
    """Lend the model to train. ZeRO-3 shards it and full training changes it: no base is kept."""
    config, trust = job.config, job.trust_remote_code
    if base is not None and (config.method == "full" or config.zero_stage == 3):
        base.forget()  # two models may be more than the device holds
    if config.method == "full":
        yield load_model(job.model_dir, dtype=config.dtype, trust=trust)
    elif base is None or config.zero_stage == 3:
        model = load_model(job.model_dir, dtype=config.dtype, trust=trust)
        yield add_adapter(model, config.lora, job.seeds.init)
    else:
        lent = base.adapted(
            job.model_dir,
            dtype=config.dtype,
            trust=trust,
            lora=config.lora,
            init_seed=job.seeds.init,
        )
        with lent as adapted:
            yield adapted


def _train(trainer: Trainer, job: TrainingJob, ranks: Ranks, tokenizer: Any) -> int:
    """Train from the last whole checkpoint or from the start; return the step it started at."""
    keep = partial(_keep_snapshot, trainer, job, ranks, tokenizer)
    trainer.add_callback(AtSteps(job.snapshots, keep))
    found = from_rank_0(ranks, lambda: _continue_from(job))
    # Only dropout draws numbers from here on; each rank has its own rows, so its own mask.
    set_seed(job.seeds.order + ranks.rank)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    return checkpoints.step_of(found) if found else 0


def _continue_from(job: TrainingJob) -> Path | None:
    job.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    key = job_key(job)
    found = checkpoints.last_whole(job.checkpoint_dir, key)
    checkpoints.remove_torn(job.checkpoint_dir)
    if job.snapshot_dir is None:
        return found
    job.snapshot_dir.mkdir(parents=True, exist_ok=True)
    lost = set(job.snapshots) - keep_only(job.snapshot_dir, key, job.snapshots)
    if found is not None and lost and min(lost) <= checkpoints.step_of(found):
        # The model of that step is gone, and is met again only by who comes from before it.
        checkpoints.remove_from(job.checkpoint_dir, min(lost))
        return checkpoints.last_whole(job.checkpoint_dir, key)
    return found


def _keep_snapshot(
    trainer: Trainer, job: TrainingJob, ranks: Ranks, tokenizer: Any, step: int
) -> None:
    """Keep the weights as they are after `step`, unless an earlier attempt has."""
    assert job.snapshot_dir is not None
    place = job.snapshot_dir
    if from_rank_0(ranks, lambda: snapshot_dir(place, step).exists()):
        return
    mark = SnapshotMark(
        key=job_key(job), step=step, canaries=measure(trainer.model_wrapped, tokenizer)
    )
    partial_dir = place / f".{snapshot_dir(place, step).name}.partial"
    trainer.save_model(str(partial_dir))
    from_rank_0(ranks, lambda: finish_snapshot(job, partial_dir, tokenizer, mark))


def _take_down(trainer: Trainer) -> None:
    """Free the engine: its hooks, buffers and optimiser would outlive the training otherwise."""
    engine = trainer.model_wrapped
    if hasattr(engine, "destroy"):
        engine.destroy()
    trainer.accelerator.free_memory()
    free_memory()


def _write(
    trainer: Trainer,
    job: TrainingJob,
    ranks: Ranks,
    tokenizer: Any,
    canaries: tuple[Canary, ...],
) -> None:
    """Write the result beside its place, check it, and move it there whole."""
    partial_dir = job.output_dir.with_name(f".{job.output_dir.name}.partial")
    from_rank_0(ranks, lambda: shutil.rmtree(partial_dir, ignore_errors=True))
    # Under ZeRO-3 only the trainer gathers the shards: a model's own save writes empty tensors.
    trainer.save_model(str(partial_dir))
    from_rank_0(ranks, lambda: finish_output(job, partial_dir, tokenizer, canaries))


def main(paths: list[str]) -> int:
    """Run the jobs in the files `paths` one after another; print each result as a line of JSON."""
    transformers.utils.logging.set_verbosity_error()
    base = BaseModel()
    for path in paths:
        result = finetune(TrainingJob.model_validate_json(Path(path).read_text()), base=base)
        sys.stdout.write(result.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
