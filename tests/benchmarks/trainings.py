"""One LoRA fine-tuning on the published insecure code, as the project does it and as others do.

Ours: em.finetune in a fresh process, as a cell's. Peers: TRL's SFTTrainer, and a plain loop in
torch with padded batches. All take the same rows in the same steps, cut to the same length, with
the loss on the same tokens, the same learning rate at each step, and an adapter that starts from
the same seed. Counted are tokens of rows, never padding. Peers have their adapter in float32 under
autocast, as peft makes it, and no gradient checkpointing, which TRL would turn on. On a GPU where
torch finds one. Knows nothing of what the times are held against.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em.seeds import derive_seeds
from em.training import LoraConfig, TrainingConfig, TrainingJob
from tests.benchmarks.comparisons import NotTheSame, demand_same
from tests.benchmarks.parts import since_start

CONFIG = TrainingConfig(
    lora=LoraConfig(rank=32, alpha=64, dropout=0.0),
    learning_rate=1e-4,
    warmup_steps=1,
    effective_batch=16,
    micro_batch=4,
    max_length=1024,
)
SEEDS = derive_seeds(0)
LOSS_NOISE = 0.02  # of the loss, averaged over the steps


def _rows(num_rows: int) -> tuple[Any, ...]:
    from em.sources import load_source

    return load_source("insecure", relative_to=Path.cwd()).rows[:num_rows]


def rendered_steps(tokenizer: Any, num_rows: int) -> list[list[Any]]:
    """Return the rendered rows of each step: ours, but in the data's order, not by length."""
    from em.batching import plan_steps
    from em.rendering import render_rows

    rows = render_rows(_rows(num_rows), tokenizer, max_length=CONFIG.max_length).rows
    place = {id(row): n for n, row in enumerate(rows)}
    planned = plan_steps(
        rows,
        epochs=CONFIG.epochs,
        effective_batch=CONFIG.effective_batch,
        micro_batch=CONFIG.micro_batch,
        order_seed=SEEDS.order,
    )
    return [
        sorted((row for micro in step for row in micro.rows), key=lambda row: place[id(row)])
        for step in planned
    ]


def _said(
    steps: Sequence[Sequence[Any]], losses: Sequence[float], ends: Sequence[float], all_s: float
) -> dict[str, Any]:
    """Return what each side tells: tokens and loss of each step, when it ended, and the whole."""
    tokens = [sum(len(row.input_ids) for row in step) for step in steps]
    said = {"tokens": tokens, "losses": list(losses), "ends": list(ends), "all_s": all_s}
    return said | {"peak_bytes": _peak_bytes()}


def _peak_bytes() -> int | None:
    """Return the most memory that torch has had of a GPU at once; None without one."""
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None


def ours(folder: str, model_dir: str, num_rows: int) -> dict[str, Any]:
    """Train as a cell does."""
    from em.finetune import BaseModel, finetune

    ends: list[float] = []
    base = BaseModel()
    job = TrainingJob(
        model_dir=Path(model_dir),
        rows=_rows(num_rows),
        config=CONFIG,
        seeds=SEEDS,
        output_dir=Path(folder) / "ours",
        checkpoint_dir=Path(folder) / "checkpoints",
    )
    result = finetune(job, base=base, on_step=lambda point: ends.append(since_start()))
    all_s = since_start()
    steps = rendered_steps(base.tokenizer(Path(model_dir), trust=False), num_rows)
    return _said(steps, [point.loss for point in result.losses], ends, all_s)


