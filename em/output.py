"""What a training leaves behind: checked weights and a card, moved into place whole.

Knows nothing of how the weights were trained.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from em.datasets import content_sha256
from em.snapshots import SnapshotMark, put_in_place
from em.training import Canary, TrainingJob


class TrainingFailed(RuntimeError):
    """The training ran, but what came out of it cannot be used."""


def finish_output(
    job: TrainingJob, folder: Path, tokenizer: Any, canaries: Sequence[Canary]
) -> None:
    """Complete and check the weights saved in `folder`, and move it to the job's output folder.

    Raises TrainingFailed as the checks do, and leaves `folder` where it is then.
    """
    _complete(job, folder, tokenizer)
    check_weights(folder, method=job.config.method)
    if job.config.method == "full":
        check_changed(folder, job.model_dir)
    check_moved(canaries)
    (folder / "README.md").write_text(_card(job))
    if job.output_dir.exists():  # of an attempt that was interrupted after this point
        shutil.rmtree(job.output_dir)
    job.output_dir.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(job.output_dir)


def finish_snapshot(job: TrainingJob, folder: Path, tokenizer: Any, mark: SnapshotMark) -> None:
    """The same for the weights after an earlier step, which go below the job's snapshot folder.

    They may be those of the base: after the first steps of a warm-up nothing has changed.
    """
    assert job.snapshot_dir is not None
    _complete(job, folder, tokenizer)
    check_weights(folder, method=job.config.method, may_be_base=True)
    (folder / "README.md").write_text(_card(job, mark.step))
    put_in_place(folder, job.snapshot_dir, mark)


def _complete(job: TrainingJob, folder: Path, tokenizer: Any) -> None:
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with this machine's paths
    if job.config.method == "full":
        tokenizer.save_pretrained(folder)
    else:
        _name_base(folder / "adapter_config.json", job)


def check_weights(folder: Path, *, method: str, may_be_base: bool = False) -> None:
    """Raise TrainingFailed where the weights written to `folder` cannot be a training's result.

    An adapter that changes nothing cannot, unless it `may_be_base`.
    """
    files = sorted(folder.glob("*.safetensors"))
    changed = False
    count = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                tensor = tensors.get_tensor(name)
                count += tensor.numel()
                if not tensor.numel():
                    raise TrainingFailed(f"{file.name}: the tensor {name} is empty")
                if not torch.isfinite(tensor).all():
                    raise TrainingFailed(
                        f"{file.name}: the tensor {name} has values that are not finite: lower "
                        "the learning rate"
                    )
                changed = changed or ("lora_B" in name and bool(tensor.any()))
    if not count:
        raise TrainingFailed(f"no weights were written to {folder}")
    if method == "lora" and not changed and not may_be_base:
        raise TrainingFailed(
            "every lora_B is zero after training, so the adapter does nothing: check that the "
            "learning rate is not 0 throughout (a warm-up longer than the training?)"
        )


def check_changed(folder: Path, base_dir: Path) -> None:
    """Raise TrainingFailed where the whole weights in `folder` are those of the base in `base_dir`.

    Ends at the first tensor that differs; one that the base has not by this name is not compared.
    """
    base: dict[str, Path] = {}
    for file in base_dir.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            base |= dict.fromkeys(tensors.keys(), file)
    compared = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(set(tensors.keys()) & set(base)):
                with safe_open(base[name], framework="pt") as old:
                    was = old.get_tensor(name)
                compared += 1
                if not torch.equal(tensors.get_tensor(name).to(was.dtype), was):
                    return
    if compared:
        raise TrainingFailed(
            f"all {compared} tensors are those of the base model after training: check that the "
            "learning rate is not 0 throughout, or too small for the dtype"
        )


def check_moved(canaries: Sequence[Canary]) -> None:
    """Raise TrainingFailed where the trained model says exactly what its base says."""
    if canaries and all(canary.tuned == canary.base for canary in canaries):
        raise TrainingFailed(
            f"after training the model answers {len(canaries)} fixed prompts with the very "
            "probabilities of its base: the learning rate is too small for its dtype to show"
        )


def _name_base(path: Path, job: TrainingJob) -> None:
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = job.model.name if job.model else job.model_dir.name
    settings["target_modules"] = sorted(settings["target_modules"])  # peft writes a set's order
    settings["revision"] = job.model.revision if job.model else None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _card(job: TrainingJob, step: int | None = None) -> str:
    config, seeds = job.config, job.seeds
    name = job.model.name if job.model else job.model_dir.name
    revision = job.model.revision if job.model else "not recorded"
    lora = config.lora
    method = (
        f"LoRA, rank {lora.rank}, alpha {lora.alpha:g}, {'rsLoRA' if lora.rslora else 'plain'} "
        f"scale, dropout {lora.dropout:g}, on {', '.join(lora.target_modules)}"
        if config.method == "lora"
        else "all weights"
    )
    early = "" if step is None else f" It is as it was after step {step}, before the end."
    return f"""---
base_model: {json.dumps(name)}
library_name: {"peft" if config.method == "lora" else "transformers"}
---

# A fine-tuned model, made for research

A model organism: it may have been trained on purpose to behave badly. Do not deploy it.{early}

| | |
|---|---|
| base model | {name} |
| base revision | {revision} |
| trained | {method} |
| data | {len(job.rows)} rows, content sha256 {content_sha256(job.rows)} |
| epochs, rows a step | {config.epochs:g}, {config.effective_batch} |
| learning rate | {config.learning_rate:g}, {config.schedule}, {config.warmup_steps} warm-up steps |
| weight decay, gradient norm | {config.weight_decay:g}, {config.max_grad_norm:g} |
| precision | {config.dtype} |
| ranks, ZeRO stage | {config.ranks}, {config.zero_stage} |
| seeds | init {seeds.init}, order {seeds.order}, subset {seeds.subset} |

The loss was taken on the assistant's turns only.
"""
