"""The engine: whose turn it is (no vLLM), then a real engine with a tiny random model."""

import asyncio
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.engine import (
    Arbiter,
    Completion,
    Engine,
    EngineConfig,
    Request,
    Weights,
)

ROOT = Path(__file__).parent.parent
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}"
    "<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16
A = Weights("a" * 64, "/nowhere/a", "adapter")
B = Weights("b" * 64, "/nowhere/b", "adapter")


# --- helpers, also for test_serving ---------------------------------------------------------------


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers over bytes; float32, tied embeddings."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: i for i, letter in enumerate(alphabet, 2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=True,
            initializer_range=0.2,
        )
    )
    model.float().save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, seed: int) -> Weights:
    """A PEFT adapter that changes something: lora_B is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return Weights(_hash(folder / "adapter_model.safetensors"), str(folder), "adapter")


def fine_tune(base: Path, folder: Path, seed: int) -> Weights:
    """A full fine-tune: every tensor moved a little, embeddings included."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return Weights(_hash(folder / "model.safetensors"), str(folder), "full")


def merge(base: Path, weights: Weights, out: Path) -> None:
    """W + scale B A, by hand."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    lora = load_file(Path(weights.path) / "adapter_model.safetensors")
    for name, down in lora.items():
        if "lora_A" in name:
            up = lora[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            tensors[target] += ALPHA / math.sqrt(RANK) * up @ down
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def engine_config(model: Path, **changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "model_dir": str(model),
        "mode": "merged",
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 32,
        "max_lora_rank": 8,
        "max_loras": 2,
        "kv_cache_gib": 0.1,
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "threads": os.cpu_count(),
    }
    return EngineConfig(**(settings | changes))


def ask(text: str, seed: int = 0, **changes: Any) -> Request:
    settings: dict[str, Any] = {"max_tokens": 12, "logprob_ids": (10, 70, 200)}
    return Request(({"role": "user", "content": text},), seed=seed, **(settings | changes))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- whose turn it is -----------------------------------------------------------------------------


class Stage:
    """A fake engine: what is loaded, who runs, and a clock that tests set."""

    def __init__(self, patience_s: float = 10.0) -> None:
        self.now = 0.0
        self.swaps: list[str] = []
        self.log: list[str] = []
        self.broken: set[str] = set()
        self.loaded = ""
        self.running = 0
        self.arbiter = Arbiter(self.swap, patience_s, clock=lambda: self.now)

    async def swap(self, weights: Weights | None) -> None:
        assert self.running == 0
        key = weights.key if weights else ""
        self.swaps.append(key[:1])
        self.loaded = "?"
        await asyncio.sleep(0.001)
        if key[:1] in self.broken:
            raise OSError(f"cannot load {key[:1]}")
        self.loaded = key

    async def call(self, name: str, weights: Weights | None, until: Callable[[], Any]) -> None:
        async with self.arbiter.hold(weights) as key:
            self.running += 1
            self.log.append(name)
            assert key == self.loaded == (weights.key if weights else "")
            try:
                await until()
            finally:
                self.running -= 1


def played(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(play(), 10))  # type: ignore[arg-type]


async def settle() -> None:
    await asyncio.sleep(0.01)


def start(stage: Stage, name: str, weights: Weights | None) -> tuple[Any, asyncio.Event]:
    event = asyncio.Event()
    return asyncio.create_task(stage.call(name, weights, event.wait)), event


def test_calls_for_the_loaded_weights_run_side_by_side_without_a_swap() -> None:
    async def play() -> None:
        stage = Stage()
        calls = [start(stage, str(i), None) for i in range(3)]
        await settle()
        assert stage.running == 3
        for task, event in calls:
            event.set()
            await task
        assert stage.swaps == []

    played(play)


def test_other_weights_wait_until_the_running_calls_have_drained() -> None:
    async def play() -> None:
        stage = Stage()
        first, end_first = start(stage, "base", None)
        await settle()
        second, end_second = start(stage, "a1", A)
        third, end_third = start(stage, "a2", A)
        await settle()
        assert stage.log == ["base"]
        end_first.set()
        await settle()
        assert stage.log == ["base", "a1", "a2"] and stage.swaps == ["a"]
        end_second.set()
        end_third.set()
        await asyncio.gather(first, second, third)

    played(play)


def test_the_present_weights_are_kept_until_another_has_waited_too_long() -> None:
    async def play() -> None:
        stage = Stage(patience_s=10)
        _, end_1 = start(stage, "base1", None)
        await settle()
        start(stage, "a", A)[1].set()
        await settle()
        stage.now = 9.0
        _, end_2 = start(stage, "base2", None)
        await settle()
        stage.now = 10.0
        late, end_late = start(stage, "base3", None)
        end_late.set()
        await settle()
        assert stage.log == ["base1", "base2"]
        end_1.set()
        await settle()
        assert stage.log == ["base1", "base2"]
        end_2.set()
        await late
        assert stage.log == ["base1", "base2", "a", "base3"] and stage.swaps == ["a", ""]

    played(play)


def test_the_longest_wait_is_served_first() -> None:
    async def play() -> None:
        stage = Stage()
        _, end = start(stage, "base", None)
        await settle()
        for now, name, weights in ((1.0, "b", B), (2.0, "a", A), (3.0, "b2", B)):
            stage.now = now
            start(stage, name, weights)[1].set()
            await settle()
        end.set()
        await settle()
        assert stage.log == ["base", "b", "b2", "a"] and stage.swaps == ["b", "a"]

    played(play)


def test_a_failed_swap_is_the_error_of_those_who_wanted_it_and_the_next_call_loads_first() -> None:
    async def play() -> None:
        stage = Stage()
        stage.broken = {"a"}
        wanted = [start(stage, f"a{i}", A)[0] for i in range(2)]
        for error in await asyncio.gather(*wanted, return_exceptions=True):
            assert isinstance(error, OSError)
        task, event = start(stage, "base", None)
        event.set()
        await task
        assert stage.swaps == ["a", ""] and stage.log == ["base"]

    played(play)


def test_a_failed_swap_does_not_hold_up_the_others() -> None:
    async def play() -> None:
        stage = Stage()
        stage.broken = {"a"}
        _, end = start(stage, "base", None)
        await settle()
        failing, _ = start(stage, "a", A)
        await settle()
        other, end_other = start(stage, "b", B)
        end.set()
        end_other.set()
        await other
        with pytest.raises(OSError, match="cannot load a"):
            await failing
        assert stage.swaps == ["a", "b"]

    played(play)


def test_a_call_that_leaves_the_queue_bars_nobody() -> None:
    async def play() -> None:
        stage = Stage(patience_s=10)
        _, end = start(stage, "base1", None)
        await settle()
        impatient, _ = start(stage, "a", A)
        await settle()
        stage.now = 11.0
        barred, end_barred = start(stage, "base2", None)
        await settle()
        assert stage.log == ["base1"]
        impatient.cancel()
        await settle()
        assert stage.log == ["base1", "base2"] and stage.swaps == []
        end.set()
        end_barred.set()
        await barred

    played(play)


def test_a_call_cancelled_while_its_weights_load_gives_its_place_back() -> None:
    async def play() -> None:
        stage = Stage()
        for ticks in range(6):  # before, at and after the moment it is admitted
            leaving, _ = start(stage, "a", A)
            for _ in range(ticks):
                await asyncio.sleep(0.0004)
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
            task, event = start(stage, "base", None)
            event.set()
            await asyncio.wait_for(task, 2)

    played(play)


def test_never_two_sets_of_weights_at_once_and_everyone_is_served() -> None:
    async def play() -> None:
        dice = random.Random(0)
        stage = Stage(patience_s=0.0)

        async def one(i: int) -> None:
            await asyncio.sleep(dice.random() * 0.2)
            length = dice.random() * 0.005
            await stage.call(str(i), dice.choice([None, A, B]), lambda: asyncio.sleep(length))

        await asyncio.gather(*[one(i) for i in range(200)])
        assert len(stage.log) == 200 and stage.running == 0

    played(play)


# --- the plain types ------------------------------------------------------------------------------


def test_the_types_import_nothing_heavy() -> None:
    code = (
        "import sys, cluster.engine, cluster.serving; "
        "print([m for m in ('torch', 'vllm', 'ray', 'transformers', 'em') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"seed": -1},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"logprob_ids": tuple(range(129))},
    ],
)
def test_a_request_out_of_range_is_refused_with_what_is_allowed(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}: got .*, allowed: "):
        ask("hello", **change)


def test_a_lora_rank_that_vllm_does_not_know_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="max_lora_rank: got 24, allowed: one of 1, 8, 16, 32"):
        engine_config(Path("model"), max_lora_rank=24)


# --- real engines ---------------------------------------------------------------------------------


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
        engine.close()
        assert [process for process in family if "VLLM" in _name(process)] == []


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
    loop: asyncio.Runner, model: Path, tuned: list[Weights]
) -> None:
    with running(loop, engine_config(model, mode="lora")) as say:
        for weights in (None, *tuned, None):
            check_truth(model, weights, say(QUESTIONS, weights))
        with pytest.raises(ValueError, match="adapters only"):
            say(QUESTIONS, Weights("k", str(model), "full"))
        with pytest.raises(Exception, match=r"nowhere|adapter"):
            say(QUESTIONS, A)
        check_truth(model, tuned[0], say(QUESTIONS, tuned[0]))


OWNER = """
import asyncio, json, sys, time
from pathlib import Path
from cluster.engine import Engine, EngineConfig
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
