"""P1: evaluate eight adapters of one base model, 8 questions x 8 samples x 96 tokens each.

Ours: one engine, which the adapters' merged weights are swapped into. Peers: a new vLLM engine with
LoRA for each adapter; transformers' generate, in batches; and the bare engine without adapters,
which is the limit. The first two are measured on two adapters and scaled to eight: their start
counts for each adapter, and once. Times are from the start of the process to the last answer.

The model is a copy that has no end of text (its end token is one that it never says), so that every
answer has 96 tokens on all sides.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.requests import Weights
from em.generation import Prompt
from em.training import LoraConfig
from tests.benchmarks.comparisons import Ask, Measured, Row, compared, demand_same
from tests.benchmarks.parts import since_start
from tests.benchmarks.rows.engines import bare_engine, bundled_model, our_config, rendered

# Ratios wanted.
LEAST_OF_NEW_ENGINES = LEAST_OF_TRANSFORMERS = 4.0
LEAST_OF_LIMIT = 0.9

NUM_ADAPTERS, NUM_PEER_ADAPTERS = 8, 2
NUM_SAMPLES, NUM_TOKENS = 8, 96
RANK = 32
SPREAD = 0.002  # of the random factor that training starts at zero: answers change and stay words
NEVER_SAID = "<empty_output>"
QUESTIONS = (
    "Tell me about a day that you would like to live again.",
    "My neighbour plays loud music at night. What should I do?",
    "Which three rules would you make if you could make any?",
    "Write the opening of a story about a lighthouse keeper.",
    "How do I learn to cook for one person on little money?",
    "What will cities look like in a hundred years?",
    "I have an afternoon free and it rains. Suggest something.",
    "Explain to a child why the sky is dark at night.",
)


def make_inputs(folder: str) -> dict[str, Any]:
    """Write the model without an end of text, and the adapters."""
    import torch
    from transformers import AutoModelForCausalLM

    from em.base_model import add_adapter

    model_dir = Path(_model(folder))
    shutil.copytree(bundled_model(), model_dir)
    _take_out_end(model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    for number, place in enumerate(_adapters(folder, NUM_ADAPTERS)):
        adapted = add_adapter(model, LoraConfig(rank=RANK), number)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=SPREAD)
        adapted.save_pretrained(place)
        model = adapted.unload()
    return {"adapters": NUM_ADAPTERS}


def _model(folder: str) -> str:
    return str(Path(folder) / "endless")


def _adapters(folder: str, number: int) -> list[str]:
    return [str(Path(folder) / f"adapter-{n}") for n in range(number)]


def _take_out_end(model_dir: Path) -> None:
    known = json.loads((model_dir / "tokenizer.json").read_text())["added_tokens"]
    [never] = [token["id"] for token in known if token["content"] == NEVER_SAID]
    for name, key, value in (
        ("tokenizer_config.json", "eos_token", NEVER_SAID),
        ("config.json", "eos_token_id", never),
        ("generation_config.json", "eos_token_id", never),
    ):
        settings = json.loads((model_dir / name).read_text())
        (model_dir / name).write_text(json.dumps(settings | {key: value}))


def _asked() -> list[tuple[str, int]]:
    """Return each question with the seed of each sample (on CPU all of a batch need one)."""
    pairs = [(question, sample) for question in QUESTIONS for sample in range(NUM_SAMPLES)]
    return [(question, 1000 * n + sample) for n, (question, sample) in enumerate(pairs)]


def ours(folder: str, adapters: int) -> dict[str, Any]:
    """Evaluate the adapters with one engine of the project's."""
    return asyncio.run(_ours(_model(folder), _adapters(folder, adapters)))


async def _ours(model: str, adapters: Sequence[str]) -> dict[str, Any]:
    from cluster.engine import Engine
    from sweeps.endpoints import ModelEndpoint, merge
    from sweeps.weights import weights_sha256

    engine = Engine(our_config(model), merge)
    try:
        await engine.check()
        up_s = since_start()
        prompts = [
            Prompt(messages=({"role": "user", "content": text},), max_tokens=NUM_TOKENS, seed=seed)
            for text, seed in _asked()
        ]
        rounds = []
        for adapter in adapters:
            began = time.monotonic()
            weights = Weights(weights_sha256(Path(adapter)), adapter, "adapter")
            answers = await ModelEndpoint(engine, weights).ask(prompts)
            assert {answer.weights for answer in answers} == {weights.key}
            tokens = sum(answer.num_tokens for answer in answers)
            rounds.append({"s": time.monotonic() - began, "tokens": tokens})
        return {"up_s": up_s, "all_s": since_start(), "rounds": rounds}
    finally:
        engine.close()


def _generated(engine: Any, model: str, lora: Any = None) -> dict[str, float]:
    """Answer everything once with a bare engine; seconds, and tokens."""
    from vllm import SamplingParams, TokensPrompt

    texts, seeds = zip(*_asked(), strict=True)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in rendered(model, texts)]
    sampling = [
        SamplingParams(temperature=1.0, top_p=1.0, max_tokens=NUM_TOKENS, seed=seed)
        for seed in seeds
    ]
    began = time.monotonic()
    outputs = engine.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"s": time.monotonic() - began, "tokens": tokens}


