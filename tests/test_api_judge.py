import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from judge_server import KEY_ENV, FakeServer, Reply, completion, costing, says

from em.api_client import key_for, safe
from em.api_judge import TOP_LOGPROBS, ApiReader, JudgeRefusesUs
from em.budget import Budget, BudgetConfig, BudgetSpent, Price, Usage
from em.judging import JudgeCallFailed, JudgeUnavailable, Reading, score
from em.pacing import START


def using(
    server: FakeServer, do: Callable[[ApiReader], Any], *, max_retries: int = 2, **more: Any
) -> Any:
    settings = {"url": server.url, "concurrency": 4, "timeout_s": 10} | more

    async def run() -> Any:
        reader = ApiReader(
            model="judge",
            key_env=KEY_ENV,
            max_retries=max_retries,
            **settings,
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


def test_a_reply_whose_numbers_sum_to_more_than_1_fails_alone(server: FakeServer) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        good = request["messages"][0]["content"] == "good"
        return says({"9": 1.0} if good else {"42": 0.9, "43": 0.9})

    server.reply = reply
    good, bad = read(server, "good", "bad")
    assert isinstance(good, Reading)
    assert "sum to 1.8, more than 1" in str(bad)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_what_a_server_says_at_length_is_cut(server: FakeServer, status: int) -> None:
    server.reply = lambda request, number: (status, {"error": {"message": "\x1b[31m" * 20_000}})
    with pytest.raises((ValueError, JudgeUnavailable)) as told:
        using(server, lambda reader: reader.check(), max_retries=0)
    assert len(str(told.value)) < 1000
    assert str(told.value).isprintable()


def test_a_token_of_thousands_of_digits_is_no_number(server: FakeServer) -> None:
    server.reply = lambda request, number: says({"7": 0.6, "9" * 5000: 0.1, "007": 0.1})
    (reading,) = read(server, "rate it")
    assert isinstance(reading, Reading)
    assert reading.numbers == pytest.approx({7: 0.6})


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


def test_a_server_that_takes_few_is_not_away(server: FakeServer) -> None:
    """Refused more often in a row than a call is tried, while the server answers others."""
    answered_at = [0.0]

    def reply(request: dict[str, Any], number: int) -> Reply:
        if time.monotonic() < answered_at[0] + 0.05:
            return 429, {"error": {"message": "slow down"}}
        answered_at[0] = time.monotonic()
        return says({"64": 1.0})

    server.reply, server.headers = reply, {"Retry-After-Ms": "2"}
    found = using(server, lambda r: r.read([str(n) for n in range(40)]), max_retries=1)
    assert len(found) == 40 and all(isinstance(reading, Reading) for reading in found)
    assert len(server.requests) > 2 * 40


def test_a_server_that_takes_nothing_is_unavailable(server: FakeServer) -> None:
    server.reply = lambda request, number: (429, {"error": {"message": "slow down"}})
    with pytest.raises(JudgeUnavailable, match="slow down"):
        using(server, lambda r: r.read(list("abcdef")), max_retries=1)
    assert len(server.requests) < 40  # in two bursts, a second apart


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


SPLIT = [
    ("1", "0", "0"), ("10", "0"), (" 1", "00"), ("Sure", ":", " 1", "0", "0"), ('"', "10", "0"),
]  # fmt: skip


@pytest.mark.parametrize("tokens", SPLIT)
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


# Pace ---------------------------------------------------------------------------------------------


def test_more_are_asked_at_once_while_the_server_copes(server: FakeServer) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        time.sleep(0.01)
        return says({"5": 1.0})

    server.reply = reply
    prompts = [str(n) for n in range(120)]
    using(server, lambda reader: reader.read(prompts), concurrency=8)
    assert START < server.most_at_once <= 8


def test_the_wait_that_the_server_asks_for_is_kept_by_every_call(server: FakeServer) -> None:
    """The second call is refused for 0.4 s: nothing is asked in that time, or it is not kept."""
    times: list[float] = []

    def reply(request: dict[str, Any], number: int) -> Reply:
        times.append(time.monotonic())
        if number == 2:
            return 429, {"error": {"message": "slow down"}}
        return says({"5": 1.0})

    server.reply, server.headers = reply, {"Retry-After": "0.4"}
    readings = using(server, lambda r: r.read([str(n) for n in range(6)]), concurrency=1)
    assert all(isinstance(reading, Reading) for reading in readings)
    assert len(times) == 7
    assert times[2] - times[1] >= 0.4


def test_a_server_that_is_slow_is_waited_for_and_asked_again(server: FakeServer) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        time.sleep(0.5 if number == 1 else 0)
        return says({"5": 1.0})

    server.reply = reply
    (reading,) = using(server, lambda reader: reader.read(["rate it"]), timeout_s=0.2)
    assert isinstance(reading, Reading)
    assert len(server.requests) == 2
    server.reply = lambda request, number: (time.sleep(0.3), says({"5": 1.0}))[1]
    with pytest.raises(JudgeUnavailable, match=r"does not answer after 1 tries.*timed out"):
        using(server, lambda r: r.read(["rate it"]), timeout_s=0.1, max_retries=0)


def test_what_was_read_before_the_server_went_away_is_kept(server: FakeServer) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        return says({"5": 1.0}) if number <= 3 else (500, {"error": {"message": "broken"}})

    server.reply = reply
    with pytest.raises(JudgeUnavailable) as stopped:
        using(server, lambda r: r.read(list("abcdef")), concurrency=1, max_retries=0)
    readings = stopped.value.readings
    assert [isinstance(reading, Reading) for reading in readings] == [True] * 3 + [False] * 3


# Budget -------------------------------------------------------------------------------------------


def spending(server: FakeServer, budget: Budget, prompts: str, **more: Any) -> Any:
    return using(server, lambda reader: reader.read(list(prompts)), budget=budget, **more)


def test_what_a_call_used_is_in_its_reading(server: FakeServer) -> None:
    server.reply = lambda request, number: costing(says({"5": 1.0}), 30, 2)
    budget = Budget(BudgetConfig(calls=9), judge="j")
    for reading in spending(server, budget, "ab"):
        assert (reading.prompt_tokens, reading.completion_tokens) == (30, 2)
    assert budget.spent == Usage(calls=2, prompt_tokens=60, completion_tokens=4)


def test_a_refused_prompt_is_a_call_without_tokens(server: FakeServer) -> None:
    server.reply = lambda request, number: (400, {"error": {"message": "filtered"}})
    budget = Budget(BudgetConfig(calls=9), judge="j")
    (failed,) = spending(server, budget, "a")
    assert (failed.prompt_tokens, failed.completion_tokens) == (0, 0)
    assert budget.spent == Usage(calls=1)


@pytest.mark.parametrize(
    ("limit", "price", "made"),
    [
        ({"calls": 5}, None, 5),
        ({"tokens": 250}, None, 7),  # 31 each; the next is reserved at 1 + WORD_TOKENS
        ({"usd": 0.0004}, Price(input=2, output=10), 4),  # 0.00007 each, and 0.000082 to reserve
    ],
)
def test_a_spent_budget_stops_with_what_was_read(
    server: FakeServer, limit: dict[str, Any], price: Price | None, made: int
) -> None:
    server.reply = lambda request, number: costing(says({"5": 1.0}), 30, 1)
    budget = Budget(BudgetConfig(**limit), judge="j", price=price)
    with pytest.raises(BudgetSpent, match="emsweep resume") as stopped:
        spending(server, budget, "abcdefghijkl", concurrency=1)
    read = [reading for reading in stopped.value.readings if reading is not None]
    assert len(read) == len(server.requests) == budget.spent.calls
    assert len(stopped.value.readings) == 12
    assert len(read) in (made, made + 1)


def test_calls_under_way_do_not_pass_the_number_of_calls(server: FakeServer) -> None:
    server.reply = lambda request, number: costing(says({"5": 1.0}), 30, 1)
    budget = Budget(BudgetConfig(calls=10), judge="j", spent=Usage(calls=3))
    with pytest.raises(BudgetSpent):
        spending(server, budget, "abcdefghijkl", concurrency=16)
    assert len(server.requests) == 7


def test_a_server_that_does_not_say_what_was_used_cannot_have_a_budget(server: FakeServer) -> None:
    server.reply = lambda request, number: says({"100": 1.0})
    using(server, lambda reader: reader.check())
    budget = Budget(BudgetConfig(calls=9), judge="j")
    with pytest.raises(ValueError, match="no budget can be kept"):
        using(server, lambda reader: reader.check(), budget=budget)


def test_calls_that_are_in_no_budget_are_made_only_while_it_lasts(server: FakeServer) -> None:
    server.reply = lambda request, number: costing(says({"5": 1.0}), 30, 1)
    budget = Budget(BudgetConfig(calls=5), judge="j", spent=Usage(calls=4))

    async def twice(reader: ApiReader) -> None:
        await reader.uncounted().read(["planted"] * 4)
        await reader.read(["counted"])
        with pytest.raises(BudgetSpent):
            reader.uncounted()

    using(server, twice, budget=budget)
    assert len(server.requests) == budget.spent.calls == 5


def test_a_key_that_is_refused_in_the_middle_keeps_what_was_read(server: FakeServer) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        return (
            says({"5": 1.0})
            if number <= 6
            else (401, {"error": {"message": "bad key-of-the-test"}})
        )

    server.reply = reply
    with pytest.raises(JudgeRefusesUs) as stopped:
        using(server, lambda reader: reader.read(["p"] * 12), concurrency=1)
    assert sum(reading is not None for reading in stopped.value.readings) == 6
    assert "key-of-the-test" not in str(stopped.value)  # the server repeats what it was sent
    assert isinstance(stopped.value, ValueError)  # at the start it is told as the user's mistake


# Keys and Azure -----------------------------------------------------------------------------------


def test_azures_way_of_asking(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "another-secret")
    server.reply = lambda request, number: says({"42": 1.0})
    server.path = "/openai/deployments/judge/chat/completions"
    url = server.url.removesuffix("/v1")
    (reading,) = using(server, lambda r: r.read(["rate it"]), url=url, api_version="2024-10-21")
    assert isinstance(reading, Reading)
    assert server.paths == [f"{server.path}?api-version=2024-10-21"]
    (sent,) = server.sent
    assert sent["api-key"] == "key-of-the-test"
    assert "another-secret" not in str(sent)


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_a_server_elsewhere_is_not_asked_without_a_key(
    version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    settings: dict[str, Any] = {"model": "m", "key_env": KEY_ENV, "concurrency": 1}
    with pytest.raises(ValueError, match=f"the environment variable {KEY_ENV} is not set"):
        ApiReader(url="https://judge.example/v1", api_version=version, **settings)
    assert ApiReader(url="http://127.0.0.1:9/v1", api_version=version, **settings)


def test_a_key_is_hidden_though_its_variable_is_gone_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANOTHER_API_KEY", "abc123")
    assert key_for("ANOTHER_API_KEY") == "abc123"
    monkeypatch.delenv("ANOTHER_API_KEY")
    assert safe(ValueError("no such key: abc123"), "ANOTHER_API_KEY") == "no such key: ***"