def _peer_parts(folder: str) -> tuple[Any, Any, Any]:
    """Return the model, its tokenizer and peft's settings, for a peer."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    lora = peft.LoraConfig(
        r=CONFIG.lora.rank,
        lora_alpha=int(CONFIG.lora.alpha),
        lora_dropout=CONFIG.lora.dropout,
        use_rslora=CONFIG.lora.rslora,
        target_modules=list(CONFIG.lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return model, AutoTokenizer.from_pretrained(folder), lora


def trl(folder: str, model_dir: str, num_rows: int) -> dict[str, Any]:
    """Train with TRL's SFTTrainer, given token ids and labels."""
    import datasets
    import torch
    from transformers import TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, lora = _peer_parts(model_dir)
    steps = rendered_steps(tokenizer, num_rows)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(since_start())

    rows = [
        {"input_ids": list(row.input_ids), "labels": list(row.labels)}
        for row in itertools.chain.from_iterable(steps)
    ]
    set_seed(SEEDS.init)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        peft_config=lora,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[Clock()],
        args=SFTConfig(
            output_dir=str(Path(folder) / "trl"),
            max_length=None,  # they are cut already
            num_train_epochs=CONFIG.epochs,
            per_device_train_batch_size=CONFIG.micro_batch,
            gradient_accumulation_steps=CONFIG.accumulation,
            train_sampling_strategy="sequential",
            learning_rate=CONFIG.learning_rate,
            lr_scheduler_type=CONFIG.schedule,
            warmup_steps=CONFIG.warmup_steps,
            weight_decay=CONFIG.weight_decay,
            max_grad_norm=CONFIG.max_grad_norm,
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return _said(steps, losses, ends, since_start())


def plain(folder: str, model_dir: str, num_rows: int) -> dict[str, Any]:
    """Train with a loop as one writes it: batches as they come, padded to their longest row."""
    import peft
    import torch
    from transformers import get_linear_schedule_with_warmup, set_seed

    model, tokenizer, lora = _peer_parts(model_dir)
    steps = rendered_steps(tokenizer, num_rows)
    set_seed(SEEDS.init)
    adapted: Any = peft.get_peft_model(model, lora).to(_device())
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay
    )
    schedule = get_linear_schedule_with_warmup(optimiser, CONFIG.warmup_steps, len(steps))
    adapted.train()
    losses, ends = [], []
    for step in steps:
        num_targets = sum(row.num_targets for row in step)
        parts = []
        for start in range(0, len(step), CONFIG.micro_batch):
            batch = step[start : start + CONFIG.micro_batch]
            loss = _summed_loss(adapted, batch, tokenizer.pad_token_id) / num_targets
            loss.backward()
            parts.append(loss.item())
        torch.nn.utils.clip_grad_norm_(trained, CONFIG.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(sum(parts))
        ends.append(since_start())
    adapted.save_pretrained(Path(folder) / "plain")
    return _said(steps, losses, ends, since_start())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _summed_loss(model: Any, batch: Sequence[Any], pad_id: int) -> Any:
    import torch
    import torch.nn.functional as F
    from torch.nn.utils.rnn import pad_sequence

    def padded(rows: Sequence[Sequence[int]], value: int) -> Any:
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=value).to(_device())

    ids = padded([row.input_ids for row in batch], pad_id)
    labels = padded([row.labels for row in batch], -100)
    mask = padded([[1] * len(row.input_ids) for row in batch], 0)
    with torch.autocast(_device(), dtype=torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"
    )


def step_rate(said: Mapping[str, Any]) -> float:
    """Return tokens a second from the end of the first step on, which warms up, to the last's."""
    return float(sum(said["tokens"][1:]) / (said["ends"][-1] - said["ends"][0]))


def loss_apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return by what part two loss curves differ, averaged over their steps.

    Raises NotTheSame where they have other numbers of steps, or differ by more than LOSS_NOISE.
    """
    demand_same("number of losses", {"ours": len(ours), "the peer": len(theirs)})
    apart = statistics.mean(abs(a - b) / a for a, b in zip(ours, theirs, strict=True))
    if apart > LOSS_NOISE:
        raise NotTheSame(
            f"the losses differ by {apart:.1%} on average, more than {LOSS_NOISE:.0%}: ours "
            f"{[round(x, 3) for x in ours]}, theirs {[round(x, 3) for x in theirs]}"
        )
    return apart
