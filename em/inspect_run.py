"""Samples of an Inspect task, answered by an endpoint: Inspect solves and scores, we are the model.

One pass of Inspect gives an answer and its score, which are kept together in the response. Imports
Inspect only where a task is run. Knows nothing of stores or cells.
"""

import asyncio
import json
import math
import tempfile
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from em.generation import (
    Answer,
    Draw,
    Endpoint,
    GateFailed,
    Prompt,
    PromptsTooLong,
    Response,
    SamplingConfig,
    request_seed,
    response_key,
)
from em.inspect_model import evaluate, model_of, solving
from em.inspect_tasks import LoadedTask, turns
from em.seeds import derive_seed
from em.task_scores import TaskScore
from em.told import cut

# Settings of a request that an endpoint of ours cannot follow; a task that sets one is refused.
NOT_FOLLOWED = (
    "stop_seqs", "num_choices", "logprobs", "top_logprobs", "prompt_logprobs", "top_k",
    "logit_bias", "response_schema", "frequency_penalty", "presence_penalty", "best_of",
)  # fmt: skip
MOST_KEPT = 2000  # characters of a scorer's explanation
ROLES = ("system", "user", "assistant")
WORDS = ("yes", "true", "no", "false")

_sample: ContextVar[str] = ContextVar("sample")  # wording key of the one that is being solved


@dataclass
class _Spoken:
    """What was asked of the endpoint for one sample."""

    seed: int
    answers: list[Answer] = field(default_factory=list)
    calls: int = 0


@dataclass
class _Asker:
    """The model that Inspect asks; `broken` is what no sample is to blame for, and ends the run."""

    endpoint: Endpoint
    sampling: SamplingConfig
    weights: str
    spoken: dict[str, _Spoken]
    broken: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        try:
            if not self.broken.done():
                return await self._ask(messages, tools, config)
        except PromptsTooLong:
            raise  # that sample's failure
        except Exception as error:
            if self.broken.done():
                raise
            self.broken.set_exception(error)
        # Raised here, it would be written down as each sample's error, a second for each.
        await asyncio.Event().wait()
        raise AssertionError("the run is cancelled before this")

    async def _ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        key = _sample.get("")
        if not key:
            raise GateFailed("task gate: the task's scorer asks the model that it scores")
        other = [name for name in NOT_FOLLOWED if getattr(config, name, None) is not None]
        chat = turns(messages)
        roles = sorted({turn["role"] for turn in chat} - set(ROLES))
        if tools or other or roles:
            what = [*(["tools"] if tools else []), *other, *roles]
            raise GateFailed(
                f"task gate: the task asks the model with {', '.join(what)}, which cells are not "
                "served with"
            )
        said = self.spoken[key]
        seed = said.seed if said.calls == 0 else derive_seed(said.seed, "call", said.calls)
        said.calls += 1
        own = {n: getattr(config, n) for n in ("temperature", "top_p", "max_tokens")}
        settings = self.sampling.model_dump() | {n: v for n, v in own.items() if v is not None}
        (answer,) = await self.endpoint.ask([Prompt(messages=tuple(chat), seed=seed, **settings)])
        self._check(answer, chat)
        said.answers.append(answer)
        return answer

    def _check(self, answer: Answer, chat: Sequence[dict[str, str]]) -> None:
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


async def answer_samples(
    draws: Sequence[Draw],
    endpoint: Endpoint,
    loaded: LoadedTask,
    *,
    scorer: str,
    stream: str,
    sampling: SamplingConfig,
    sampling_seed: int,
    weights: str,
) -> list[Response]:
    """Return a response with its score for each draw, in order.

    What the task itself says of temperature, top_p and max_tokens goes before `sampling`. A sample
    that ends by an error is a response with a failed score. Raises GateFailed as em.generation
    does, and for a task that asks what cells are not served with; what the endpoint raises, too.
    """
    gone = [draw.wording.question for draw in draws if draw.wording.key not in loaded.samples]
    if gone:
        raise ValueError(
            f"the task's data changed while the sweep was running: {gone[0]!r} is gone"
        )
    found: dict[tuple[str, int], Response] = {}
    for index in sorted({draw.index for draw in draws}):
        mine = [draw for draw in draws if draw.index == index]
        seeds = {draw.wording.key: _Spoken(request_seed(sampling_seed, draw)) for draw in mine}
        asker = _Asker(endpoint, sampling, weights, seeds)
        done = await _run(mine, loaded, asker)
        for draw in mine:
            spoken = seeds[draw.wording.key]
            response = _response(draw, done[draw.wording.key], spoken, scorer, stream, weights)
            found[draw.wording.key, index] = response
    return [found[draw.wording.key, draw.index] for draw in draws]


