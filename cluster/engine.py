"""One vLLM engine that speaks with a base model, or with any adapter or fine-tune of it.

The types are plain and import nothing heavy, so that a driver and its tasks can make requests;
torch and vLLM load only where an `Engine` is made. Two ways of speaking with other weights: `lora`
keeps many adapters beside one base (fast on GPUs), `merged` loads one whole set of weights at a
time into the running engine (full speed everywhere, full fine-tunes too).

Knows nothing of Ray (see cluster.serving), of how an adapter is trained or merged (the caller
passes the merging in), or of what the completions are for.
"""

import asyncio
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

LOGGER = logging.getLogger(__name__)

MAX_LOGPROB_IDS = 128  # vLLM's own bound on SamplingParams.logprob_token_ids
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be

T = TypeVar("T")


# --- what is asked and answered -------------------------------------------------------------------


class EngineDead(RuntimeError):
    """The engine can answer no more: make another one (cluster.serving does so by itself)."""


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
        _demand(len(self.messages) > 0, "messages", self.messages, "at least one message")
        _demand(self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more")
        _demand(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        _demand(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        _demand(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        count = len(self.logprob_ids)
        _demand(count <= MAX_LOGPROB_IDS, "logprob_ids", count, f"at most {MAX_LOGPROB_IDS} ids")


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
        _demand(bool(self.key), "key", self.key, "a content hash")


@dataclass(frozen=True)
class EngineConfig:
    """One engine. Lengths in tokens, `kv_cache_gib` in GiB.

    A `kv_cache_gib` of 0 leaves the cache's size to `gpu_memory_utilization` (on CPU too, where it
    is a share of the machine's memory). `threads` are used on CPU only. ValueError if out of range.
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
    seed: int = 0
    tensor_parallel: int = 1
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """vLLM would refuse these only after half a minute of starting."""
        ranks = f"one of {', '.join(map(str, LORA_RANKS))}"
        _demand(self.max_lora_rank in LORA_RANKS, "max_lora_rank", self.max_lora_rank, ranks)
        _demand(self.threads >= 1, "threads", self.threads, "1 or more")


@dataclass(frozen=True)
class PoolConfig:
    """Replicas of one engine under one name; CPUs and GPUs are those of each replica."""

    name: str
    engine: EngineConfig
    replicas: int
    num_cpus: float
    num_gpus: float


Merge = Callable[[Path, Weights, Path], None]
"""merge(base folder, adapter, new folder): write there the whole model, safetensors, base names."""


def _demand(holds: bool, name: str, got: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got!r}, allowed: {allowed}")


# --- whose turn it is: one set of weights at a time -----------------------------------------------


@dataclass
class _Queue:
    """The calls that wait for one set of weights, the longest wait first."""

    weights: Weights | None
    turns: list[tuple[float, "asyncio.Future[None]"]] = field(default_factory=list)

    @property
    def since(self) -> float:
        return self.turns[0][0]


class Arbiter:
    """Lets calls for one set of weights run at a time, and has the weights swapped in between.

    Calls for the weights that are loaded run side by side. Calls for others wait until those have
    drained; once one has waited `patience_s` seconds, no more are admitted before it, so that a
    steady stream for one set of weights starves nobody. `swap` loads weights (None: the base); if
    it fails, its error goes to the calls that wanted those weights, and what is loaded counts as
    unknown, so that whichever call comes next loads first. For one event loop.
    """

    def __init__(
        self,
        swap: Callable[[Weights | None], Coroutine[Any, Any, None]],
        patience_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with the base model loaded."""
        self._swap = swap
        self._patience_s = patience_s
        self._clock = clock
        self._loaded: str | None = ""  # a key; None: unknown
        self._running = 0
        self._queues: dict[str, _Queue] = {}
        self._swapping: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(self, weights: Weights | None) -> AsyncIterator[str]:
        """Keep `weights` loaded within the block; gives their key, empty for the base model."""
        key = weights.key if weights else ""
        if self._may_join(key):
            self._running += 1
        else:
            await self._turn(key, weights)
        try:
            yield key
        finally:
            self._release()

    def _may_join(self, key: str) -> bool:
        return key == self._loaded and self._swapping is None and not self._someone_starves(key)

    def _someone_starves(self, key: str) -> bool:
        limit = self._clock() - self._patience_s
        return any(q.since <= limit for other, q in self._queues.items() if other != key)

    async def _turn(self, key: str, weights: Weights | None) -> None:
        turn = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(key, _Queue(weights))
        queue.turns.append((self._clock(), turn))
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled after it was admitted: the place was counted and must be given back.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()
            else:
                self._forget(key, turn)
            raise

    def _forget(self, key: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(key)
        if queue is not None:
            queue.turns = [entry for entry in queue.turns if entry[1] is not turn]
            if not queue.turns:
                del self._queues[key]
        self._advance()  # the one whose patience barred others may be the one that left

    def _release(self) -> None:
        self._running -= 1
        self._advance()

    def _advance(self) -> None:
        """Admit whoever may run now; else, with nothing running, start the next swap."""
        if self._swapping is not None or not self._queues:
            return
        if self._loaded in self._queues and not self._someone_starves(self._loaded):
            self._admit(self._loaded)
        elif self._running == 0:
            key = min(self._queues, key=lambda k: self._queues[k].since)
            if key == self._loaded:
                self._admit(key)
            else:
                self._start_swap(key)

    def _admit(self, key: str) -> None:
        for _, turn in self._queues.pop(key).turns:
            if not turn.done():
                self._running += 1
                turn.set_result(None)

    def _start_swap(self, key: str) -> None:
        self._loaded = None
        # A task of its own: the caller that wanted it may be cancelled, the swap goes through.
        self._swapping = asyncio.create_task(self._swap(self._queues[key].weights))
        self._swapping.add_done_callback(lambda done: self._after_swap(key, done))

    def _after_swap(self, key: str, done: "asyncio.Task[None]") -> None:
        self._swapping = None
        error = EngineDead("closed while loading weights") if done.cancelled() else done.exception()
        if error is None:
            self._loaded = key
            if key in self._queues:  # all who wanted it may have left meanwhile
                self._admit(key)
        else:
            self._refuse(key, error)
        self._advance()

    def _refuse(self, key: str, error: BaseException) -> None:
        queue = self._queues.pop(key, None)
        for _, turn in queue.turns if queue else ():
            if not turn.done():
                turn.set_exception(error)


# --- the engine must not outlive its owner --------------------------------------------------------


class _WatchParent:
    """Travels in vLLM's config into the processes it starts; unpickled there, it keeps watch.

    vLLM's engine process does not notice when the process that owns it is killed, and would keep
    its memory for ever. PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the
    engine ends. So each process that unpickles this polls who its parent is.
    """

    def __reduce__(self) -> tuple[Callable[[int], "_WatchParent"], tuple[int]]:
        return _watch_parent, (os.getpid(),)


def _watch_parent(pickled_by: int) -> _WatchParent:
    if pickled_by != os.getpid():
        name = "watch-parent"
        threading.Thread(target=_end_with, args=(pickled_by,), name=name, daemon=True).start()
    return _WatchParent()


def _end_with(parent: int) -> None:
    """End this process when `parent` does, if it was started by it as a multiprocessing child."""
    deadline = (
        time.monotonic() + 60
    )  # multiprocessing tells who the parent is only after unpickling
    while (known := multiprocessing.parent_process()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if known is None or known.pid != parent:
        return
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


# --- in vLLM's worker processes -------------------------------------------------------------------


class WorkerExtension:
    """vLLM mixes this into its workers, so that it can be called there by name."""

    def load_folder(self: Any, folder: str) -> None:
        """Put the weights of a whole model in the place of the present ones.

        On CPU vLLM keeps a second, packed copy of each matrix, and its reload forgets that of an
        output layer tied to the embeddings: the model would speak through its old one.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


# --- the engine -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prompt:
    text: str
    sha256: str
    ids: list[int]


class Engine:
    """One vLLM engine, in processes of its own that end with this one. For one event loop."""

    def __init__(self, config: EngineConfig, merge: Merge, patience_s: float = 10.0) -> None:
        """Start it (half a minute). `merge` writes the whole model of base and adapter.

        Raises EngineDead if it does not start (vLLM's reason stands in its own log above), and
        ValueError for settings that vLLM refuses.
        """
        self._config = config
        self._merge = merge
        self._base_layout = _layout(Path(config.model_dir)) if config.mode == "merged" else {}
        self._arbiter = Arbiter(self._swap, patience_s)
        self._loras: dict[str, asyncio.Task[Any]] = {}
        self._lora_numbers = itertools.count(1)  # vLLM takes a number that it knows for loaded
        self._asked = 0
        # One thread: fast tokenizers must not be used by two threads at once.
        self._tokens = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        with _environment(config):
            try:
                self._llm = _start(config)
            except RuntimeError as error:
                raise EngineDead(f"the engine did not start: {error}") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._vocabulary = int(self._llm.model_config.get_vocab_size())

    async def complete(
        self, requests: Sequence[Request], weights: Weights | None
    ) -> list[Completion]:
        """Sample all `requests` at once with `weights` (None: the base model), in their order.

        Raises ValueError for a prompt that with max_tokens exceeds max_model_len, for ids outside
        the vocabulary, for messages that the chat template refuses, for `full` weights in lora
        mode, and for weights that do not fit the base; EngineDead if the engine is dead.
        """
        if self._config.mode == "lora" and weights is not None and weights.kind != "adapter":
            raise ValueError(f"mode lora speaks with adapters only, got {weights}: use mode merged")
        prompts = await self._in_thread(lambda: self._render(requests))
        with _dead_as_ours("the engine died"):
            if self._config.mode == "merged":
                async with self._arbiter.hold(weights) as key:
                    return await self._generate(requests, prompts, key, None)
            lora = await self._lora(weights) if weights else None
            return await self._generate(requests, prompts, weights.key if weights else "", lora)

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""
        return await self._in_thread(lambda: [self._encode(text) for text in texts])

    async def check(self, timeout_s: float = 60.0) -> None:
        """Sample one token for real, with whatever weights are loaded. Raises EngineDead."""
        request = Request(({"role": "user", "content": "?"},), max_tokens=1, seed=0)
        prompt = _Prompt("", "", self._encode("?"))
        try:
            with _dead_as_ours("the engine died"):
                await asyncio.wait_for(self._one(request, prompt, "", None), timeout_s)
        except TimeoutError as error:
            raise EngineDead(f"the engine gave no token within {timeout_s} s") from error

    @property
    def alive(self) -> bool:
        """Whether the engine's processes run, as far as is known without asking them."""
        return not self._llm.errored

    def close(self) -> None:
        """End the engine's processes; calls that are under way get an error."""
        self._llm.shutdown(timeout=10.0)  # about 4 s; then it is killed
        self._tokens.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokens, work)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _render(self, requests: Sequence[Request]) -> list[_Prompt]:
        rendered: dict[str, _Prompt] = {}  # a prompt is usually asked many times
        prompts = []
        for request in requests:
            key = json.dumps(request.messages)
            if key not in rendered:
                rendered[key] = self._render_one(request)
            prompt = rendered[key]
            ids = [*prompt.ids, *request.prefill]
            self._check_fits(request, ids)
            prompts.append(_Prompt(prompt.text, prompt.sha256, ids))
        return prompts

    def _render_one(self, request: Request) -> _Prompt:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                list(request.messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            roles = [message.get("role") for message in request.messages]
            raise ValueError(f"the chat template refuses roles {roles}: {error}") from error
        # The template writes the special tokens itself: adding them again would double them.
        return _Prompt(text, hashlib.sha256(text.encode()).hexdigest(), self._encode(text))

    def _check_fits(self, request: Request, ids: list[int]) -> None:
        limit = self._config.max_model_len
        if len(ids) + request.max_tokens > limit:
            raise ValueError(
                f"a prompt of {len(ids)} tokens (prefill included) and max_tokens "
                f"{request.max_tokens} exceed max_model_len {limit}: shorten one or raise the limit"
            )
        for i in (*request.prefill, *request.logprob_ids):
            _demand(0 <= i < self._vocabulary, "token id", i, f"0 to {self._vocabulary - 1}")

    async def _generate(
        self, requests: Sequence[Request], prompts: Sequence[_Prompt], key: str, lora: Any
    ) -> list[Completion]:
        pairs = zip(requests, prompts, strict=True)
        tasks = [asyncio.create_task(self._one(r, p, key, lora)) for r, p in pairs]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            # None may still be in the engine when its weights are released: the aborts go first.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _one(self, request: Request, prompt: _Prompt, key: str, lora: Any) -> Completion:
        from vllm.inputs.engine import tokens_input

        self._asked += 1
        stream = self._llm.generate(
            tokens_input(prompt.ids), _sampling(request), str(self._asked), lora_request=lora
        )
        outputs = [output async for output in stream]  # one: FINAL_ONLY
        return _completion(request, prompt, outputs[-1].outputs[0], key)

    async def _lora(self, weights: Weights) -> Any:
        """The adapter for vLLM, named by its hash: vLLM's caches know an adapter by its name."""
        load = self._loras.get(weights.key)
        if load is None:
            load = self._loras[weights.key] = asyncio.create_task(self._load_lora(weights))
        try:
            return await asyncio.shield(load)  # every caller waits for the one load
        except BaseException:
            if load.done() and self._loras.get(weights.key) is load:
                del self._loras[weights.key]
            raise

    async def _load_lora(self, weights: Weights) -> Any:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(weights.key, next(self._lora_numbers), weights.path)
        # Asked for by itself, an adapter that does not load is one caller's error; met in the
        # middle of a step, it would end the engine.
        await self._llm.add_lora(lora)
        return lora

    async def _swap(self, weights: Weights | None) -> None:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="merged-") as temporary:
            folder = Path(self._config.model_dir)
            if weights is not None and weights.kind == "full":
                folder = Path(weights.path)
            elif weights is not None:
                folder, base = Path(temporary), folder
                await asyncio.to_thread(self._merge, base, weights, folder)
            await asyncio.to_thread(self._check_layout, folder)
            await self._llm.collective_rpc("load_folder", args=(str(folder),))
        await self._forget_prefixes()
        LOGGER.info("loaded %s in %.2f s", weights or "the base", time.monotonic() - start)

    def _check_layout(self, folder: Path) -> None:
        """vLLM only warns of a missing tensor, and would speak with the old one."""
        layout = _layout(folder)
        if layout != self._base_layout:
            wrong = sorted({name for name, _ in layout.items() ^ self._base_layout.items()})
            raise ValueError(
                f"{folder} is not the base model with other numbers: {len(wrong)} tensors are "
                f"missing, added or of another shape, e.g. {', '.join(wrong[:3])}"
            )

    async def _forget_prefixes(self) -> None:
        """The cached keys and values are of the old weights."""
        for _ in range(100):  # refused while a block is in use: an abort takes a step to arrive
            if await self._llm.reset_prefix_cache():
                return
            await asyncio.sleep(0.05)
        raise RuntimeError("vLLM would not reset its prefix cache within 5 s")


def _layout(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors folder, by name, from the files' headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: tuple(t["shape"]) for name, t in header.items() if name != "__metadata__"}
    if not shapes:
        raise ValueError(f"{folder}: no *.safetensors with tensors there")
    return shapes


def _sampling(request: Request) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=request.max_tokens,
        seed=request.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        logprob_token_ids=list(request.logprob_ids) or None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(request: Request, prompt: _Prompt, output: Any, key: str) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with {output.finish_reason!r}")
    first = output.logprobs[0] if request.logprob_ids else {}
    return Completion(
        text=output.text,
        token_ids=tuple(output.token_ids),
        finish_reason=output.finish_reason,
        prompt_tokens=len(prompt.ids),
        prompt_sha256=prompt.sha256,
        prompt=prompt.text,
        logprobs={i: float(first[i].logprob) for i in request.logprob_ids},
        weights=key,
    )


def _start(config: EngineConfig) -> Any:
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = not torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "model": config.model_dir,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "kv_cache_memory_bytes": math.ceil(config.kv_cache_gib * 2**30) or None,
        "enforce_eager": config.enforce_eager,
        "seed": config.seed,
        "tensor_parallel_size": config.tensor_parallel,
        "trust_remote_code": config.trust_remote_code,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if on_cpu:
        # A seeded prompt prefilled in two pieces ends the CPU engine ("CPU Generator does not use
        # offset"), so a prompt must fit one step; more room lets prompts be prefilled together.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(config.max_model_len, 4096)
        # The smallest that the CPU's attention takes. Prefixes are shared in whole blocks only: on
        # two busy cores 48 scores were read digit by digit in 166 s with the default of 128, and
        # in 25 s with 32.
        arguments["block_size"] = 32
    if config.mode == "lora":
        lora = {"max_lora_rank": config.max_lora_rank, "max_loras": config.max_loras}
        arguments |= {"enable_lora": True, **lora}
    else:
        extension = WorkerExtension
        arguments["worker_extension_cls"] = f"{extension.__module__}.{extension.__qualname__}"
    settings = AsyncEngineArgs(**arguments).create_engine_config()
    settings.watch_parent = _WatchParent()
    return AsyncLLM.from_vllm_config(settings, disable_log_stats=True)


@contextmanager
def _environment(config: EngineConfig) -> Iterator[None]:
    """vLLM reads these when it is imported or when its processes start; put back afterwards."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would not unpickle, hence not watch
        # vLLM's sampler compiles a function at the first log-probability (17 s on two cores).
        "TORCH_COMPILE_DISABLE": "1" if config.enforce_eager else "0",
        "OMP_NUM_THREADS": str(config.threads),  # Ray sets it to a task's CPUs
        "VLLM_CPU_OMP_THREADS_BIND": _binding(config),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _binding(config: EngineConfig) -> str:
    """The cores for vLLM's threads: bound ones are 1.4 times as fast, where no other wants them."""
    cores = sorted(os.sched_getaffinity(0))
    if config.tensor_parallel > 1 or config.threads < len(cores):
        return "nobind"  # two engines would bind themselves to the same cores
    return ",".join(map(str, cores))


@contextmanager
def _dead_as_ours(what: str) -> Iterator[None]:
    """Turn vLLM's error for a dead engine into ours."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineDead(f"{what}: {error}") from error
