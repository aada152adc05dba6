"""What is asked of an engine and what comes back: plain values, cheap to import and to send.

Knows nothing of torch, vLLM or Ray (see cluster.engine and cluster.serving), nor of what the
completions are for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MAX_LOGPROB_IDS = 128  # vLLM's own bound on SamplingParams.logprob_token_ids
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be


class EngineDead(RuntimeError):
    """The engine can answer no more: make another one (cluster.serving does so by itself)."""


class PromptsTooLong(ValueError):
    """Some requests of a call do not fit the model's length; none of the call was sampled.

    `places` are their indices among the call's requests.
    """

    def __init__(self, text: str, places: tuple[int, ...]) -> None:
        super().__init__(text, places)  # both: it travels between processes by its arguments
        self.places = places

    def __str__(self) -> str:
        """The text alone."""
        return str(self.args[0])


@dataclass(frozen=True)
class Request:
    """One completion to sample.

    `messages` are the turns as `{"role": …, "content": …}`; `prefill` are token ids that follow the
    rendered prompt as if the model had said them; `logprob_ids` (at most 128) are the ids whose
    log-probability at the first generated position is wanted, in the model's own distribution:
    temperature and top_p do not bear on it. The same seed gives the same tokens, up to rounding:
    the arithmetic depends a little on what else is in the batch. ValueError if out of range.
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    prefill: tuple[int, ...] = ()
    logprob_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse here what would reach the engine, where a bad value may end the whole batch."""
        demand(len(self.messages) > 0, "messages", self.messages, "at least one message")
        demand(self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more")
        demand(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        demand(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        demand(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        count = len(self.logprob_ids)
        demand(count <= MAX_LOGPROB_IDS, "logprob_ids", count, f"at most {MAX_LOGPROB_IDS} ids")


@dataclass(frozen=True)
class Completion:
    """What came back for one `Request`.

    `token_ids` are the generated ids, the end-of-turn token included where the model wrote it;
    `text` is their text without special tokens; `prompt` is the rendered chat prompt (without the
    prefill) and `prompt_sha256` its hash in hex; `prompt_tokens` counts prompt and prefill;
    `logprobs` are natural logarithms by id; `weights` is the content hash of the weights that were
    loaded when this was generated, empty for the base model.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    prompt_sha256: str
    prompt: str
    logprobs: dict[int, float]
    weights: str


@dataclass(frozen=True)
class Weights:
    """A set of weights to speak with: `key` is the hash of its content, `path` its folder.

    `adapter` is a PEFT folder; `full` a safetensors folder with the base's tensor names and shapes.
    """

    key: str
    path: str
    kind: Literal["adapter", "full"]

    def __post_init__(self) -> None:
        """The empty key means the base model."""
        demand(bool(self.key), "key", self.key, "a content hash")


@dataclass(frozen=True)
class EngineConfig:
    """One engine. Lengths in tokens, `kv_cache_gib` in GiB.

    A `kv_cache_gib` of 0 leaves the cache's size to `gpu_memory_utilization` (on CPU too, where it
    is a share of the machine's memory). `threads` are used on CPU only. With requests under way and
    no token for `stall_limit_s` seconds the engine counts as wedged and is killed: choose it well
    above the longest step (a full batch of prompts). Starting is not counted; loading weights may
    take five times as long. ValueError if out of range.
    """

    model_dir: str
    mode: Literal["merged", "lora"]
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_lora_rank: int
    max_loras: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    enforce_eager: bool
    threads: int
    tensor_parallel: int = 1
    trust_remote_code: bool = False
    stall_limit_s: float = 300.0

    def __post_init__(self) -> None:
        """vLLM would refuse these only after half a minute of starting."""
        ranks = f"one of {', '.join(map(str, LORA_RANKS))}"
        demand(self.max_lora_rank in LORA_RANKS, "max_lora_rank", self.max_lora_rank, ranks)
        demand(self.threads >= 1, "threads", self.threads, "1 or more")
        demand(self.stall_limit_s > 0, "stall_limit_s", self.stall_limit_s, "above 0")


@dataclass(frozen=True)
class PoolConfig:
    """One engine under a name; CPUs and GPUs are those that it holds.

    `engine` is called where the replica runs: what it needs there (a model's files) may be
    elsewhere on another node. `wanted` is asked there every few seconds: once it is false the pool
    ends by itself, as whoever started it may have been killed. Both must be importable there.
    """

    name: str
    engine: Callable[[], EngineConfig]
    num_cpus: float
    num_gpus: float
    wanted: Callable[[], bool] | None = None


Merge = Callable[[Path, Weights, Path], None]
"""merge(base folder, adapter, new folder): write there the whole model, safetensors, base names."""

Locate = Callable[[Weights], Weights]
"""locate(weights): the same with a folder of this node as their path, fetched if they are far."""


def demand(holds: bool, name: str, got: object, allowed: str) -> None:
    """Raise ValueError where `name` is not what is allowed."""
    if not holds:
        raise ValueError(f"{name}: got {got!r}, allowed: {allowed}")
