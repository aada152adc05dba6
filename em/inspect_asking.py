"""What Inspect asks while it runs samples of a task: of the model that is scored, and of a grader.

Each call has a seed that hangs on its sample and its place alone, and is noted with its sample.
Knows nothing of Inspect's classes (see em.inspect_model), or of stores.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from em.api_endpoint import PromptRefused
from em.generation import (
    Answer,
    AskingStopped,
    Endpoint,
    GateFailed,
    Prompt,
    PromptsTooLong,
    SamplingConfig,
    check_answer,
)
from em.inspect_tasks import turns
from em.seeds import derive_seed

ROLES = ("system", "user", "assistant")
FOLLOWED = {"temperature", "top_p", "max_tokens"}
# Settings of a request that Inspect itself carries out, or whose place ours takes (seeds, pace,
# retries); one that sets any other is refused.
OF_INSPECT = {
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections",
    "adaptive_connections", "system_message", "seed", "parallel_tool_calls", "internal_tools",
    "max_tool_output", "cache", "cache_prompt", "reasoning_history", "batch",
}  # fmt: skip
# What a single sample is to blame for; all else ends the run.
OF_A_SAMPLE = (PromptsTooLong, PromptRefused)

Ask = Callable[[Sequence[Any], Sequence[Any], Any], Awaitable[Answer]]
"""Answers Inspect's messages, tools and settings."""


@dataclass
class Asked:
    """What one model was asked for one sample."""

    answers: list[Answer] = field(default_factory=list)
    calls: int = 0

    def next(self) -> int:
        """Return the place of the next call, which is taken before its answer is there."""
        self.calls += 1
        return self.calls - 1


@dataclass
class Spoken:
    """One sample, whose first call has `seed`; `solving` while its answer is not there yet."""

    seed: int
    solving: bool = False
    model: Asked = field(default_factory=Asked)
    grader: Asked = field(default_factory=Asked)

    @property
    def is_begun(self) -> bool:
        """Whether anybody has answered anything."""
        return bool(self.model.answers or self.grader.answers)


@dataclass
class Run:
    """One run of Inspect: what was asked for each sample, by its id there, and what has ended it.

    `current` returns the id of the sample that is being worked on, "" outside of all.
    """

    samples: Mapping[str, Spoken]
    current: Callable[[], str]
    broken: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def why(self) -> Exception | None:
        """What has ended the run."""
        error = self.broken.exception() if self.broken.done() else None
        return error if isinstance(error, Exception) else None

    @property
    def now(self) -> Spoken:
        """The sample that is being worked on. Raises GateFailed outside of all."""
        name = self.current()
        if name not in self.samples:
            raise GateFailed(
                "task gate: the task asks a model outside of its samples (a metric may), and its "
                "cost would belong to no answer: name a task whose scorer asks"
            )
        return self.samples[name]

    def note_solving(self, solving: bool) -> None:
        """Note whether what is asked from now on is part of the current sample's answer."""
        self.now.solving = solving

    def ending(self, ask: Ask) -> Ask:
        """Return `ask`, whose errors that no sample is to blame for end the run (`broken`)."""

        async def guarded(messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
            try:
                if not self.broken.done():
                    return await ask(messages, tools, config)
            except OF_A_SAMPLE:
                raise
            except Exception as error:  # noqa: BLE001  (told by who runs it)
                if not self.broken.done():
                    self.broken.set_exception(error)
            # Raised here, it would be written down as each sample's error, a second for each.
            await asyncio.Event().wait()
            raise AssertionError("the run is cancelled before this")

        return guarded


@dataclass
class ScoredModel:
    """The model that is scored; `weights` are those that must answer."""

    run: Run
    endpoint: Endpoint
    sampling: SamplingConfig
    weights: str

    async def ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        """Return the answer to Inspect's messages."""
        said = self.run.now
        if not said.solving:
            raise GateFailed("task gate: the task's scorer asks the model that it scores")
        place = said.model.next()
        seed = said.seed if place == 0 else derive_seed(said.seed, "call", place)
        prompt = _prompt(messages, tools, config, self.sampling, seed)
        answer = await _asked(self.endpoint, prompt)
        parts = (turn["content"] for turn in prompt.messages)
        check_answer(answer, parts, self.weights, of=self.run.current())
        said.model.answers.append(answer)
        return answer


@dataclass
class GraderModel:
    """The model that a task's scorer (or its solver) asks in its role `grader`."""

    run: Run
    endpoint: Endpoint
    max_tokens: int

    async def ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        """Return the grader's answer to Inspect's messages."""
        said = self.run.now
        seed = derive_seed(said.seed, "grade", said.grader.next())
        sampling = SamplingConfig(temperature=0, max_tokens=self.max_tokens)
        answer = await _asked(self.endpoint, _prompt(messages, tools, config, sampling, seed))
        said.grader.answers.append(answer)
        return answer


def _prompt(
    messages: Sequence[Any], tools: Sequence[Any], config: Any, sampling: SamplingConfig, seed: int
) -> Prompt:
    """Return a request of Inspect's; its own settings go before `sampling`."""
    own = config.model_dump(exclude_none=True)
    chat = turns(messages)
    other = sorted(own.keys() - FOLLOWED - OF_INSPECT)
    roles = sorted({turn["role"] for turn in chat} - set(ROLES))
    if tools or other or roles:
        what = [*(["tools"] if tools else []), *other, *roles]
        raise GateFailed(
            f"task gate: the task asks the model with {', '.join(what)}, which cells are not "
            "served with"
        )
    settings = sampling.model_dump() | {name: own[name] for name in FOLLOWED & own.keys()}
    return Prompt(messages=tuple(chat), seed=seed, **settings)


async def _asked(endpoint: Endpoint, prompt: Prompt) -> Answer:
    try:
        (answer,) = await endpoint.ask([prompt])
    except AskingStopped as stopped:
        if isinstance(stopped.why, OF_A_SAMPLE):
            raise stopped.why from stopped
        raise
    return answer
