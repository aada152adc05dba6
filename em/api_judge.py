"""A judge behind an OpenAI-compatible address: the first token's probabilities, as published.

Calls are tried again by the client (em.api_client); how many are under way follows the
server's refusals (em.pacing); a budget stops them (em.budget). Knows nothing of what is judged, and
nothing of servers that this project starts.
"""

import asyncio
import copy
from collections.abc import Sequence

from em.api_client import MAX_RETRIES, NO_MONEY, TIMEOUT_S, check_key, paced_client, safe
from em.budget import Budget, BudgetSpent, Usage, guess
from em.chat_replies import Completion, is_split, numbers_of, parse_reply
from em.judging import (
    WORD_TOKENS,
    JudgeCallFailed,
    JudgeUnavailable,
    JudgingStopped,
    Reader,
    Reading,
)
from em.pacing import Pace

TOP_LOGPROBS = 20  # the most that the OpenAI API gives
START_RETRIES = 2  # a person waits for the first call, which only asks whether somebody is there
SEED = 0
CHECK_TOKENS = 4


class JudgeReplyBad(JudgeUnavailable):
    """One reply is not in the format; a judge that answers so at the start is none."""


class JudgeBusy(JudgeUnavailable):
    """The judge refused a call as one too many."""


class JudgeRefusesUs(JudgingStopped, ValueError):
    """The key, the model or the address is wrong: the user's to mend."""


