"""The transformers trainer with DeepSpeed, set up for one job: its arguments, loss and callbacks.

Imports torch. Knows nothing of rows or tokens (it is given batches), or of where a job's result
goes.
"""

import inspect
import json
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from em import checkpoints
from em.catalogue import config_dir
from em.datasets import content_sha256
from em.output import TrainingFailed
from em.ranks import Ranks
from em.record import fingerprint
from em.rendering import IGNORED
from em.training import LossPoint, TrainingConfig, TrainingJob


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
def training_arguments(job: TrainingJob, *, num_steps: int) -> Iterator[TrainingArguments]:
    """Lend the trainer's arguments; while they live, models are loaded as ZeRO-3 wants them."""
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


class BatchTrainer(Trainer):
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
        """Return 0: counting walks over all parameters each micro-batch, and nobody reads it."""
        return 0

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

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with checkpoints.disk_asked(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a step as the trainer does. Raises TrainingFailed for a loss that is not finite."""
        if "loss" in logs:
            logs["learning_rate"] = self.learning_rate_now
            if not math.isfinite(logs["loss"]):
                raise TrainingFailed(
                    f"the loss of step {self.state.global_step} is {logs['loss']}: lower the "
                    "learning rate, or look at the rows of that step"
                )
        super().log(logs, *args, **kwargs)


class Progress(TrainerCallback):
    """Reports each step, and marks a checkpoint once every rank has written its part."""

    def __init__(
        self,
        job: TrainingJob,
        ranks: Ranks,
        on_step: Callable[[LossPoint], None],
        stop_soon: Callable[[], bool],
    ) -> None:
        self._folder, self._key = job.checkpoint_dir, job_key(job)
        self._stage = job.config.zero_stage
        self._first = ranks.rank == 0
        self._on_step = on_step
        self._stop_soon, self._stopping = stop_soon, False

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
        """Write a checkpoint once the machine is about to go.

        Skip that of the last step: the result itself is written next.
        """
        if not self._stopping and self._stop_soon():
            self._stopping = control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand on the loss of a step."""
        if "loss" in state.log_history[-1]:
            self._on_step(loss_point(state.log_history[-1]))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint just written, and drop the one before it."""
        dist.barrier()
        if self._first:
            latest = self._folder / f"checkpoint-{state.global_step}"
            checkpoints.mark_whole(latest, self._key)
            checkpoints.remove_older(latest)


class AtSteps(TrainerCallback):
    """Calls `do` with each of some steps once it is done, before a checkpoint of it is written."""

    def __init__(self, steps: Collection[int], do: Callable[[int], None]) -> None:
        self._steps, self._do = frozenset(steps), do

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do it: on every rank."""
        if state.global_step in self._steps:
            self._do(state.global_step)


def job_key(job: TrainingJob) -> str:
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


def loss_point(entry: dict[str, Any]) -> LossPoint:
    """Return one entry of the trainer's log as ours."""
    return LossPoint(step=entry["step"], loss=entry["loss"], learning_rate=entry["learning_rate"])
