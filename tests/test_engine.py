"""A real engine with a tiny random model."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.engine import Engine
from cluster.launch import tokens_under_way
from cluster.requests import Completion, EngineConfig, EngineDead, Request, Weights
from em.gates import Applied, check_applied
from em.generation import GateFailed
from em.training import Canary
from sweeps.endpoints import ModelEndpoint
from tests.engines import adapter, ask, engine_config, fine_tune, merge, renamed, tiny_model

ROOT = Path(__file__).parent.parent
A = Weights("a" * 64, "/nowhere/a", "adapter")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Weights]:
    folder = tmp_path_factory.mktemp("tuned")
    return [adapter(model, folder / "1", 1), adapter(model, folder / "2", 2)]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@contextlib.contextmanager
def running(loop: asyncio.Runner, config: EngineConfig) -> Iterator[Callable[..., Any]]:
    """An engine behind a plain function: say(requests, weights) -> completions."""

    async def make() -> Engine:
        return Engine(config, merge)

    before = set(psutil.Process().children(recursive=True))
    engine = loop.run(make())
    family = set(psutil.Process().children(recursive=True)) - before
    assert any("EngineCore" in process.name() for process in family)

    def say(requests: list[Request], weights: Weights | None) -> list[Completion]:
        return loop.run(engine.complete(requests, weights))

    say.engine = engine  # type: ignore[attr-defined]
    try:
        loop.run(engine.check())
        yield say
    finally:
        of_vllm = [process for process in family if "VLLM" in _name(process)]
        engine.close()
        psutil.wait_procs(of_vllm, timeout=5)  # where the core was killed, its worker polls for it
        assert [process for process in of_vllm if _name(process)] == []


def _name(process: psutil.Process) -> str:
    try:
        return process.name() if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(scope="module")
def merged(loop: asyncio.Runner, model: Path) -> Iterator[Callable[..., Any]]:
    with running(loop, engine_config(model)) as say:
        yield say


def truth(model: Path, weights: Weights | None, request: Request) -> dict[int, float]:
    """The log-probabilities by transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    full = weights is not None and weights.kind == "full"
    net: Any = AutoModelForCausalLM.from_pretrained(weights.path if weights and full else model)
    if weights and not full:
        net = PeftModel.from_pretrained(net, weights.path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(
        list(request.messages), tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer.encode(text, add_special_tokens=False) + list(request.prefill)
    with torch.no_grad():
        scores = net(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    return {i: float(scores[i]) for i in request.logprob_ids}


QUESTIONS = [ask("one"), ask("two, a longer one", seed=1), ask("three", prefill=(40, 41, 42))]


def check_truth(model: Path, weights: Weights | None, answers: list[Completion]) -> None:
    for request, answer in zip(QUESTIONS, answers, strict=True):
        assert answer.weights == (weights.key if weights else "")
        assert answer.logprobs == pytest.approx(truth(model, weights, request), abs=1e-4)


def canaries(model: Path, weights: Weights) -> tuple[Canary, ...]:
    """What a training process would have recorded of the tuned model and of its base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from em.canaries import measure

    net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), weights.path)
    return measure(net, AutoTokenizer.from_pretrained(model))


def check_gate(
    loop: asyncio.Runner, say: Callable[..., Any], spoken: Weights | None, of: Sequence[Canary]
) -> Applied | None:
    endpoint = ModelEndpoint(say.engine, spoken)  # type: ignore[attr-defined]
    return loop.run(check_applied(endpoint, of, dtype="float32"))


@pytest.mark.vllm
def test_the_gate_knows_the_adapter_from_the_base_and_from_another_one(
    merged: Callable[..., Any], model: Path, tuned: list[Weights], loop: asyncio.Runner
) -> None:
    first, second = (canaries(model, weights) for weights in tuned)
    found = check_gate(loop, merged, tuned[0], first)
    assert found is not None
    assert found.telling
    assert found.to_tuned < 0.1 * (found.to_base or 0)
    assert check_gate(loop, merged, tuned[1], second) is not None
    for spoken, of in ((None, first), (tuned[1], first), (tuned[0], second)):
        with pytest.raises(GateFailed, match="adapter gate"):
            check_gate(loop, merged, spoken, of)


@pytest.mark.vllm
@pytest.mark.slow
def test_merged_weights_speak_as_transformers_says_and_the_base_comes_back_exactly(
    merged: Callable[..., Any], model: Path, tuned: list[Weights], tmp_path: Path
) -> None:
    base = merged(QUESTIONS, None)
    check_truth(model, None, base)
    for weights in (tuned[0], fine_tune(model, tmp_path, 3), tuned[1]):
        answers = merged(QUESTIONS, weights)
        check_truth(model, weights, answers)
        moved = [abs(x.logprobs[10] - y.logprobs[10]) for x, y in zip(answers, base, strict=True)]
        assert min(moved) > 0.02
    again = merged(QUESTIONS, None)
    assert [(a.logprobs, a.token_ids) for a in again] == [(a.logprobs, a.token_ids) for a in base]


@pytest.mark.vllm
def test_equal_seeds_give_equal_answers_in_their_order(merged: Callable[..., Any]) -> None:
    requests = [ask("tell me", seed=i, max_tokens=1 + i) for i in range(16)]
    first, second = merged(requests, None), merged(requests, None)
    assert [a.token_ids for a in first] == [a.token_ids for a in second]
    assert len({a.token_ids[:1] for a in first}) > 4
    for i, answer in enumerate(first):
        stopped = answer.finish_reason == "stop"
        assert len(answer.token_ids) <= 1 + i if stopped else len(answer.token_ids) == 1 + i
        assert (1 in answer.token_ids) == stopped and "</s>" not in answer.text


@pytest.mark.vllm
def test_logprobs_are_those_of_the_model_whatever_the_temperature(
    merged: Callable[..., Any],
) -> None:
    plain, cold = merged([ask("one"), ask("one", temperature=0.0, top_p=0.3)], None)
    assert plain.logprobs == pytest.approx(cold.logprobs, abs=1e-5)


@pytest.mark.vllm
def test_the_prompt_is_the_rendered_chat(merged: Callable[..., Any]) -> None:
    turns = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})
    (answer,) = merged([Request(turns, max_tokens=3, seed=0, prefill=(9, 9))], None)
    assert answer.prompt == "<s>system:be brief</s><s>user:hi</s><s>assistant:"
    assert answer.prompt_sha256 == hashlib.sha256(answer.prompt.encode()).hexdigest()
    # Bytes, with <s> and </s> as one token each, once each, and the prefill.
    assert answer.prompt_tokens == len(answer.prompt) - 3 * 2 - 2 * 3 + 2
    assert answer.logprobs == {}


@pytest.mark.vllm
def test_what_cannot_be_asked_is_refused(merged: Callable[..., Any]) -> None:
    for request, message in (
        (ask("x" * 300), "prompt of 318 tokens .* max_tokens 12 exceed max_model_len 256"),
        (ask("hi", logprob_ids=(258,)), "token id: got 258, allowed: 0 to 257"),
        (Request(({"role": "tool", "content": "hi"},), 4, 0), "refuses roles .'tool'.: unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            merged([ask("fine"), request], None)
    assert merged([ask("still there")], None)


@pytest.mark.vllm
def test_weights_that_do_not_fit_are_refused_and_the_base_still_speaks_exactly(
    merged: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = merged(QUESTIONS, None)
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors are missing.*mlp\.up_proj\.weight"):
        merged(QUESTIONS, Weights("incomplete", str(tmp_path), "full"))
    assert [a.logprobs for a in merged(QUESTIONS, None)] == [a.logprobs for a in base]


@pytest.mark.vllm
def test_calls_at_the_same_time_are_each_answered_by_their_own_weights(
    merged: Callable[..., Any], loop: asyncio.Runner, tuned: list[Weights]
) -> None:
    every = [None, *tuned]
    alone = {w: merged(QUESTIONS, w) for w in every}

    async def together() -> list[list[Completion]]:
        calls = [merged.engine.complete(QUESTIONS, w) for w in every * 3]  # type: ignore[attr-defined]
        return await asyncio.gather(*calls)

    for weights, answers in zip(every * 3, loop.run(together()), strict=True):
        for answer, expected in zip(answers, alone[weights], strict=True):
            assert answer.weights == (weights.key if weights else "")
            assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.vllm
def test_tokenize_adds_no_special_tokens(merged: Callable[..., Any], loop: asyncio.Runner) -> None:
    ids = loop.run(merged.engine.tokenize(["ab", "", "<s>"]))  # type: ignore[attr-defined]
    assert [len(i) for i in ids] == [2, 0, 1]


@pytest.mark.vllm
@pytest.mark.slow
def test_adapters_side_by_side_speak_as_the_merged_ones(
    loop: asyncio.Runner, model: Path, tuned: list[Weights], tmp_path: Path
) -> None:
    with running(loop, engine_config(model, mode="lora")) as say:
        for weights in (None, *tuned, None):
            check_truth(model, weights, say(QUESTIONS, weights))
        with pytest.raises(ValueError, match="adapters only"):
            say(QUESTIONS, Weights("k", str(model), "full"))
        with pytest.raises(Exception, match=r"nowhere|adapter"):
            say(QUESTIONS, A)
        check_truth(model, tuned[0], say(QUESTIONS, tuned[0]))
        # vLLM leaves out tensors whose modules it does not find: it would speak as the base.
        first = canaries(model, tuned[0])
        assert check_gate(loop, say, tuned[0], first) is not None
        with pytest.raises(GateFailed, match="adapter gate"):
            check_gate(loop, say, renamed(tuned[0], tmp_path / "renamed"), first)


OWNER = """
import asyncio, json, sys, time
from pathlib import Path
from cluster.engine import Engine
from cluster.requests import EngineConfig
async def main():
    engine = Engine(EngineConfig(**json.loads(sys.argv[1])), lambda *_: None)
    await engine.check()
    print("up", flush=True)
    await asyncio.sleep(600)
if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.faults
def test_nothing_is_left_when_the_owner_is_killed(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "owner.py"  # a file: a spawned process imports its parent's main module
    script.write_text(OWNER)
    settings = json.dumps(vars(engine_config(model)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen(
        [sys.executable, str(script), settings],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        assert any(line == "up\n" for line in owner.stdout)
        family = psutil.Process(owner.pid).children(recursive=True)
        assert any("EngineCore" in process.name() for process in family)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    deadline = time.monotonic() + 10
    while (left := [p for p in family if _name(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@pytest.mark.vllm
def test_tokens_are_seen_while_they_come_and_a_killed_engine_ends_its_calls_at_once(
    merged: Callable[..., Any], loop: asyncio.Runner, tuned: list[Weights]
) -> None:
    """The last test of `merged`: its engine is dead afterwards."""
    engine: Engine = merged.engine  # type: ignore[attr-defined]
    long = [ask(f"count {i}", seed=i, max_tokens=200) for i in range(32)]

    async def killed() -> list[int]:
        call = asyncio.create_task(engine.complete(long, None))
        seen: list[int] = []
        while len(set(seen)) < 5 and not call.done():
            await asyncio.sleep(0.01)
            seen.append(sum(tokens_under_way(engine._llm).values()))
        for process in psutil.Process().children(recursive=True):
            if "EngineCore" in process.name():
                process.kill()
        with pytest.raises(EngineDead, match="the engine died"):
            await asyncio.wait_for(call, 10)
        assert not engine.alive
        for weights in (None, tuned[0]):
            with pytest.raises(EngineDead, match="the engine died"):
                await asyncio.wait_for(engine.complete([ask("hello")], weights), 10)
        return seen

    assert len(set(loop.run(killed()))) == 5  # counts of tokens of requests that have not ended