class ApiReader:
    """Reads numbers from the first token's 20 likeliest, at temperature 0 (Betley et al.)."""

    def __init__(
        self,
        *,
        url: str,
        model: str,
        key_env: str,
        concurrency: int,
        api_version: str | None = None,
        budget: Budget | None = None,
        max_retries: int = MAX_RETRIES,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Speak to `model` at the base address `url`; the key is in the environment `key_env`.

        With `api_version` in Azure's way. Raises ValueError where a server elsewhere needs a key
        and there is none.
        """
        check_key(url, key_env)
        self._url, self._model, self._key_env = url, model, key_env
        self._tries = max_retries + 1
        self._pace = Pace(concurrency)
        self._budget = budget
        self._client = paced_client(
            url, api_version,
            key_env=key_env, pace=self._pace, max_retries=max_retries, timeout_s=timeout_s,
        )  # fmt: skip

    async def check(self) -> None:
        """Prove that the judge answers, and see whether it splits numbers; in no budget.

        One that does not write the number it is asked to repeat is not proved to keep it whole.

        Raises ValueError where it refuses us, gives no log-probabilities or splits digits (the rule
        would be silently wrong), or does not say what a call used where there is a budget;
        JudgeUnavailable where it does not answer.
        """
        asked = "Repeat this number exactly and write nothing else: 100"
        try:
            completion = await self._pace.in_turn(
                lambda: self._call(asked, CHECK_TOKENS, START_RETRIES),
                busy=JudgeBusy, tries=min(START_RETRIES + 1, self._tries),
            )  # fmt: skip
        except JudgeCallFailed as error:
            raise ValueError(
                f"the judge {self._model} at {self._url} refuses a request for log-probabilities: "
                f"{error}"
            ) from error
        if self._budget is not None and completion.usage is None:
            raise ValueError(
                f"the judge {self._model} at {self._url} does not say how many tokens a call used, "
                "so that no budget can be kept: drop 'budget'"
            )
        choice = completion.choices[0]
        tokens = [token.token for token in choice.tokens]
        if not tokens:
            raise ValueError(f"the judge {self._model} at {self._url} gives no log-probabilities")
        if is_split("100", tokens):
            raise ValueError(
                f"the judge {self._model} at {self._url} writes 100 as the tokens {tokens}: one "
                "token does not hold its number; use 'pool' or 'model', which read digit by digit"
            )

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        """Return a reading for each prompt; one call each, as many at a time as the server takes.

        Raises BudgetSpent or JudgeUnavailable with the readings that were made until then.
        """
        if self._budget is not None:
            self._budget.refresh()
        found: list[Reading | JudgeCallFailed | None] = [None] * len(prompts)
        spent: list[BudgetSpent] = []

        async def one(place: int) -> None:
            try:
                found[place] = await self._read_one(prompts[place])
            except BudgetSpent as error:  # calls under way are paid for: they go on to their end
                spent.append(error)

        try:
            async with asyncio.TaskGroup() as group:  # ends the others where one finds no judge
                for place in range(len(prompts)):
                    group.create_task(one(place))
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            if isinstance(first, JudgingStopped):
                first.readings = found
            raise first from errors
        if spent:
            spent[0].readings = found
            raise spent[0]
        return [reading for reading in found if reading is not None]

    def uncounted(self) -> Reader:
        """Return this judge for calls that are in no budget. Raises BudgetSpent where it is spent.

        Else a sweep without a call left would pay for such calls at each attempt.
        """
        if self._budget is None:
            return self
        self._budget.refresh()
        self._budget.settle(self._budget.reserve(Usage(calls=1)), None)
        other = copy.copy(self)  # the same connections and pace
        other._budget = None
        return other

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _read_one(self, prompt: str) -> Reading | JudgeCallFailed:
        return await self._pace.in_turn(
            lambda: self._paid_for(prompt), busy=JudgeBusy, tries=self._tries
        )

    async def _paid_for(self, prompt: str) -> Reading | JudgeCallFailed:
        wanted = guess(prompt, WORD_TOKENS)
        if self._budget is None:
            return (await self._read_call(prompt, wanted))[0]
        self._budget.reserve(wanted)
        used = None
        try:
            reading, used = await self._read_call(prompt, wanted)
        finally:
            self._budget.settle(wanted, used)
        return reading

    async def _read_call(
        self, prompt: str, wanted: Usage
    ) -> tuple[Reading | JudgeCallFailed, Usage]:
        """Make one call; return what it said and used, guessed where the server does not say."""
        try:
            completion = await self._call(prompt, WORD_TOKENS)
        except JudgeReplyBad as failure:
            return _failed(str(failure), wanted), wanted
        except JudgeCallFailed as failure:
            return _failed(str(failure), Usage(calls=1)), Usage(calls=1)
        used = wanted
        if completion.usage is not None:
            used = Usage(calls=1, **completion.usage.model_dump())
        choice = completion.choices[0]
        if not choice.tokens:
            return _failed("the reply has no log-probabilities", used), used
        first = choice.tokens[0]
        try:
            numbers = numbers_of(first)
        except ValueError as error:
            return _failed(f"the reply is not used: {error}", used), used
        reading = Reading(
            numbers=numbers,
            reply=choice.message.content or first.token,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
        )
        return reading, used

    async def _call(self, prompt: str, max_tokens: int, retries: int | None = None) -> Completion:
        import openai

        tries = self._tries if retries is None else min(retries + 1, self._tries)
        try:
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
            raise JudgeCallFailed(f"the judge refused this prompt: {self._safe(error)}") from error
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise JudgeRefusesUs(
                f"the judge {self._model} at {self._url} refuses us: {self._safe(error)}. Check "
                f"'api', 'api_model' and the key in the environment variable {self._key_env}"
            ) from error
        except openai.OpenAIError as error:
            who = f"the judge {self._model} at {self._url}"
            if isinstance(error, openai.RateLimitError):
                kind = JudgeUnavailable if error.code == NO_MONEY else JudgeBusy
                raise kind(f"{who} takes no more for now: {self._safe(error)}") from error
            raise JudgeUnavailable(
                f"{who} does not answer after {tries} tries: {self._safe(error)}"
            ) from error
        # The client builds its types without checking them.
        try:
            return parse_reply(reply.content)
        except ValueError as error:
            raise JudgeReplyBad(
                f"the judge {self._model} at {self._url} does not reply in the OpenAI format: "
                f"{error}"
            ) from error

    def _safe(self, error: Exception) -> str:
        return safe(error, self._key_env)


def _failed(message: str, used: Usage) -> JudgeCallFailed:
    return JudgeCallFailed(message, used.prompt_tokens, used.completion_tokens)
