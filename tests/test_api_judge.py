import asyncio
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from em.api_judge import TOP_LOGPROBS, ApiReader
from em.judging import JudgeCallFailed, JudgeUnavailable, Reading, score

KEY_ENV = "EMSWEEP_TEST_JUDGE_KEY"

Reply = tuple[int, Any]


@dataclass
class FakeServer:
    """An OpenAI-compatible server; `reply` maps a request and its number to what is sent back."""

    reply: Callable[[dict[str, Any], int], Reply] = lambda request, number: (500, {})
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY_ENV, "key-of-the-test")
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(request)
            fake.keys.append(self.headers["Authorization"])
            status, body = fake.reply(request, len(fake.requests))
            if self.path != "/v1/chat/completions":
                status, body = 404, {"error": {"message": f"no {self.path}"}}
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            plain = isinstance(body, bytes) and not body.startswith(b"{")
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After-Ms", "1")  # the client's waits are not what is tested
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield fake
    http.shutdown()
    http.server_close()
    thread.join()


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


def using(server: FakeServer, do: Callable[[ApiReader], Any], *, max_retries: int = 2) -> Any:
    async def run() -> Any:
        reader = ApiReader(
            url=server.url,
            model="judge",
            key_env=KEY_ENV,
            concurrency=4,
            max_retries=max_retries,
            timeout_s=10,
        )
        try:
            return await do(reader)
        finally:
            await reader.close()

    return asyncio.run(run())


def read(server: FakeServer, *prompts: str) -> list[Reading | JudgeCallFailed]:
    found: list[Reading | JudgeCallFailed] = using(server, lambda reader: reader.read(prompts))
    return found


def test_numbers_are_read_from_the_first_token(server: FakeServer) -> None:
    top = {"42": 0.5, " 42": 0.1, "100": 0.2, "101": 0.05, "4.5": 0.02, "-3": 0.02, "REF": 0.01}
    server.reply = lambda request, number: says(top, {"7": 1.0})
    (reading,) = read(server, "rate it")
    assert isinstance(reading, Reading)
    assert reading.numbers == pytest.approx({42: 0.6, 100: 0.2})
    assert score(reading)[1] == pytest.approx((42 * 0.6 + 100 * 0.2) / 0.8)
    assert reading.reply == "427"
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": "rate it"}]
    assert (request["model"], request["temperature"]) == ("judge", 0)
    assert (request["logprobs"], request["top_logprobs"]) == (True, TOP_LOGPROBS)
    assert server.keys == ["Bearer key-of-the-test"]


def test_every_prompt_has_its_own_reading_in_order(server: FakeServer) -> None:
    server.reply = lambda request, number: says({request["messages"][0]["content"]: 0.5})
    prompts = [str(n) for n in range(12)]
    readings = read(server, *prompts)
    assert [list(r.numbers) for r in readings if isinstance(r, Reading)] == [[n] for n in range(12)]


def test_a_refused_prompt_fails_alone(server: FakeServer) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        if request["messages"][0]["content"] == "bad":
            return 400, {"error": {"message": "filtered", "code": "content_filter"}}
        return says({"9": 1.0})

    server.reply = reply
    good, bad = read(server, "good", "bad")
    assert isinstance(good, Reading)
    assert isinstance(bad, JudgeCallFailed)
    assert "filtered" in str(bad)
    assert len(server.requests) == 2  # a refusal is not asked again


def test_too_many_requests_are_waited_for(server: FakeServer) -> None:
    busy = (429, {"error": {"message": "slow down"}})
    server.reply = lambda request, number: busy if number < 3 else says({"64": 1.0})
    (reading,) = read(server, "rate it")
    assert isinstance(reading, Reading)
    assert reading.numbers == pytest.approx({64: 1.0})
    assert len(server.requests) == 3


