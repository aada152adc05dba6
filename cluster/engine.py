"""One vLLM engine that speaks with a base model, or with any adapter or fine-tune of it.

Two ways of speaking with other weights: `lora` keeps many adapters beside one base (fast on GPUs),
`merged` loads one whole set of weights at a time into the running engine (full speed everywhere,
full fine-tunes too). Imports torch and vLLM only where an `Engine` is made.

Knows nothing of Ray (see cluster.serving), of how an adapter is trained or merged (the caller
passes the merging in), or of what the completions are for.
"""

import asyncio
import hashlib
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from cluster.arbiter import Arbiter
from cluster.launch import environment, kill, start, tokens_under_way
from cluster.requests import (
    Completion,
    EngineConfig,
    EngineDead,
    Merge,
    PromptsTooLong,
    Request,
    Weights,
    demand,
)
from cluster.stall import Watch

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


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
        with environment(config):
            try:
                self._llm = start(config)
            except RuntimeError as error:
                raise EngineDead(f"the engine did not start: {error}") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._vocabulary = int(self._llm.model_config.get_vocab_size())
        self._watch = Watch(
            config.stall_limit_s,
            tokens=lambda: tokens_under_way(self._llm),
            alive=lambda: self.alive,
            kill=lambda: kill(self._llm),
        )

    async def complete(
        self, requests: Sequence[Request], weights: Weights | None
    ) -> list[Completion]:
        """Sample all `requests` at once with `weights` (None: the base model), in their order.

        Raises PromptsTooLong where a prompt with max_tokens exceeds max_model_len, ValueError for
        ids outside the vocabulary, for messages that the chat template refuses, for `full` weights
        in lora mode, and for weights that do not fit the base; EngineDead if the engine is dead
        or was killed as wedged (see EngineConfig.stall_limit_s).
        """
        if self._config.mode == "lora" and weights is not None and weights.kind != "adapter":
            raise ValueError(f"mode lora speaks with adapters only, got {weights}: use mode merged")
        prompts = await self._in_thread(lambda: self._render(requests))
        self._watch.begin()
        with self._dead_as_ours():
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
            self._watch.begin()
            with self._dead_as_ours():
                await asyncio.wait_for(self._one(request, prompt, "", None), timeout_s)
        except TimeoutError as error:
            raise EngineDead(f"the engine gave no token within {timeout_s} s") from error

    @property
    def mode(self) -> Literal["merged", "lora"]:
        """How it speaks with other weights."""
        return self._config.mode

    async def lent(self, weights: Weights | None) -> Any:
        """Return vLLM's own client, with `weights` merged in (None: as it is), for a server of it.

        From then on ask that client alone: nothing is swapped, and no one looks for a stall.
        """
        if weights is not None:
            await self._swap(weights)
        return self._llm

    @property
    def alive(self) -> bool:
        """Whether the engine's processes run, as far as is known without asking them."""
        return not self._llm.errored

    def close(self) -> None:
        """End the engine's processes; calls that are under way get an error."""
        self._llm.shutdown(timeout=10.0)  # about 4 s; then it is killed
        self._tokens.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _dead_as_ours(self) -> Iterator[None]:
        """Turn vLLM's error for a dead engine into ours."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            raise EngineDead(f"the engine died: {self._watch.verdict or error}") from error

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
            for i in (*request.prefill, *request.logprob_ids):
                demand(0 <= i < self._vocabulary, "token id", i, f"0 to {self._vocabulary - 1}")
            prompts.append(_Prompt(prompt.text, prompt.sha256, ids))
        self._check_fit(requests, prompts)
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

    def _check_fit(self, requests: Sequence[Request], prompts: Sequence[_Prompt]) -> None:
        limit = self._config.max_model_len
        lengths = [len(p.ids) + r.max_tokens for r, p in zip(requests, prompts, strict=True)]
        places = tuple(place for place, length in enumerate(lengths) if length > limit)
        if places:
            first = places[0]
            raise PromptsTooLong(
                f"a prompt of {len(prompts[first].ids)} tokens (prefill included) and max_tokens "
                f"{requests[first].max_tokens} exceed max_model_len {limit}: shorten one or raise "
                "the limit",
                places,
            )

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
        self._watch.finished += 1
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
        await self._watch.loading(self._llm.add_lora(lora))
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
            await self._watch.loading(self._load(folder))
        LOGGER.info("loaded %s in %.2f s", weights or "the base", time.monotonic() - start)

    async def _load(self, folder: Path) -> None:
        await self._llm.collective_rpc("load_folder", args=(str(folder),))
        await self._forget_prefixes()

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
