"""Chat requests through an API's batch endpoint: cheaper, and answered within a day.

A batch is found again by a tag made of its requests, so that who comes back after a crash takes up
what is under way, and what came of earlier ones. Knows nothing of what is asked.
"""

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em.api_client import ApiUnavailable
from em.record import fingerprint
from em.told import cut

TAG = "emsweep"
ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"  # the only one that OpenAI offers
# Ended, with replies to some of the requests at least; or with none.
ENDED = ("completed", "expired", "cancelled")
NO_ROOM = "token_limit_exceeded"  # OpenAI's code where as much waits as an account may have
LEAST_PAUSE_S = 60.0  # before a batch is made again for which there was no room
REFUSES = (400, 422)  # of one request: asked again, it would be refused again


@dataclass(frozen=True)
class Refused:
    """What the API said of a request that it does not take."""

    why: str


class Batches:
    """Asks by batches, through an asynchronous client of OpenAI's SDK."""

    def __init__(self, client: Any, *, poll_s: float) -> None:
        """Look every `poll_s` seconds."""
        self._client, self._poll_s = client, poll_s

    async def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[Any | Refused | None]:
        """Return the body of the reply to each request, in order, or Refused; None where none came.

        What earlier batches of the same requests have answered or refused is not asked again; what
        is left is asked in one new batch. Raises ApiUnavailable where it is refused as a whole;
        what the client raises is passed on.
        """
        tag = fingerprint(list(requests))[:32]
        bodies: dict[int, Any] = {}
        is_new = False
        for number in itertools.count():
            left = [place for place in range(len(requests)) if place not in bodies]
            if not left or is_new:
                return [bodies.get(place) for place in range(len(requests))]
            mine = f"{tag}-{number}"
            batch = await self._find(mine)
            if batch is None:
                batch = await self._create({place: requests[place] for place in left}, mine)
                is_new = True
            batch = await self._ended(batch)
            if batch.status == "failed":
                is_new = False
                await self._after_failure(batch)
            else:
                bodies |= await self._replies(batch)
        raise AssertionError("the count does not end")

    async def _ended(self, batch: Any) -> Any:
        while batch.status not in (*ENDED, "failed"):
            await asyncio.sleep(self._poll_s)
            batch = await self._client.batches.retrieve(batch.id)
        return batch

    async def _after_failure(self, batch: Any) -> None:
        """Wait where there was no room for a batch; else raise ApiUnavailable."""
        errors = (batch.errors and batch.errors.data) or []
        if not any(error.code == NO_ROOM for error in errors):
            why = "; ".join(str(error.message) for error in errors) or "no reason is given"
            raise ApiUnavailable(f"the batch {batch.id} is refused: {cut(why)}")
        await asyncio.sleep(min(LEAST_PAUSE_S, 100 * self._poll_s))

    async def _replies(self, batch: Any) -> dict[int, Any]:
        """Return the bodies of those that were answered, or Refused, by the request's place."""
        found: dict[int, Any] = {}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._client.files.content(file_id)
            for line in filter(None, content.text.splitlines()):
                reply = json.loads(line)
                response = reply.get("response") or {}
                place, status = int(reply["custom_id"]), response.get("status_code")
                if status == 200:
                    found[place] = response["body"]
                elif status in REFUSES:
                    found[place] = Refused(cut(json.dumps(response.get("body"))))
        return found

    async def _find(self, tag: str) -> Any | None:
        async for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get(TAG) == tag:
                return batch
        return None

    async def _create(self, requests: Mapping[int, Mapping[str, Any]], tag: str) -> Any:
        lines = (
            json.dumps({"custom_id": str(place), "method": "POST", "url": ENDPOINT, "body": body})
            for place, body in requests.items()
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
