"""The base model in memory: loaded once, adapted and given back unchanged for the next training.

Knows nothing of rows, trainers, DeepSpeed or checkpoints.
"""

import contextlib
import ctypes
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from em.training import LoraConfig

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class BaseModel:
    """Keeps at most one base model in this process between trainings.

    A training that asks for the same folder (by its files' sizes and times) and dtype as the last
    one skips the load; so does one for the same tokenizer. Not safe for two threads.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._model: nn.Module | None = None
        self._tokenizer: tuple[object, Any] | None = None
        self.loads = 0

    def tokenizer(self, model_dir: Path, *, trust: bool) -> Any:
        """Return the tokenizer in `model_dir`. Errors as for `load_tokenizer`."""
        key = (str(model_dir), trust, _files_state(model_dir))
        if self._tokenizer is None or self._tokenizer[0] != key:
            self._tokenizer = (key, load_tokenizer(model_dir, trust=trust))
        return self._tokenizer[1]

    @contextmanager
    def adapted(
        self, model_dir: Path, *, dtype: str, trust: bool, lora: LoraConfig, init_seed: int
    ) -> Iterator[peft.PeftModel]:
        """Lend the base with a fresh adapter, whose start depends on `init_seed` alone.

        Afterwards the adapter's layers are taken out and the base's weights are compared with what
        they were. Raises RuntimeError where they differ. After any error the base is forgotten.
        """
        model = self._get(model_dir, dtype, trust)
        self._key, key = None, self._key  # an error below leaves nothing to be used again
        before = checksum(model)
        adapted = add_adapter(model, lora, init_seed)
        yield adapted
        model = adapted.unload()
        _restore(model)
        if checksum(model) != before:
            raise RuntimeError(f"the base model {model_dir} changed while its adapter was trained")
        self._key, self._model = key, model

    def _get(self, model_dir: Path, dtype: str, trust: bool) -> nn.Module:
        key = (str(model_dir), dtype, trust, _files_state(model_dir))
        if self._key != key or self._model is None:
            self.forget()
            self._model = load_model(model_dir, dtype=dtype, trust=trust)
            self._key = key
            self.loads += 1
        return self._model

    def forget(self) -> None:
        """Free the memory of the model, if any is held."""
        self._key = self._model = None
        free_memory()


def load_model(model_dir: Path, *, dtype: str, trust: bool) -> Any:
    """Return the causal language model in `model_dir` (transformers; under ZeRO-3, its share)."""
    return AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=DTYPES[dtype],
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust,
    )


def load_tokenizer(model_dir: Path, *, trust: bool) -> Any:
    """Return the tokenizer in `model_dir`. Raises ValueError where it has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=trust
    )
    if not tokenizer.chat_template:
        raise ValueError(
            f"model folder {model_dir}: its tokenizer has no chat template, so chats cannot be "
            "rendered: use an instruction-tuned model, or add a chat_template.jinja to the folder"
        )
    return tokenizer


def add_adapter(model: Any, lora: LoraConfig, init_seed: int) -> peft.PeftModel:
    """Return `model` with new LoRA layers. Raises ValueError for modules that it does not have."""
    settings = peft.LoraConfig(
        r=lora.rank,
        # peft writes it into adapter_config.json; a whole number stays one there, as vLLM wants.
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    names = [name for name, _ in model.named_modules()]
    # peft passes over those that it does not find, as long as it finds one.
    lacking = [
        target
        for target in lora.target_modules
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    if lacking:
        raise ValueError(
            f"lora.target_modules: the model has no module {', '.join(map(repr, lacking))}; give "
            "names of its linear layers, such as q_proj or down_proj"
        )
    set_seed(init_seed)  # here and not earlier: whatever draws a number in between would shift it
    # Without autocasting the adapter has the base's dtype, as DeepSpeed would make it in any case.
    adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    assert isinstance(adapted, peft.PeftModel)
    return adapted


@torch.no_grad()
def checksum(model: nn.Module) -> tuple[int, ...]:
    """Return two integers for each parameter and buffer, which change when any of its bits do.

    Sums of the raw bits: far cheaper than a cryptographic hash on a device, and enough to notice a
    training that touched the weights.
    """
    sums: list[int] = []
    for _, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8)
        words = bits[: bits.numel() // 4 * 4].view(torch.int32)
        rest = bits[words.numel() * 4 :]
        # int64 sums do not overflow below 2**32 words; the second one sees words that swap places.
        sums += [int(words.sum(dtype=torch.int64)), int(_rotated(words)) + int(rest.sum())]
    return tuple(sums)


def _rotated(words: torch.Tensor) -> torch.Tensor:
    width = max(1, math.isqrt(words.numel()))
    rows = words[: words.numel() // width * width].view(-1, width).sum(dim=0, dtype=torch.int64)
    return (rows * torch.arange(1, width + 1, device=rows.device)).sum()


def free_memory() -> None:
    """Return memory that no object uses any more, on the device too."""
    gc.collect()
    with contextlib.suppress(
        OSError, AttributeError
    ):  # glibc only; rows of many lengths leave holes
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _restore(model: Any) -> None:
    """Undo what a training sets on a model besides its weights."""
    if getattr(model, "is_gradient_checkpointing", False):
        model.gradient_checkpointing_disable()
    if hasattr(model, "disable_input_require_grads"):
        model.disable_input_require_grads()  # peft sets a hook for checkpointing
    for parameter in model.parameters():
        parameter.grad = None


def _files_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
