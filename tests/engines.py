"""A tiny model, adapters and fine-tunes of it, and how to ask an engine of it.

Knows nothing of what a test looks for.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

from cluster.requests import EngineConfig, Request, Weights

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}"
    "<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers over bytes; float32, tied embeddings."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: i for i, letter in enumerate(alphabet, 2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )
    model.float().save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, seed: int) -> Weights:
    """A PEFT adapter that changes something: lora_B is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return Weights(content_hash(folder / "adapter_model.safetensors"), str(folder), "adapter")


def renamed(weights: Weights, folder: Path) -> Weights:
    """The same adapter with tensors under names that the base does not have."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder.mkdir()
    source = Path(weights.path)
    shutil.copy(source / "adapter_config.json", folder)
    tensors = load_file(source / "adapter_model.safetensors")
    moved = {name.replace("model.layers.", "model.blocks."): t for name, t in tensors.items()}
    save_file(moved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return Weights("renamed", str(folder), "adapter")


def fine_tune(base: Path, folder: Path, seed: int) -> Weights:
    """A full fine-tune: every tensor moved a little, embeddings included."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return Weights(content_hash(folder / "model.safetensors"), str(folder), "full")


def merge(base: Path, weights: Weights, out: Path) -> None:
    """W + scale B A, by hand."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    lora = load_file(Path(weights.path) / "adapter_model.safetensors")
    for name, down in lora.items():
        if "lora_A" in name:
            up = lora[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            tensors[target] += ALPHA / math.sqrt(RANK) * up @ down
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def engine_config(model: Path, **changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "model_dir": str(model),
        "mode": "merged",
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 32,
        "max_lora_rank": 8,
        "max_loras": 2,
        "kv_cache_gib": 0.1,
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "threads": os.cpu_count(),
    }
    return EngineConfig(**(settings | changes))


def ask(text: str, seed: int = 0, **changes: Any) -> Request:
    settings: dict[str, Any] = {"max_tokens": 12, "logprob_ids": (10, 70, 200)}
    return Request(({"role": "user", "content": text},), seed=seed, **(settings | changes))


def content_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
