"""An OpenAI-compatible endpoint on this machine, spoken to as an `em` endpoint is.

With vLLM's additions to that API, by which log-probabilities of given tokens are asked for. Knows
nothing of what serves it.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from em.generation import Answer, Prompt

TOKEN_ID = "token_id:"  # what vLLM writes before an id, asked for ids in place of text
ANSWERS_WITHIN_S = 300.0


class HttpEndpoint:
    """One model behind `url` (…/v1), called `model` there. Prompts with a prefill are not asked."""

    def __init__(self, url: str, model: str, token: str) -> None:
        self._url, self._model, self._token = url, model, token
        # Whatever proxy the environment names is not between this machine and itself.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a request comes to. Raises OSError: nobody listens, or it was refused."""
        request = urllib.request.Request(
            f"{self._url}{path}",
            data=json.dumps({"model": self._model, **body}).encode(),
            headers={
                "Authorization": f"Bearer {self._token}", "Content-Type": "application/json"
            },
        )  # fmt: skip
        with self._opener.open(request, timeout=ANSWERS_WITHIN_S) as reply:
            told: dict[str, Any] = json.load(reply)
        return told

    def speaks(self) -> bool:
        """Whether one token is really completed, within ANSWERS_WITHIN_S."""
        try:
            told = self.post("/completions", {"prompt": "?", "max_tokens": 1, "seed": 0})
        except (ConnectionError, TimeoutError):
            return False
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionError | TimeoutError):
                return False
            raise
        return bool(told["choices"])

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return one answer for each prompt, in order. Raises OSError as `post` does."""
        return [await asyncio.to_thread(self._answer, prompt) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Answer:
        assert not prompt.prefill
        body: dict[str, Any] = prompt.model_dump(exclude={"prefill", "logprob_ids"})
        if prompt.logprob_ids:
            ids = {"logprob_token_ids": prompt.logprob_ids, "return_tokens_as_token_ids": True}
            body |= {"logprobs": True, **ids}
        told = self.post("/chat/completions", body)
        choice, used = told["choices"][0], told["usage"]
        return Answer(
            text=choice["message"]["content"] or "",
            finish_reason=choice["finish_reason"],
            num_tokens=used["completion_tokens"],
            prompt_tokens=used["prompt_tokens"],
            prompt="",
            prompt_sha256="",
            weights="",
            logprobs=_logprobs(choice, prompt.logprob_ids),
        )


def _logprobs(choice: Mapping[str, Any], ids: Sequence[int]) -> dict[int, float]:
    """Return the wanted log-probabilities at the first new position, by token id."""
    if not ids:
        return {}
    top = choice["logprobs"]["content"][0]["top_logprobs"]
    found = {int(one["token"].removeprefix(TOKEN_ID)): float(one["logprob"]) for one in top}
    return {number: found[number] for number in ids}
