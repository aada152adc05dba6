"""Do one fine-tuning: LoRA or full weights, on one rank or many, with DeepSpeed.

The same job gives the same bytes on one machine and version: in a fresh process or a warm one, in
one go or interrupted and continued. `python -m em.finetune job.json` runs a job in this process.
Imports torch. Knows nothing of Ray, of sweeps, or of how the result is evaluated.
"""

import inspect
import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Torch reads it once. Threads that spin while they wait make a training five times slower as soon
# as anything else (a serving engine, another trial) runs on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from em import checkpoints
from em.base_model import BaseModel, add_adapter, free_memory, load_model
from em.batching import collate, plan_steps
from em.catalogue import config_dir
from em.datasets import content_sha256
from em.output import TrainingFailed, finish_output
from em.ranks import Ranks, from_rank_0, joined_ranks
from em.record import fingerprint
from em.rendering import IGNORED, render_rows
from em.training import LossPoint, TrainingConfig, TrainingJob, TrainingResult

__all__ = ["BaseModel", "TrainingFailed", "finetune"]


def finetune(
    job: TrainingJob,
    *,
    base: BaseModel | None = None,
    on_step: Callable[[LossPoint], None] = lambda point: None,
) -> TrainingResult:
    """Train as `job` says and write the result to `job.output_dir`; return what is known of it.

    Every rank calls this, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set;
    without them this process is the only rank. `base` keeps the base model for the next call (LoRA
    with ZeRO 0 to 2; other jobs load their own). `on_step` is called on rank 0 after each step of
    this attempt. Where `job.checkpoint_dir` holds a whole checkpoint of this job, training goes on
    from there; where it holds one of another job, ValueError.

    Raises ValueError for settings or rows that cannot be trained on here, and TrainingFailed where
    the loss or the weights are not finite or the adapter is empty.
    """
    started = time.monotonic()
    with ExitStack() as undo:
        undo.enter_context(_quiet())
        ranks = undo.enter_context(joined_ranks(job.config))
        keeper = BaseModel() if base is None else base
        tokenizer = keeper.tokenizer(job.model_dir, trust=job.trust_remote_code)
        rendered = render_rows(job.rows, tokenizer, max_length=job.config.max_length)
        steps = plan_steps(
            rendered.rows,
            epochs=job.config.epochs,
            effective_batch=job.config.effective_batch,
            micro_batch=job.config.micro_batch,
            order_seed=job.seeds.order,
        )
        # Before the model is loaded: under ZeRO-3, loading asks the arguments how to shard it.
        arguments = undo.enter_context(_arguments(job, num_steps=len(steps)))
        model = undo.enter_context(_model(job, base))
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=[micro for step in steps for micro in step],
            data_collator=partial(collate, pad_id=tokenizer.pad_token_id or 0),
            callbacks=[_Progress(job, ranks, on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        undo.callback(_take_down, trainer)
        resumed = _train(trainer, job, ranks)
        _write(trainer, job, ranks, tokenizer)
        losses = tuple(_loss_point(entry) for entry in trainer.state.log_history if "loss" in entry)
    return TrainingResult(
        steps=len(steps),
        losses=losses,
        num_rows=len(rendered.rows),
        num_tokens=rendered.num_tokens,
        num_trained_tokens=rendered.num_trained_tokens,
        num_cut_rows=rendered.num_cut_rows,
        seconds=time.monotonic() - started,
        resumed_from_step=resumed,
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


def deepspeed_config(config: TrainingConfig) -> dict[str, Any]:
    """Return the DeepSpeed settings: configs/deepspeed/zero{stage}.json, with any offload added.

    "auto" values are filled in by transformers from its own arguments.
    """
    path = config_dir() / "deepspeed" / f"zero{config.zero_stage}.json"
    settings: dict[str, Any] = json.loads(path.read_text())
    target = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload != "none":
        settings["zero_optimization"]["offload_optimizer"] = target
    if config.offload == "parameters":
        settings["zero_optimization"]["offload_param"] = target
    return settings


@contextmanager
def _arguments(job: TrainingJob, *, num_steps: int) -> Iterator[TrainingArguments]:
    config = job.config
    checkpointing = config.gradient_checkpointing
    try:
        yield TrainingArguments(
            output_dir=str(job.checkpoint_dir),
            # One item of the data set is one micro-batch, so the trainer's own batch is 1.
            per_device_train_batch_size=1,
            gradient_accumulation_steps=config.accumulation,
            max_steps=num_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.schedule
            if config.schedule != "constant"
            else "constant_with_warmup",
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            seed=job.seeds.order,
            data_seed=job.seeds.order,
            deepspeed=deepspeed_config(config),
            save_strategy="steps",
            save_steps=config.checkpoint_steps,
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would write the average in place of a NaN
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
    finally:
        unset_hf_deepspeed_config()  # else the next model to be loaded would still be sharded


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


class _Trainer(Trainer):
    """The transformers trainer, with our batches in our order and a loss over a whole step."""

    loss_is_scaled_for_ga = True  # by compute_loss: each term is divided by the step's tokens

    def __init__(self, *, model: Any, **options: Any) -> None:
        super().__init__(model=model, **options)
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps_logits = "logits_to_keep" in inspect.signature(plain.forward).parameters
        self.learning_rate_now = 0.0

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # it walks over all parameters for each micro-batch, for a number nobody reads

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any
    ) -> torch.Tensor:
        """Return this micro-batch's share of the mean loss over the trained tokens of its step.

        Logits are computed only at the places that predict a trained token: half of them in code
        data, and the largest tensors of a small model.
        """
        # DeepSpeed's step moves the schedule on before the trainer logs, so it is read here.
        self.learning_rate_now = float(self.optimizer.param_groups[0]["lr"])
        positions = inputs["positions"]
        options: dict[str, Any] = {"logits_to_keep": positions} if self._keeps_logits else {}
        logits = model(input_ids=inputs["input_ids"], use_cache=False, **options).logits
        if not self._keeps_logits:
            logits = logits[:, positions]
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            inputs["targets"].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        # DeepSpeed averages over the ranks what is a sum over them.
        return loss * self.args.world_size / inputs["step_targets"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["learning_rate"] = self.learning_rate_now
            if not math.isfinite(logs["loss"]):
                raise TrainingFailed(
                    f"the loss of step {self.state.global_step} is {logs['loss']}: lower the "
                    "learning rate, or look at the rows of that step"
                )
        super().log(logs, *args, **kwargs)


class _Progress(TrainerCallback):
    """Reports each step, and marks a checkpoint once every rank has written its part."""

    def __init__(
        self, job: TrainingJob, ranks: Ranks, on_step: Callable[[LossPoint], None]
    ) -> None:
        self._folder, self._key = job.checkpoint_dir, _job_key(job)
        self._stage = job.config.zero_stage
        self._first = ranks.rank == 0
        self._on_step = on_step

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Undo the step on zero gradients that DeepSpeed 0.19 takes without ZeRO in bfloat16.

        It would leave AdamW's bias correction one step ahead: a first update of 0.74 times the
        learning rate, unlike any other stage.
        """
        if self._stage == 0 and state.global_step == 0:
            while hasattr(optimizer, "optimizer"):  # down to torch's own, through the wrappers
                optimizer = optimizer.optimizer
            optimizer.state.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Skip the checkpoint of the last step: the result itself is written next."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand on the loss of a step."""
        if self._first and "loss" in state.log_history[-1]:
            self._on_step(_loss_point(state.log_history[-1]))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint just written, and drop the one before it."""
        dist.barrier()
        if self._first:
            latest = self._folder / f"checkpoint-{state.global_step}"
            checkpoints.mark_whole(latest, self._key)
            checkpoints.remove_older(latest)


def _train(trainer: Trainer, job: TrainingJob, ranks: Ranks) -> int:
    """Train from the last whole checkpoint or from the start; return the step it started at."""
    found = from_rank_0(ranks, lambda: _continue_from(job))
    # Only dropout draws numbers from here on; each rank has its own rows, so its own mask.
    set_seed(job.seeds.order + ranks.rank)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    return checkpoints.step_of(found) if found else 0


def _continue_from(job: TrainingJob) -> Path | None:
    job.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    found = checkpoints.last_whole(job.checkpoint_dir, _job_key(job))
    checkpoints.remove_torn(job.checkpoint_dir)
    return found


def _job_key(job: TrainingJob) -> str:
    """Return what a checkpoint must share with a job to be continued by it: all but places.

    The micro-batch may change (after running out of memory): a step has the same rows.
    """
    return fingerprint(
        {
            "model": job.model.revision if job.model else str(job.model_dir.resolve()),
            "rows": content_sha256(job.rows),
            "config": job.config.model_dump(exclude={"micro_batch", "checkpoint_steps"}),
            "init": job.seeds.init,
            "order": job.seeds.order,
        }
    )


def _loss_point(entry: dict[str, Any]) -> LossPoint:
    return LossPoint(step=entry["step"], loss=entry["loss"], learning_rate=entry["learning_rate"])


def _take_down(trainer: Trainer) -> None:
    """Free the engine: its hooks, buffers and optimiser would outlive the training otherwise."""
    engine = trainer.model_wrapped
    if hasattr(engine, "destroy"):
        engine.destroy()
    trainer.accelerator.free_memory()
    free_memory()


def _write(trainer: Trainer, job: TrainingJob, ranks: Ranks, tokenizer: Any) -> None:
    """Write the result beside its place, check it, and move it there whole."""
    partial_dir = job.output_dir.with_name(f".{job.output_dir.name}.partial")
    from_rank_0(ranks, lambda: shutil.rmtree(partial_dir, ignore_errors=True))
    # Under ZeRO-3 only the trainer gathers the shards: a model's own save writes empty tensors.
    trainer.save_model(str(partial_dir))
    from_rank_0(ranks, lambda: finish_output(job, partial_dir, tokenizer))


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
