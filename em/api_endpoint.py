"""A model behind an API that answers prompts: one call each, or all of them in one batch.

Who answered is told by the API alone: each reply names its model, and that must be the one asked.
Knows nothing of trainings, cells or stores.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from em.api_batches import Batches, Refused
from em.api_client import (
    MAX_RETRIES,
    TIMEOUT_S,
    ApiBusy,
    ApiRefusesUs,
    ApiUnavailable,
    check_key,
    paced_client,
    refused_or_away,
    safe,
)
from em.api_models import ApiChatConfig
from em.chat_replies import Part
from em.generation import Answer, AskingStopped, Finish, GateFailed, Prompt
from em.pacing import Pace
from em.told import first_mistake


class _Message(Part):
    content: str | None = None
    refusal: str | None = None


class _Choice(Part):
    message: _Message
    finish_reason: Finish


class _Usage(Part):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Reply(Part):
    model: str
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage


class PromptRefused(ValueError):
    """The API refuses to answer a prompt at all."""


STOPS = (GateFailed, PromptRefused, ApiRefusesUs, ApiUnavailable)


def _stops_all(error: Exception) -> bool:
    """Whether other prompts would fail by it, too."""
    return not isinstance(error, PromptRefused)


class ApiEndpoint:
    """One model of an API, by its name there. `weights` is the hash that stands for it."""

    def __init__(
        self,
        config: ApiChatConfig,
        *,
        model: str,
        weights: str,
        batch: bool = False,
        who: str = "model",
        max_retries: int = MAX_RETRIES,
        timeout_s: float = TIMEOUT_S,
        batch_poll_s: float = 30.0,
    ) -> None:
        """Open no connection yet. Raises ValueError where a key is needed and there is none.

        `who` it is in the sweep, for errors.
        """
        check_key(config.url, config.key_env, who=who, setting="key_env")
        self._config, self._model, self._weights = config, model, weights
        self._tries = max_retries + 1
        self._pace = Pace(config.concurrency)
        self._client = paced_client(
            config.url, None, key_env=config.key_env, pace=self._pace,
            max_retries=max_retries, timeout_s=timeout_s, what=f"a {who} behind an API",
        )  # fmt: skip
        self._batches = Batches(self._client, poll_s=batch_poll_s) if batch else None

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return one answer for each prompt, in order.

        Raises AskingStopped, with the answers that there are, because of GateFailed where another
        model answered, PromptRefused (of a prompt), ApiRefusesUs, or ApiUnavailable.
        """
        requests = [self._request(prompt) for prompt in prompts]
        answers: list[Answer | None] = [None] * len(prompts)
        why: list[Exception] = []

        async def one(place: int) -> None:
            try:
                answers[place] = await self._pace.in_turn(
                    lambda: self._answered_unless(why, prompts[place], requests[place]),
                    busy=ApiBusy, tries=self._tries,
                )  # fmt: skip
            except STOPS as error:  # calls under way are paid for: they go on to their end
                why.append(error)

        if self._batches is not None:
            why += await self._ask_in_batch(requests, prompts, answers)
        else:
            async with asyncio.TaskGroup() as group:
                for place in range(len(prompts)):
                    group.create_task(one(place))
        found = [answer for answer in answers if answer is not None]
        if why or len(found) < len(prompts):
            raise AskingStopped(next(filter(_stops_all, why), why[0]), answers)
        return found

    async def _ask_in_batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        prompts: Sequence[Prompt],
        answers: list[Answer | None],
    ) -> list[Exception]:
        """Fill in the answers of a batch; return why some have none."""
        assert self._batches is not None
        try:
            bodies = await self._guarded(self._batches.ask(requests))
            for place, body in enumerate(bodies):
                if body is not None and not isinstance(body, Refused):
                    answers[place] = self._answer(prompts[place], body)
        except STOPS as error:
            return [error]
        num = bodies.count(None)
        text = f"{self._where} came to nothing with {num} of {len(bodies)} requests of a batch"
        away: list[Exception] = [ApiUnavailable(text)] if num else []
        return away + [
            PromptRefused(f"{self._where} refuses a prompt: {body.why}")
            for body in bodies
            if isinstance(body, Refused)
        ]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": list(prompt.messages),
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "seed": prompt.seed,
        }

    async def _answered_unless(
        self, why: Sequence[Exception], prompt: Prompt, request: Mapping[str, Any]
    ) -> Answer | None:
        if any(map(_stops_all, why)):
            return None
        return self._answer(prompt, await self._reply(request))

    async def _reply(self, request: Mapping[str, Any]) -> Any:
        raw = await self._guarded(self._client.chat.completions.with_raw_response.create(**request))
        try:
            return json.loads(raw.content)
        except ValueError as error:
            raise ApiUnavailable(f"{self._where} replies with no JSON") from error

    async def _guarded(self, call: Any) -> Any:
        import openai

        try:
            return await call
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise PromptRefused(f"{self._where} refuses a prompt: {self._safe(error)}") from error
        except openai.OpenAIError as error:
            raise refused_or_away(error, self._where, self._config.key_env) from error

    def _answer(self, prompt: Prompt, body: Any) -> Answer:
        try:
            reply = _Reply.model_validate(body)
        except ValidationError as error:
            raise ApiUnavailable(
                f"{self._where} does not reply in the OpenAI format: {first_mistake(error)}"
            ) from error
        if reply.model != self._model:
            raise GateFailed(
                f"identity gate: {self._where} was asked for {self._model!r}, and "
                f"{reply.model!r} answered: name the dated one in its "
                "settings, as others move"
            )
        (choice, *_) = reply.choices
        text = "\n".join(message["content"] for message in prompt.messages)
        return Answer(
            text=choice.message.content or choice.message.refusal or "",
            finish_reason=choice.finish_reason,
            num_tokens=reply.usage.completion_tokens,
            prompt_tokens=reply.usage.prompt_tokens,
            prompt=text,  # as it was sent: an API does not show what its template makes of it
            prompt_sha256=hashlib.sha256(text.encode()).hexdigest(),
            weights=self._weights,
        )

    def _safe(self, error: Exception) -> str:
        return safe(error, self._config.key_env)

    @property
    def _where(self) -> str:
        return f"the API of {self._model} at {self._config.url}"
