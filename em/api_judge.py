"""A judge behind an OpenAI-compatible address: the first token's probabilities, as published.

Knows nothing of what is judged, and nothing of servers that this project starts.
"""

import asyncio
import math
import os
from collections.abc import Sequence

from pydantic import BaseModel, Field, ValidationError

from em.judging import WORD_TOKENS, JudgeCallFailed, JudgeUnavailable, Reading

TOP_LOGPROBS = 20  # the most that the OpenAI API gives
MAX_RETRIES = 5  # by the client, with growing waits, for 408, 409, 429, 5xx and broken connections
START_RETRIES = 2  # a person waits for the first call, which only asks whether somebody is there
TIMEOUT_S = 60.0
NO_KEY = "none"  # for servers that need no key; the client refuses an empty one
SEED = 0


class _Candidate(BaseModel):
    token: str
    logprob: float = Field(le=0.01)  # servers round; NaN is refused too


class _Token(_Candidate):
    top_logprobs: list[_Candidate]


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None

    @property
    def tokens(self) -> list[_Token]:
        """What was said, where the server gives candidates for its first token; else nothing."""
        tokens = (self.logprobs and self.logprobs.content) or []
        return tokens if tokens and tokens[0].top_logprobs else []


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class JudgeReplyBad(JudgeUnavailable):
    """One reply is not in the format; a judge that answers so at the start is none."""


class ApiReader:
    """Reads numbers from the first token's 20 likeliest, at temperature 0 (Betley et al.)."""

    def __init__(
        self,
        *,
        url: str,
        model: str,
        key_env: str,
        concurrency: int,
        max_retries: int = MAX_RETRIES,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Speak to `model` at the base address `url`; the key is in the environment `key_env`."""
        try:
            from openai import AsyncOpenAI  # half a second
        except ImportError as error:
            raise ValueError(f"a judge with 'api' needs the extra 'serve': {error}") from error
        self._url, self._model, self._key_env = url, model, key_env
        self._tries = max_retries + 1
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get(key_env) or NO_KEY,
            max_retries=max_retries,
            timeout=timeout_s,
        )
        self._slots = asyncio.Semaphore(concurrency)

    async def check(self) -> None:
        """Prove that the judge answers, and that its numbers are single tokens.

        Raises ValueError where it refuses us, gives no log-probabilities or splits digits (the rule
        would be silently wrong), JudgeUnavailable where it does not answer.
        """
        try:
            choice = await self._call(
                "Repeat this number exactly and write nothing else: 100", 4, START_RETRIES
            )
        except JudgeCallFailed as error:
            raise ValueError(
                f"the judge {self._model} at {self._url} refuses a request for log-probabilities: "
                f"{error}"
            ) from error
        tokens = [token.token for token in choice.tokens]
        if not tokens:
            raise ValueError(f"the judge {self._model} at {self._url} gives no log-probabilities")
        if len(tokens) > 1 and tokens[0].strip() in ("1", "10"):
            raise ValueError(
                f"the judge {self._model} at {self._url} writes 100 as the tokens {tokens}: one "
                "token does not hold its number; use 'pool' or 'model', which read digit by digit"
            )

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        """Return a reading for each prompt; one call each, `concurrency` at a time."""
        try:
            async with asyncio.TaskGroup() as group:  # ends the others where one finds no judge
                tasks = [group.create_task(self._read_one(prompt)) for prompt in prompts]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _read_one(self, prompt: str) -> Reading | JudgeCallFailed:
        try:
            choice = await self._call(prompt, WORD_TOKENS)
        except (JudgeCallFailed, JudgeReplyBad) as failure:
            return JudgeCallFailed(str(failure))
        if not choice.tokens:
            return JudgeCallFailed("the reply has no log-probabilities")
        first = choice.tokens[0]
        numbers: dict[int, float] = {}
        for top in first.top_logprobs:
            # " 42" and "42" are two tokens for one number.
            text = top.token.strip()
            if text.isascii() and text.isdigit() and int(text) <= 100:
                numbers[int(text)] = numbers.get(int(text), 0.0) + math.exp(top.logprob)
        return Reading(numbers=numbers, reply=choice.message.content or first.token)

    async def _call(self, prompt: str, max_tokens: int, retries: int | None = None) -> _Choice:
        import openai

        tries = self._tries if retries is None else min(retries + 1, self._tries)
        try:
            async with self._slots:
                client = self._client.with_options(max_retries=tries - 1)
                reply = await client.chat.completions.with_raw_response.create(
                    model=self._model,
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=max_tokens,
                    temperature=0,
                    logprobs=True,
                    top_logprobs=TOP_LOGPROBS,
                    seed=SEED,
                )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise JudgeCallFailed(f"the judge refused this prompt: {error}") from error
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise ValueError(
                f"the judge {self._model} at {self._url} refuses us: {error}. Check 'api', "
                f"'api_model' and the key in the environment variable {self._key_env}"
            ) from error
        except openai.OpenAIError as error:
            raise JudgeUnavailable(
                f"the judge {self._model} at {self._url} does not answer after "
                f"{tries} tries: {error}"
            ) from error
        # The client builds its types without checking them.
        try:
            return _Completion.model_validate_json(reply.content).choices[0]
        except ValidationError as error:
            raise JudgeReplyBad(
                f"the judge {self._model} at {self._url} does not reply in the OpenAI format: "
                f"{error}"
            ) from error
