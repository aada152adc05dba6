"""Write a LoRA adapter into the weights of its base model, as a folder that any engine can load.

Imports torch. Knows nothing of how an adapter is trained, or of what serves the result.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."  # what peft puts before the base's own tensor names
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
# Settings under which W + scale * B @ A is not what peft computes.
PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "alpha_pattern": {},
    "modules_to_save": None,
}


@dataclass
class _Pair:
    a: torch.Tensor | None = None  # (rank, inputs)
    b: torch.Tensor | None = None  # (outputs, rank)


def merge_adapter(base_dir: Path, adapter_dir: Path, out_dir: Path) -> None:
    """Write to `out_dir` the base model with W + scale * B @ A in place of each adapted W.

    `scale` is alpha / rank, or alpha / sqrt(rank) for rsLoRA; the arithmetic is float32, the result
    has the base's dtype and tensor names. Files that do not change are linked or copied. Raises
    ValueError for an adapter that is not plain LoRA, that has a tensor without a place in the base,
    or whose shapes do not fit.
    """
    settings = json.loads((adapter_dir / "adapter_config.json").read_text())
    _check_plain(settings, adapter_dir)
    pairs = _pairs(adapter_dir / "adapter_model.safetensors")
    out_dir.mkdir(parents=True, exist_ok=True)
    left = set(pairs)
    for path in sorted(base_dir.iterdir()):
        if path.suffix == ".safetensors":
            left -= _merge_file(path, out_dir / path.name, pairs, settings)
        elif path.is_file() and path.suffix not in OTHER_WEIGHTS:
            shutil.copyfile(path, out_dir / path.name)
    if left:
        raise ValueError(
            f"adapter {adapter_dir}: {len(left)} of its {len(pairs)} weights have no place in the "
            f"base {base_dir}, such as {min(left)!r}: it was trained on another model"
        )


def _check_plain(settings: dict[str, Any], adapter_dir: Path) -> None:
    for key, expected in PLAIN.items():
        if (settings.get(key) or None) != (expected or None):
            raise ValueError(
                f"adapter {adapter_dir}: {key} is {settings.get(key)!r}; only {expected!r} can be "
                "merged"
            )


def _pairs(file: Path) -> dict[str, _Pair]:
    """Return the two factors of each adapted weight, by the weight's name in the base."""
    pairs: dict[str, _Pair] = {}
    for name, tensor in load_file(file).items():
        module, _, which = name.removesuffix(".weight").rpartition(".lora_")
        if not name.startswith(PREFIX) or which not in ("A", "B"):
            raise ValueError(f"adapter {file}: the tensor {name!r} is not one of plain LoRA's")
        pair = pairs.setdefault(f"{module.removeprefix(PREFIX)}.weight", _Pair())
        setattr(pair, which.lower(), tensor)
    for name, pair in pairs.items():
        if pair.a is None or pair.b is None:
            raise ValueError(f"adapter {file}: {name!r} has one factor of two")
    if not pairs:
        raise ValueError(f"adapter {file}: it has no tensors")
    return pairs


def _merge_file(
    path: Path, out: Path, pairs: dict[str, _Pair], settings: dict[str, Any]
) -> set[str]:
    """Write one file of the base with its share of the adapter; return the names it consumed."""
    with safe_open(path, framework="pt") as tensors:
        names = set(tensors.keys()) & set(pairs)
        metadata = tensors.metadata()
    out.unlink(missing_ok=True)
    if not names:
        _link(path, out)
        return set()
    weights = load_file(path)
    for name in names:
        weights[name] = _merged(name, weights[name], pairs[name], settings)
    save_file(weights, out, metadata=metadata or {"format": "pt"})
    return names


def _merged(name: str, weight: torch.Tensor, pair: _Pair, settings: dict[str, Any]) -> torch.Tensor:
    assert pair.a is not None and pair.b is not None
    rank = pair.a.shape[0]
    if (pair.b.shape[0], pair.a.shape[1]) != tuple(weight.shape) or pair.b.shape[1] != rank:
        raise ValueError(
            f"{name!r}: the base has shape {tuple(weight.shape)}, the adapter's factors "
            f"{tuple(pair.b.shape)} and {tuple(pair.a.shape)}: it was trained on another model"
        )
    alpha = float(settings["lora_alpha"])
    scale = alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
    return (weight.float() + scale * (pair.b.float() @ pair.a.float())).to(weight.dtype)


def _link(path: Path, out: Path) -> None:
    source = path.resolve()  # a hub snapshot is made of symbolic links
    try:
        os.link(source, out)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, out)
