"""Will a training or a serving engine fit a GPU? Told from the model's shape and the settings.

Bytes for each GPU, part by part, with the error that a comparison with published figures showed
(tests/benchmarks/footprint.txt). Knows nothing of Ray, of what else a GPU holds, or of speed.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from em.activations import BYTES, checkpoint_bytes, layer_bytes, loss_bytes
from em.catalogue import config_dir
from em.model_shape import COLUMNS, ModelShape
from em.training import TrainingConfig

GIB = 2**30
Fit = Literal["yes", "unsure", "no"]
# The largest errors of footprint.txt, rounded up: of a training's total, as a share of
# the measured one; and of what an engine takes before its cache, as a share of all it may take.
TRAINING_ERROR = 0.25
SERVING_ERROR = 0.05
# CUDA's context, kernels, workspaces and NCCL's buffers: what the first rows of Qwen's table
# (https://github.com/QwenLM/Qwen#profiling-of-memory-and-speed) have beyond tensors.
CONTEXT = 3 * GIB // 2
# What torch's allocator holds beyond the tensors that come and go, as freed blocks seldom fit the
# next ones: chosen with PEFT's figures of footprint.txt, which are of reserved memory.
FRAGMENTATION = 0.2
SUBGROUP = 10**9  # parameters that ZeRO-3 steps at one time: DeepSpeed's default sub_group_size
# Beside an engine's tensors: vLLM's logs say from 0.1 to 1.8 GiB outside torch (footprint.txt).
ENGINE_CONTEXT = GIB // 2
# An engine's CUDA graphs: from 0.2 (a model of 1.5B) to 3.2 GiB (of 32B,
# https://github.com/vllm-project/vllm/issues/16303); it counts them in (its variable
# VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS).
GRAPHS = GIB
# Bytes of a sampled logit in vLLM: in 32 bits as it is, scaled, and as a log-probability.
SAMPLER_BYTES = 12
# vLLM's own default where a program starts the engine (vllm.config.scheduler.SchedulerConfig).
BATCHED_TOKENS = 2048


@dataclass(frozen=True)
class Footprint:
    """What one GPU (one rank) holds at a training's peak, by part, and the host for it; bytes."""

    parts: dict[str, int]
    host: dict[str, int]
    error: float = TRAINING_ERROR

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return sum(self.parts.values())

    def fits(self, card_bytes: int) -> Fit:
        """Whether it fits a card of so many bytes: "unsure" where the error decides."""
        if self.total <= card_bytes * (1 - self.error):
            return "yes"
        return "no" if self.total > card_bytes * (1 + self.error) else "unsure"

    def table(self) -> list[tuple[str, int]]:
        """The parts that are not empty, largest first, those of the host last; bytes."""
        rows = sorted(self.parts.items(), key=lambda part: -part[1])
        rows += [(f"{name} (host)", size) for name, size in self.host.items()]
        return [(name, size) for name, size in rows if size]

    def __str__(self) -> str:
        most = max(self.parts, key=lambda name: self.parts[name])
        host = f", host {gib(sum(self.host.values()))}" if sum(self.host.values()) else ""
        return (
            f"{gib(self.total)} a GPU (± {self.error:.0%}), most of it {most} "
            f"{gib(self.parts[most])}{host}"
        )


def gib(size: float) -> str:
    """Return a number of bytes as GiB."""
    return f"{size / GIB:.1f} GiB"


