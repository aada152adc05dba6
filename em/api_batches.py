"""Chat requests through an API's batch endpoint: cheaper, and answered within a day.

A batch is found again by a tag made of its requests, so that who comes back after a crash takes up
the one that is under way. Knows nothing of what is asked.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from em.api_client import ApiUnavailable
from em.record import fingerprint
from em.told import cut

TAG = "emsweep"
ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"  # the only one that OpenAI offers
USELESS = ("failed", "expired", "cancelling", "cancelled")


class Batches:
    """Asks by batches, through an asynchronous client of OpenAI's SDK."""

    def __init__(self, client: Any, *, poll_s: float) -> None:
        """Look every `poll_s` seconds."""
        self._client, self._poll_s = client, poll_s

    async def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the body of the reply to each request, in order.

        Raises ApiUnavailable where the batch, or one of its requests, came to nothing; what the
        client raises is passed on.
        """
        tag = fingerprint(list(requests))[:32]
        batch = await self._find(tag) or await self._create(requests, tag)
        while batch.status != "completed":
            if batch.status in USELESS:
                raise ApiUnavailable(f"the batch {batch.id} is {batch.status}: {_why(batch)}")
            await asyncio.sleep(self._poll_s)
            batch = await self._client.batches.retrieve(batch.id)
        replies: dict[str, Any] = {}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._client.files.content(file_id)
            for line in filter(None, content.text.splitlines()):
                reply = json.loads(line)
                replies[reply["custom_id"]] = reply
        return [_body(replies.get(str(number)), batch.id) for number in range(len(requests))]

    async def _find(self, tag: str) -> Any | None:
        async for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get(TAG) == tag and batch.status not in USELESS:
                return batch
        return None

    async def _create(self, requests: Sequence[Mapping[str, Any]], tag: str) -> Any:
        lines = (
            json.dumps(
                {"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": request}
            )
            for number, request in enumerate(requests)
        )
        name, data = f"{TAG}-{tag}.jsonl", "\n".join(lines).encode()
        file = await self._client.files.create(
            file=(name, data, "application/jsonl"), purpose="batch"
        )
        once = self._client.with_options(max_retries=0)  # a lost reply would make a second one
        return await once.batches.create(
            input_file_id=file.id,
            endpoint=ENDPOINT,
            completion_window=WINDOW,
            metadata={TAG: tag},
        )


def _body(reply: Mapping[str, Any] | None, batch: str) -> Any:
    """Return what answered a request. Raises ApiUnavailable where nothing did."""
    response = (reply or {}).get("response") or {}
    if response.get("status_code") == 200:
        return response["body"]
    said = cut(json.dumps((reply or {}).get("error") or response.get("body") or "no reply"))
    raise ApiUnavailable(f"a request of the batch {batch} came to nothing: {said}")


def _why(batch: Any) -> str:
    errors = getattr(batch, "errors", None)
    data = (errors and errors.data) or []
    return cut("; ".join(str(error.message) for error in data) or "no reason is given")
