"""Where `em` and `cluster` meet: an engine or pool, spoken to as an `em` endpoint.

Knows the plain types of both sides and nothing of cells or stores.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cluster.requests import LORA_RANKS, Completion, EngineConfig, Request, Weights
from cluster.requests import PromptsTooLong as TooLong
from em.generation import Answer, Prompt, PromptsTooLong
from em.models import ModelConfig, materialise
from em.training import TrainingConfig
from sweeps.settings import ResourcesConfig, ServingConfig


class Model(Protocol):
    """What an engine in this process and a pool behind Ray Serve have in common."""

    async def complete(
        self, requests: Sequence[Request], weights: Weights | None
    ) -> list[Completion]:
        """Answer every request with `weights`, or with the base model."""
        ...

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        ...


class ModelEndpoint:
    """One model with one set of weights, as `em.generation.Endpoint`."""

    def __init__(self, model: Model, weights: Weights | None) -> None:
        self._model = model
        self._weights = weights

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return one answer for each prompt, in order."""
        requests = [Request(**dict(prompt)) for prompt in prompts]
        try:
            completions = await self._model.complete(requests, self._weights)
        except TooLong as error:
            raise PromptsTooLong(str(error), error.places) from error
        return [_answer(completion) for completion in completions]

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        return await self._model.tokenize(texts)


def _answer(completion: Completion) -> Answer:
    return Answer(
        text=completion.text,
        finish_reason=completion.finish_reason,
        num_tokens=len(completion.token_ids),
        prompt_tokens=completion.prompt_tokens,
        prompt=completion.prompt,
        prompt_sha256=completion.prompt_sha256,
        weights=completion.weights,
        logprobs=completion.logprobs,
    )


def engine_config(
    model: ModelConfig,
    serving: ServingConfig,
    training: TrainingConfig,
    resources: ResourcesConfig,
) -> EngineConfig:
    """Return the engine that serves `model` and every adapter the sweep trains on it."""
    return EngineConfig(
        model_dir=str(materialise(model)),
        mode=serving.mode,
        dtype=serving.dtype,
        max_model_len=serving.max_model_len,
        max_num_seqs=serving.max_num_seqs,
        # Only its `lora` mode uses this; the spec has refused other ranks there.
        max_lora_rank=training.lora.rank if serving.mode == "lora" else LORA_RANKS[0],
        max_loras=serving.max_loras,
        # A fixed cache would make vLLM ignore the share of a GPU's memory that it may use.
        kv_cache_gib=0 if resources.serve_gpus else serving.kv_cache_gib,
        gpu_memory_utilization=serving.gpu_memory_utilization,
        # Compiling takes a minute of a CPU and pays back on GPUs only.
        enforce_eager=resources.serve_gpus == 0,
        threads=max(1, int(resources.serve_cpus)),
        tensor_parallel=max(1, int(resources.serve_gpus)),
        trust_remote_code=model.trust_remote_code,
        stall_limit_s=serving.stall_limit_s,
    )


def merge(base_dir: Path, weights: Weights, out_dir: Path) -> None:
    """Write the whole model that `weights` make of the base: what an engine calls to swap."""
    from em.merging import merge_adapter  # torch: in the engine's process, not in the driver

    merge_adapter(base_dir, Path(weights.path), out_dir)


def weights_of(path: str | Path, sha256: str, kind: str) -> Weights:
    """Return trained weights as an engine takes them."""
    return Weights(key=sha256, path=str(path), kind=kind)  # type: ignore[arg-type]
