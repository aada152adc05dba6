"""Engines of the benchmark: the project's own, and the bare vLLM that it is held against.

Both have the settings with which the quickstart serves on a machine without a GPU. Knows nothing of
what they are asked.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.requests import EngineConfig
from em.models import ModelConfig, materialise
from em.training import TrainingConfig
from sweeps.endpoints import engine_config
from sweeps.settings import ResourcesConfig, ServingConfig

MAX_MODEL_LEN, MAX_NUM_SEQS, CACHE_GIB = 2048, 64, 1
BUNDLED = ModelConfig(name="smollm2-135m", bundled="smollm2-135m")


def bundled_model() -> Path:
    """Return the folder of the bundled model."""
    return materialise(BUNDLED)


def our_config(model: str) -> EngineConfig:
    """Return the project's engine for the model folder `model`, with merged weights."""
    cores = len(os.sched_getaffinity(0))
    serving = ServingConfig(
        mode="merged",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        kv_cache_gib=CACHE_GIB,
    )
    resources = ResourcesConfig(train_cpus=cores, serve_cpus=cores)
    config = ModelConfig(name="bench", folder=Path(model))
    return engine_config(config, serving, TrainingConfig(), resources)


def bare_engine(model: str, **more: Any) -> Any:
    """Return vLLM's own offline engine over `model`, with the environment and sizes of ours.

    So that what is compared is the way of using it, and not a worse choice of settings.
    """
    from cluster.launch import environment

    config = our_config(model)
    with environment(config):
        from vllm import LLM

        return LLM(
            model=model,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            gpu_memory_utilization=config.gpu_memory_utilization,
            kv_cache_memory_bytes=CACHE_GIB * 2**30,
            enforce_eager=config.enforce_eager,
            enable_prefix_caching=True,
            enable_chunked_prefill=False,
            max_num_batched_tokens=4096,
            block_size=32,
            use_tqdm_on_load=False,
            **more,
        )


def rendered(model: str, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of a chat of one user turn each, ready to be answered."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    chats = [[{"role": "user", "content": text}] for text in texts]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    ids: list[list[int]] = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    return ids
