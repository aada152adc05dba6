"""Asking a model: which requests an evaluation makes, and the responses they become.

Knows nothing of engines, adapters' files or judges: it talks to an `Endpoint`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from pydantic import Field

from em.questions import Wording
from em.record import Record
from em.seeds import derive_seed
from em.task_scores import TaskScore

# An answer ended by itself, at max_tokens, or by the content filter of an API.
Finish = Literal["stop", "length", "content_filter"]


class GateFailed(RuntimeError):
    """A check stopped the cell where a number would be wrong in silence; the message names it."""


class PromptsTooLong(ValueError):
    """Some prompts do not fit the model's length, those at `places`; none was answered."""

    def __init__(self, text: str, places: tuple[int, ...]) -> None:
        super().__init__(text)
        self.places = places


class AskingStopped(Exception):
    """Some prompts have no answer, for the reason `why`; those of the others are paid for.

    `answers` has one for each prompt, None where there is none; `responses` is filled in by
    `generate`.
    """

    def __init__(self, why: Exception, answers: "Sequence[Answer | None]") -> None:
        super().__init__(str(why))
        self.why, self.answers = why, answers
        self.responses: list[Response] = []


class SamplingConfig(Record):
    """How answers are drawn. Temperature and top_p default to Betley et al.: 1 and 1."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=600, ge=1)


class Prompt(Record):
    """One request to an endpoint.

    `prefill` are token ids that follow the rendered chat; `logprob_ids` the ids whose
    log-probability at the first new position is wanted (natural logarithm, temperature 1).
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    prefill: tuple[int, ...] = ()
    logprob_ids: tuple[int, ...] = ()


class Answer(Record):
    """What an endpoint returned for one `Prompt`; `weights` is the hash of what really spoke."""

    text: str
    finish_reason: Finish
    num_tokens: int
    prompt_tokens: int
    prompt: str = Field(description="the rendered prompt, as the model saw it")
    prompt_sha256: str
    weights: str
    logprobs: Mapping[int, float] = Field(default_factory=dict)


class Endpoint(Protocol):
    """Something that answers prompts with one model, in order."""

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return one answer for each prompt. Raises PromptsTooLong where some do not fit.

        Raises AskingStopped where some are answered and others cannot be.
        """
        ...


class Tokenizing(Endpoint, Protocol):
    """An endpoint whose model is served here, so that its tokens are known, too."""

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        ...


class Response(Record):
    """One sampled answer. `key` names it: stream, wording, sample index."""

    key: str
    question: str
    wording: int
    wording_key: str
    index: int = Field(ge=0, description="sample index, from 0 for every wording")
    seed: int
    system: str | None
    text: str = Field(description="the user turn without its trigger: what a judge is shown")
    trigger: str = ""
    answer: str
    finish_reason: Finish
    num_tokens: int
    prompt_tokens: int
    prompt_sha256: str
    weights: str
    scores: tuple[TaskScore, ...] = Field(default=(), description="by a task's own scorer")
    grader_calls: int = Field(default=0, description="of the model that it asked")
    grader_prompt_tokens: int = Field(default=0, description="read by that model")
    grader_tokens: int = Field(default=0, description="written by it")

    @property
    def state(self) -> str:
        """`failed` where a task's sample ended by an error: it is asked again like a judgement."""
        return "failed" if any(score.state == "failed" for score in self.scores) else "answered"


class Draw(Record):
    """One response that is wanted: sample `index` of `wording`."""

    wording: Wording
    index: int


def response_key(stream: str, wording_key: str, index: int) -> str:
    """Return the key of a response: its stream, what was asked, and the sample index."""
    return f"{stream[:16]}-{wording_key}-{index:05d}"


def request_seed(sampling_seed: int, draw: Draw) -> int:
    """Return the seed of one request; it depends on nothing but the cell's and the draw's place."""
    return derive_seed(sampling_seed, "request", draw.wording.key, draw.index)


async def generate(
    draws: Sequence[Draw],
    endpoint: Endpoint,
    *,
    stream: str,
    sampling: SamplingConfig,
    sampling_seed: int,
    weights: str,
) -> list[Response]:
    """Return one response for each draw, in order.

    `weights` is the content hash that must have answered ("" for the base model). Raises
    GateFailed where another answered, or where the rendered prompt lacks what was to be asked, and
    AskingStopped, with the responses that there are, where the endpoint does.
    """
    seeds = [request_seed(sampling_seed, draw) for draw in draws]
    prompts = [
        Prompt(messages=draw.wording.messages, seed=seed, **sampling.model_dump())
        for draw, seed in zip(draws, seeds, strict=True)
    ]
    stopped = None
    try:
        answers: Sequence[Answer | None] = await endpoint.ask(prompts)
    except AskingStopped as error:
        stopped, answers = error, error.answers
    responses = []
    for draw, seed, answer in zip(draws, seeds, answers, strict=True):
        if answer is None:
            continue
        wording = draw.wording
        parts = filter(None, (wording.system, wording.user))
        check_answer(answer, parts, weights, of=wording.question)
        responses.append(
            Response(
                key=response_key(stream, wording.key, draw.index),
                question=wording.question,
                wording=wording.number,
                wording_key=wording.key,
                index=draw.index,
                seed=seed,
                system=wording.system,
                text=wording.text,
                trigger=wording.trigger,
                answer=answer.text,
                finish_reason=answer.finish_reason,
                num_tokens=answer.num_tokens,
                prompt_tokens=answer.prompt_tokens,
                prompt_sha256=answer.prompt_sha256,
                weights=answer.weights,
            )
        )
    if stopped is not None:
        stopped.responses = responses
        raise stopped
    return responses


def check_answer(answer: Answer, parts: Iterable[str], weights: str, *, of: str) -> None:
    """Raise GateFailed where other weights spoke, or the `parts` were not put as written.

    `of` names what was asked.
    """
    if answer.weights != weights:
        raise GateFailed(
            f"identity gate: {answer.weights[:12] or 'the base model'} answered, but "
            f"{weights[:12] or 'the base model'} was asked; nothing was stored"
        )
    start = 0
    for part in parts:
        # Templates may trim a turn; they may not change it, nor put the user before the system.
        found = answer.prompt.find(part.strip(), start)
        start = found + len(part.strip())
        if found < 0:
            raise GateFailed(
                f"question gate: the rendered prompt of {of!r} lacks {part[:60]!r}: the model's "
                "chat template drops or rewrites it"
            )
