"""An OpenAI-compatible server on this machine that says what a test wants, and notes what it hears.

Knows nothing of what a test looks for.
"""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_here import serving

KEY_ENV = "EMSWEEP_TEST_API_KEY"  # where clients of it find their key
Reply = tuple[int, Any]
HALF: Reply = (200, b'{"half": "a body"')  # announced as twice as long
CLOSES: Reply = (0, b"")  # no answer at all


@dataclass
class FakeServer:
    """An OpenAI-compatible server; `reply` maps a request and its number to what is sent back."""

    reply: Callable[[dict[str, Any], int], Reply] = lambda request, number: (500, {})
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After-Ms": "1"})
    sent: list[dict[str, str]] = field(default_factory=list)  # the requests' headers
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


@contextlib.contextmanager
def judge_server() -> Iterator[FakeServer]:
    """Serve on a free port of the loopback address until the block ends."""
    fake = FakeServer()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(request)
            fake.keys.append(self.headers["Authorization"])
            fake.sent.append({name.lower(): value for name, value in self.headers.items()})
            fake.paths.append(self.path)
            with lock:
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
            try:
                status, body = fake.reply(request, len(fake.requests))
            finally:
                with lock:
                    fake.at_once -= 1
            if (status, body) == CLOSES:
                self.close_connection = True
                return
            if self.path.split("?")[0] != fake.path:
                status, body = 404, {"error": {"message": f"no {self.path}"}}
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            plain = isinstance(body, bytes) and not body.startswith(b"{")
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            length = len(data) * (2 if (status, body) == HALF else 1)
            self.send_header("Content-Length", str(length))
            for name, value in fake.headers.items():  # by default, waits are not what is tested
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as address:
        fake.url = f"{address}/v1"
        yield fake


def costing(reply: Reply, prompt_tokens: int, completion_tokens: int = 1) -> Reply:
    """The reply with what it used."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return reply[0], reply[1] | {"usage": usage | {"total_tokens": sum(usage.values())}}


def says(*tokens: dict[str, float]) -> Reply:
    """A reply of one token for each mapping of candidates to probabilities, the first one said."""
    content = [
        {
            "token": next(iter(top)),
            "logprob": math.log(next(iter(top.values()))),
            "bytes": None,
            "top_logprobs": [
                {"token": token, "logprob": math.log(p), "bytes": None} for token, p in top.items()
            ],
        }
        for top in tokens
    ]
    text = "".join(next(iter(top)) for top in tokens)
    return completion({"content": content, "refusal": None}, text)


def completion(logprobs: Any, text: str) -> Reply:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "length"}
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": "judge"}
    return 200, head | {"choices": [choice]}