def training_footprint(shape: ModelShape, config: TrainingConfig) -> Footprint:
    """Return what each rank of a training holds at its peak: every row as long as `max_length`.

    Every token of a row counts as trained. Precision is that of em.finetune under DeepSpeed 0.19:
    weights and adapter in `dtype`; where they are trained, a copy in 32 bits, two moments of Adam
    in 32 bits, and gradients summed in 32 bits. ZeRO shards these as in Rajbhandari et al. (arXiv
    1910.02054), but for stage 1 in bfloat16, whose gradients stay whole on each rank. Raises
    ValueError for `target_modules` that the model has not.
    """
    lora = config.method == "lora"
    size, ranks, stage = BYTES[config.dtype], config.ranks, config.zero_stage
    trained = (
        shape.lora_parameters(config.lora.target_modules, config.lora.rank)
        if lora
        else shape.num_parameters
    )
    frozen = shape.num_parameters if lora else 0
    parts = {"frozen weights": size * frozen, "trained weights": size * trained}
    if stage == 3:
        parts = {name: bytes_ // ranks for name, bytes_ in parts.items()}
    parts |= _states(trained, config)
    parts |= _buffers(shape, frozen + trained, trained, config)
    host: dict[str, int] = {}
    if config.offload != "none":
        host = {name: parts.pop(name) for name in ("copy in 32 bits", "Adam's moments")}
        if stage > 1:
            host["gradients"] = parts.pop("gradients")
    if config.offload == "parameters":
        host |= {name: parts.pop(name) for name in ("frozen weights", "trained weights")}
    parts |= _working(shape, trained, config)
    return Footprint(parts, host)


def _states(trained: int, config: TrainingConfig) -> dict[str, int]:
    """Gradients, the copy in 32 bits and the moments, of one rank."""
    stage, sharded = config.zero_stage, trained // (config.ranks if config.zero_stage else 1)
    half = config.dtype == "bfloat16"
    gradients = 4 * trained if stage == 1 else 4 * sharded
    if half and stage == 1:
        gradients += 2 * trained  # those of a micro-batch, beside their sum
    elif half and stage == 0:
        gradients = 2 * trained
    copied = half or stage > 0  # ZeRO copies weights in 32 bits, too
    return {
        "gradients": gradients,
        "copy in 32 bits": 4 * sharded if copied else 0,
        "Adam's moments": 8 * sharded,
    }


def _buffers(
    shape: ModelShape, parameters: int, trained: int, config: TrainingConfig
) -> dict[str, int]:
    """ZeRO's bucket, and under stage 3 the weights that are gathered at one time."""
    zero = deepspeed_settings(config)
    size = BYTES[config.dtype]
    bucket = min(int(zero.get("reduce_bucket_size", 0)), trained)
    live = 0
    if config.zero_stage == 3:
        # A module that is needed is gathered whole, beyond what may be live: the embedding is.
        table = shape.vocab_size * shape.hidden_size
        most = zero["stage3_max_live_parameters"] + zero["stage3_prefetch_bucket_size"] + table
        live = min(int(most), parameters)
    return {"gathered weights": size * live, "bucket": size * bucket}


def deepspeed_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return `zero_optimization` of the DeepSpeed settings that em.trainer uses."""
    path = config_dir() / "deepspeed" / f"zero{config.zero_stage}.json"
    settings: dict[str, Any] = json.loads(path.read_text())["zero_optimization"]
    return settings


def _working(shape: ModelShape, trained: int, config: TrainingConfig) -> dict[str, int]:
    """What comes and goes in a step: activations, the loss or a layer computed again, Adam's."""
    tokens = config.micro_batch * config.max_length
    one = tokens * layer_bytes(shape, config)
    loss = tokens * loss_bytes(shape)
    if config.gradient_checkpointing:
        kept = tokens * shape.num_layers * checkpoint_bytes(shape, config)
        working = {"activations": kept, "logits and loss": loss}
        # When layers are computed again, the loss is gone: only what is beyond it counts.
        working["a layer again"] = max(0, one - loss)
    else:
        working = {"activations": one * shape.num_layers, "logits and loss": loss}
    # Activations are gone by then.
    working["Adam's step"] = max(0, _step(trained, config) - sum(working.values()))
    working["fragmentation"] = int(FRAGMENTATION * sum(working.values()))
    return {**working, "CUDA context": CONTEXT}


def _step(trained: int, config: TrainingConfig) -> int:
    """What a step of Adam takes for itself: roots of the second moments, gradients made flat."""
    if config.offload != "none":
        return 0
    stage = config.zero_stage
    stepped = trained // (config.ranks if stage else 1)
    flat_already = stage == 1 and config.dtype == "bfloat16"
    return (4 if flat_already else 8) * (min(stepped, SUBGROUP) if stage == 3 else stepped)


@dataclass(frozen=True)
class ServingFootprint:
    """What one GPU of a vLLM engine holds: before its cache by part, and the cache; bytes."""

    parts: dict[str, int]
    budget: int
    kv_bytes_per_token: int
    max_model_len: int
    error: float = SERVING_ERROR  # of the cache, as a share of `budget`

    @property
    def total(self) -> int:
        """Bytes on the GPU before the cache."""
        return sum(self.parts.values())

    @property
    def kv_cache(self) -> int:
        """Bytes left for the cache; negative where not even the rest fits."""
        return self.budget - self.total

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache holds, over all sequences."""
        return max(0, self.kv_cache) // self.kv_bytes_per_token

    @property
    def full_sequences(self) -> float:
        """How many sequences of `max_model_len` the cache holds at one time."""
        return self.kv_tokens / self.max_model_len

    def fits(self) -> Fit:
        """Whether at least one sequence of `max_model_len` has room: else vLLM does not start."""
        spare = self.kv_cache - self.max_model_len * self.kv_bytes_per_token
        if spare >= self.error * self.budget:
            return "yes"
        return "no" if spare < -self.error * self.budget else "unsure"

    def table(self) -> list[tuple[str, int]]:
        """The parts that are not empty, largest first, and what is left for the cache; bytes."""
        rows = sorted(self.parts.items(), key=lambda part: -part[1])
        return [*((name, size) for name, size in rows if size), ("KV cache", self.kv_cache)]

    def __str__(self) -> str:
        return (
            f"{gib(self.total)} of {gib(self.budget)} a GPU, which leaves {gib(self.kv_cache)} "
            f"(± {gib(self.error * self.budget)}) of cache: {self.kv_tokens:,} tokens, "
            f"{self.full_sequences:.1f} sequences of {self.max_model_len:,}"
        )


def serving_footprint(
    shape: ModelShape,
    dtype: Literal["bfloat16", "float32"],
    *,
    card_bytes: int,
    max_model_len: int,
    max_num_seqs: int,
    gpu_memory_utilization: float,
    tensor_parallel: int = 1,
    max_loras: int = 0,
    max_lora_rank: int = 0,
    max_batched_tokens: int = BATCHED_TOKENS,
    cuda_graphs: bool = True,
) -> ServingFootprint:
    """Return what each GPU of a vLLM engine holds, on cards of `card_bytes` (as torch sees them).

    `max_loras` is 0 where no adapters are served. Each of `tensor_parallel` GPUs has its part of
    the weights and heads; key-value heads are copied where there are fewer than GPUs.
    """
    size, gpus = BYTES[dtype], tensor_parallel
    linears = shape.linears.items()
    wide = {name: (into + out / gpus if name in COLUMNS else into / gpus + out)
            for name, (into, out) in linears}  # fmt: skip
    slots = shape.num_layers * sum(wide.values())
    if max_loras:  # vLLM keeps room for adapters of the embedding and the output, too
        slots += (1 if shape.tied else 2) * (shape.hidden_size + shape.vocab_size)
    copies = max(1, gpus / shape.num_kv_heads)
    hidden, inner = shape.hidden_size, shape.intermediate_size / gpus
    tokens = max(max_batched_tokens, max_num_seqs)
    parts = {
        "weights": size * shape.num_parameters // gpus,
        "adapters": int(size * max_loras * max_lora_rank * slots),
        # The stream twice, and the MLP's two inner matrices with their product.
        "activations": int(size * tokens * (2 * hidden + 3 * inner)),
        "sampling": SAMPLER_BYTES * max_num_seqs * shape.vocab_size,
        "CUDA graphs": GRAPHS if cuda_graphs else 0,
        "CUDA context": ENGINE_CONTEXT,
    }
    return ServingFootprint(
        parts,
        budget=int(card_bytes * gpu_memory_utilization),
        kv_bytes_per_token=int(shape.kv_bytes_per_token(size) * copies / gpus),
        max_model_len=max_model_len,
    )