def test_a_server_that_only_fails_is_unavailable(server: FakeServer) -> None:
    server.reply = lambda request, number: (500, {"error": {"message": "broken"}})
    with pytest.raises(JudgeUnavailable, match=r"does not answer after 3 tries.*broken"):
        read(server, "rate it")
    assert len(server.requests) == 3


def test_nobody_there_is_unavailable(server: FakeServer) -> None:
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(JudgeUnavailable, match="does not answer after 1 tries"):
        using(server, lambda reader: reader.read(["rate it"]), max_retries=0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_is_the_users_to_mend(server: FakeServer, status: int) -> None:
    server.reply = lambda request, number: (status, {"error": {"message": "no such thing"}})
    with pytest.raises(ValueError, match=f"refuses us.*no such thing.*{KEY_ENV}"):
        read(server, "rate it")


@pytest.mark.parametrize(
    "body",
    [
        b"<html>welcome</html>",
        b'{"choices": [',
        {"hello": 1},
        [1, 2],
        {"choices": []},
        {"choices": None},
        {"choices": "none"},
        {"choices": [{}]},
        {"choices": ["x"]},
        {"choices": [{"message": None, "logprobs": {"content": [{"top_logprobs": 3}]}}]},
        completion({"content": [{"token": "5", "logprob": 3, "top_logprobs": []}]}, "5")[1],
        {"choices": [{"message": {"content": "5"}, "logprobs": {"content": [{"token": "5"}]}}]},
    ],
    ids=str,
)
def test_a_reply_in_no_known_format_fails_alone_and_is_refused_at_the_start(
    server: FakeServer, body: Any
) -> None:
    server.reply = lambda request, number: (200, body)
    (failed,) = read(server, "rate it")
    assert isinstance(failed, JudgeCallFailed)
    assert "OpenAI format" in str(failed)
    with pytest.raises(JudgeUnavailable, match="OpenAI format"):
        using(server, lambda reader: reader.check())


UNTOLD = [None, {"content": []}, {"content": [{"token": "42", "logprob": 0, "top_logprobs": []}]}]


@pytest.mark.parametrize("logprobs", UNTOLD, ids=str)
def test_a_reply_without_probabilities_fails_alone(server: FakeServer, logprobs: Any) -> None:
    server.reply = lambda request, number: completion(logprobs, "42")
    (failed,) = read(server, "rate it")
    assert isinstance(failed, JudgeCallFailed)
    assert "no log-probabilities" in str(failed)


@pytest.mark.parametrize("logprobs", UNTOLD, ids=str)
def test_a_judge_without_probabilities_is_refused_at_the_start(
    server: FakeServer, logprobs: Any
) -> None:
    server.reply = lambda request, number: completion(logprobs, "100")
    with pytest.raises(ValueError, match="gives no log-probabilities"):
        using(server, lambda reader: reader.check())


@pytest.mark.parametrize("tokens", [("1", "0", "0"), ("10", "0"), (" 1", "00")])
def test_a_judge_that_splits_numbers_is_refused_at_the_start(
    server: FakeServer, tokens: tuple[str, ...]
) -> None:
    server.reply = lambda request, number: says(*({token: 1.0} for token in tokens))
    with pytest.raises(ValueError, match="writes 100 as the tokens"):
        using(server, lambda reader: reader.check())


@pytest.mark.parametrize("tokens", [("100",), ("100", "."), (" 100",), ("Sure", ":", " 100")])
def test_a_judge_with_whole_numbers_is_taken(server: FakeServer, tokens: tuple[str, ...]) -> None:
    server.reply = lambda request, number: says(*({token: 1.0} for token in tokens))
    using(server, lambda reader: reader.check())
    assert "100" in server.requests[0]["messages"][0]["content"]


def test_a_judge_that_refuses_to_be_read_is_refused_at_the_start(server: FakeServer) -> None:
    server.reply = lambda request, number: (400, {"error": {"message": "logprobs: no"}})
    with pytest.raises(ValueError, match=r"refuses a request for log-probabilities.*logprobs: no"):
        using(server, lambda reader: reader.check())