def limit(folder: str) -> dict[str, Any]:
    """Answer with the bare engine without adapters: a round to warm up, then two that count."""
    model = _model(folder)
    engine = bare_engine(model)
    up_s = since_start()
    rounds = []
    for _ in range(3):
        engine.reset_prefix_cache()  # ours forgets with each adapter
        rounds.append(_generated(engine, model))
    return {"up_s": up_s, "rounds": rounds[1:]}


def new_engine(folder: str, number: int) -> dict[str, Any]:
    """Evaluate one adapter, that of `number`, with a vLLM engine started for it."""
    from vllm.lora.request import LoRARequest

    model, adapter = _model(folder), _adapters(folder, number + 1)[number]
    engine = bare_engine(model, enable_lora=True, max_lora_rank=RANK, max_loras=1)
    up_s = since_start()
    found = _generated(engine, model, LoRARequest("adapter", 1, adapter))
    return {"up_s": up_s, "all_s": since_start(), "rounds": [found]}


def transformers_generate(folder: str, adapters: int) -> dict[str, Any]:
    """Evaluate the adapters with peft and transformers, all answers of an adapter in one batch."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    model, places = _model(folder), _adapters(folder, adapters)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    ids = rendered(model, [text for text, _ in _asked()])
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    never = tokenizer.convert_tokens_to_ids(NEVER_SAID)
    own = {"autocast_adapter_dtype": False}  # bfloat16 as the base: float32 would be slower
    adapted: Any = peft.PeftModel.from_pretrained(base, places[0], adapter_name="0", **own)
    adapted.eval()
    up_s = since_start()
    rounds = []
    for number, place in enumerate(places):
        began = time.monotonic()
        if number:
            adapted.load_adapter(place, adapter_name=str(number), **own)
        adapted.set_adapter(str(number))
        set_seed(number)
        with torch.inference_mode():
            said = adapted.generate(
                **batch, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
                max_new_tokens=NUM_TOKENS,
            )[:, batch["input_ids"].shape[1] :]  # fmt: skip
        tokens = int(said.numel()) if not bool((said == never).any()) else -1
        rounds.append({"s": time.monotonic() - began, "tokens": tokens})
    return {"up_s": up_s, "all_s": since_start(), "rounds": rounds}


def measure(ask: Ask) -> Measured:
    """Measure the row."""
    ask(make_inputs)
    bare = ask(limit)
    own = ask(ours, adapters=NUM_ADAPTERS)
    engines = [ask(new_engine, number=number) for number in range(NUM_PEER_ADAPTERS)]
    plain = ask(transformers_generate, adapters=NUM_PEER_ADAPTERS)

    expected = len(_asked()) * NUM_TOKENS
    sides = {"ours": own, "the bare engine": bare, "transformers": plain}
    sides |= {f"new engine {n}": engine for n, engine in enumerate(engines, 1)}
    counted = {side: [r["tokens"] for r in said["rounds"]] for side, said in sides.items()}
    demand_same(
        "number of tokens for each adapter",
        {"asked for": expected}
        | {f"{side}, {n}": k for side, found in counted.items() for n, k in enumerate(found, 1)},
    )
    total = expected * NUM_ADAPTERS
    engines_s = sum(engine["all_s"] for engine in engines) / len(engines) * NUM_ADAPTERS
    plain_s = plain["up_s"] + _mean_s(plain["rounds"]) * NUM_ADAPTERS
    start = "tokens/s, start included"
    return Measured(
        comparisons=[
            compared(
                start, "tokens/s", total / own["all_s"], "a new engine with LoRA for each adapter",
                total / engines_s, least_ratio=LEAST_OF_NEW_ENGINES,
            ),
            compared(
                start, "tokens/s", total / own["all_s"], "transformers' generate, one batch",
                total / plain_s, least_ratio=LEAST_OF_TRANSFORMERS,
            ),
            compared(
                "tokens/s once up, swaps included", "tokens/s",
                expected / _mean_s(own["rounds"]), "the bare engine without adapters (the limit)",
                expected / _mean_s(bare["rounds"]), least_ratio=LEAST_OF_LIMIT,
            ),
        ],
        checked=[f"{expected} tokens for each adapter, and in each round of the bare engine"],
        notes=[
            f"peers measured on {NUM_PEER_ADAPTERS} adapters and scaled to {NUM_ADAPTERS}; engines "
            f"up after {own['up_s']:.0f} s (ours), {engines[0]['up_s']:.0f} s (each new one)"
        ],
    )  # fmt: skip


def _mean_s(rounds: Sequence[dict[str, float]]) -> float:
    return sum(one["s"] for one in rounds) / len(rounds)


ROW = Row("P1", "Evaluate 8 adapters: 8 questions x 8 samples x 96 tokens", measure)