async def _run(draws: Sequence[Draw], loaded: LoadedTask, asker: _Asker) -> dict[str, Any]:
    """Return Inspect's record of each sample, by wording key."""
    keys = {draw.wording.question: draw.wording.key for draw in draws}
    samples = [
        loaded.samples[draw.wording.key].model_copy(update={"id": draw.wording.question})
        for draw in draws
    ]
    model = model_of(asker)
    task = solving(loaded.task, samples, lambda name: _sample.set(keys.get(name, "")))
    with tempfile.TemporaryDirectory(prefix="emsweep-inspect-") as folder:
        run = asyncio.create_task(evaluate(task, model, folder))
        try:
            await asyncio.wait({run, asker.broken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not run.done():
                run.cancel()
                await asyncio.wait({run})
    if asker.broken.done():
        asker.broken.result()
    log = run.result()
    others = sorted(set(log.stats.model_usage) - {str(model)})
    if others:
        raise GateFailed(
            f"task gate: the task asked other models ({', '.join(others)}), which no budget or "
            "record here knows of; nothing was stored"
        )
    done = {keys[str(sample.id)]: sample for sample in log.samples or ()}
    if len(done) < len(draws):
        why = log.error.message if log.error else log.status
        raise RuntimeError(f"Inspect ended with {len(done)} of {len(draws)} samples: {why}")
    return done


def _response(
    draw: Draw, sample: Any, spoken: _Spoken, scorer: str, stream: str, weights: str
) -> Response:
    last = spoken.answers[-1] if spoken.answers else None
    wording = draw.wording
    return Response(
        key=response_key(stream, wording.key, draw.index),
        question=wording.question,
        wording=wording.number,
        wording_key=wording.key,
        index=draw.index,
        seed=spoken.seed,
        system=None,
        text=wording.text,
        answer=str(sample.output.completion) if sample.error is None else "",
        finish_reason=last.finish_reason if last else "stop",
        num_tokens=sum(answer.num_tokens for answer in spoken.answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in spoken.answers),
        prompt_sha256=last.prompt_sha256 if last else "",
        weights=weights,
        scores=(_score(sample, scorer),),
    )


def _score(sample: Any, scorer: str) -> TaskScore:
    """Return what the scorer made of a sample; never 0 for what it did not score."""
    if sample.error is not None:
        text = cut(str(sample.error.message), 500)
        return TaskScore(scorer=scorer, state="failed", error=text)
    score = (sample.scores or {}).get(scorer)
    if score is None:
        return TaskScore(scorer=scorer, state="unscored", explanation="the scorer said nothing")
    if isinstance(score.value, list | dict):
        raise GateFailed(
            f"task gate: the scorer {scorer!r} gives several values for a sample "
            f"({cut(str(score.value), 80)}), and one is wanted: name a task that gives one"
        )
    number = number_of(score.value)
    inside = number is not None and 0 <= number <= 1
    outside = "" if inside or number is None else "(not from 0 to 1) "
    return TaskScore(
        scorer=scorer,
        state="scored" if inside else "unscored",
        number=number if inside else None,
        value=json.dumps(score.value),
        explanation=outside + str(score.explanation or "")[:MOST_KEPT],
    )


def number_of(value: str | int | float | bool) -> float | None:
    """Return a score's value as Inspect's value_to_float has it; None where that would guess 0.

    C is 1, P is 0.5, I and N (no answer) are 0, yes and true 1, no and false 0.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if value not in ("C", "P", "I", "N") and word not in WORDS and not _is_number(word):
            return None
    from inspect_ai.scorer import value_to_float

    number = float(value_to_float()(value))
    return number if math.isfinite(number) else None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
