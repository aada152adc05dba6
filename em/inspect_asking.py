"""What Inspect asks while it runs samples of a task: of the model that is scored, and of a grader.

Each call has a seed that hangs on its sample and its place alone, and is noted with its sample.
Knows nothing of Inspect's classes (see em.inspect_model), of stores or of cells.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
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
)
from em.inspect_tasks import turns
from em.seeds import derive_seed

# Settings of a request that an endpoint of ours cannot follow; a task that sets one is refused.
NOT_FOLLOWED = (
    "stop_seqs", "num_choices", "logprobs", "top_logprobs", "prompt_logprobs", "top_k",
    "logit_bias", "response_schema", "frequency_penalty", "presence_penalty", "best_of",
)  # fmt: skip
ROLES = ("system", "user", "assistant")

# What a single sample is to blame for; all else ends the run.
OF_A_SAMPLE = (PromptsTooLong, PromptRefused)

_solving: ContextVar[bool] = ContextVar("solving", default=False)


def note_solving(solving: bool) -> None:
    """Note, in this context, whether what is asked from now on is part of a sample's answer."""
    _solving.set(solving)


@dataclass
class Spoken:
    """What was asked for one sample, whose first call has `seed`."""

    seed: int
    answers: list[Answer] = field(default_factory=list)
    grades: list[Answer] = field(default_factory=list)
    calls: int = 0


@dataclass
class Run:
    """One run of Inspect: what was asked for each sample, by its id there, and what has ended it.

    `current` returns the id of the sample that is being worked on.
    """

    spoken: Mapping[str, Spoken]
    current: Callable[[], str]
    broken: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def ended_by(self, asking: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what `asking` returns; what no sample is to blame for ends the run (`broken`)."""
        try:
            if not self.broken.done():
                return await asking()
        except OF_A_SAMPLE:
            raise
        except Exception as error:
            if self.broken.done():
                raise
            self.broken.set_exception(error)
        # Raised here, it would be written down as each sample's error, a second for each.
        await asyncio.Event().wait()
        raise AssertionError("the run is cancelled before this")


@dataclass
class Cell:
    """The model that is scored, as Inspect asks it; `weights` are those that must answer."""

    run: Run
    endpoint: Endpoint
    sampling: SamplingConfig
    weights: str

    async def ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        """Return the answer to Inspect's messages."""
        return await self.run.ended_by(lambda: self._ask(messages, tools, config))

    async def _ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        if not _solving.get():
            raise GateFailed("task gate: the task's scorer asks the model that it scores")
        said = self.run.spoken[self.run.current()]
        seed = said.seed if said.calls == 0 else derive_seed(said.seed, "call", said.calls)
        said.calls += 1
        prompt = _prompt(messages, tools, config, self.sampling, seed)
        answer = await _asked(self.endpoint, prompt)
        self._check(answer, prompt.messages)
        said.answers.append(answer)
        return answer

    def _check(self, answer: Answer, chat: Sequence[Mapping[str, str]]) -> None:
        if answer.weights != self.weights:
            raise GateFailed(
                f"identity gate: {answer.weights[:12] or 'the base model'} answered, but "
                f"{self.weights[:12] or 'the base model'} was asked; nothing was stored"
            )
        start = 0
        for turn in chat:
            found = answer.prompt.find(turn["content"].strip(), start)
            start = found + len(turn["content"].strip())
            if found < 0:
                raise GateFailed(
                    f"question gate: the rendered prompt lacks {turn['content'][:60]!r} of the "
                    f"task's {turn['role']} turn: the model's chat template drops or rewrites it"
                )


@dataclass
class Grader:
    """The model that a task's scorer (or its solver) asks in its role `grader`."""

    run: Run
    endpoint: Endpoint
    max_tokens: int

    async def ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        """Return the grader's answer to Inspect's messages."""
        return await self.run.ended_by(lambda: self._ask(messages, tools, config))

    async def _ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        said = self.run.spoken[self.run.current()]
        seed = derive_seed(said.seed, "grade", len(said.grades))
        sampling = SamplingConfig(temperature=0, max_tokens=self.max_tokens)
        answer = await _asked(self.endpoint, _prompt(messages, tools, config, sampling, seed))
        said.grades.append(answer)
        return answer


def _prompt(
    messages: Sequence[Any], tools: Sequence[Any], config: Any, sampling: SamplingConfig, seed: int
) -> Prompt:
    """Return a request of Inspect's; its own settings go before `sampling`."""
    other = [name for name in NOT_FOLLOWED if getattr(config, name, None) is not None]
    chat = turns(messages)
    roles = sorted({turn["role"] for turn in chat} - set(ROLES))
    if tools or other or roles:
        what = [*(["tools"] if tools else []), *other, *roles]
        raise GateFailed(
            f"task gate: the task asks the model with {', '.join(what)}, which cells are not "
            "served with"
        )
    own = {n: getattr(config, n) for n in ("temperature", "top_p", "max_tokens")}
    settings = sampling.model_dump() | {n: v for n, v in own.items() if v is not None}
    return Prompt(messages=tuple(chat), seed=seed, **settings)


async def _asked(endpoint: Endpoint, prompt: Prompt) -> Answer:
    try:
        (answer,) = await endpoint.ask([prompt])
    except AskingStopped as stopped:
        if isinstance(stopped.why, OF_A_SAMPLE):
            raise stopped.why from stopped
        raise
    return answer
