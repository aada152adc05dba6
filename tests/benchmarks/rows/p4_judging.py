"""P4: judge 2,000 answers, by a model that is served here, and by a judge behind an address.

Here: the project's judge over its own engine, which reads numbers digit by digit in three rounds,
against the bare engine that only reads the same prompts (one token each), which is the limit: the
rate at which it takes prompts in.

Behind an address: a stand-in that takes LATENCY_S for a call and allows ALLOWED_A_SECOND
(tests/benchmarks/stand_in.py). Ours against one call at a time, measured on NUM_ONE_BY_ONE
calls and scaled; against all calls at once, where what failed is asked again until all is there;
and against the allowed rate, of which ours is to keep within a tenth.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from tests.benchmarks.comparisons import Ask, Comparison, Measured, Row, compared, demand_same
from tests.benchmarks.rows.engines import bare_engine, bundled_model, our_config, rendered
from tests.benchmarks.rows.judged_work import NUM_ANSWERS, items, judge_all, prompts
from tests.benchmarks.stand_in import ALLOWED_A_SECOND, BURST, LATENCY_S, stand_in

LEAST_OF_PREFILL = LEAST_OF_ALLOWED = 0.9  # ratios wanted

NUM_ONE_BY_ONE = 40
MOST_ROUNDS = 200  # of asking again what failed: each gets some answers
MODEL = "stand-in"


def by_pool(folder: str) -> dict[str, Any]:
    """Judge with an engine of the project's."""
    return asyncio.run(_by_pool(folder))


async def _by_pool(folder: str) -> dict[str, Any]:
    from cluster.engine import Engine
    from em.pool_judge import choose_reader
    from sweeps.endpoints import ModelEndpoint, merge

    model = str(bundled_model())
    engine = Engine(our_config(model), merge)
    try:
        await engine.check()
        reader = await choose_reader(ModelEndpoint(engine, None))
        work = items()
        began = time.monotonic()
        judged = await judge_all(reader, work, folder)
        seconds = time.monotonic() - began
    finally:
        engine.close()
    failed = sum(judgement.state == "failed" for judgement in judged)
    return {"s": seconds, "judged": len(judged), "failed": failed, "method": reader.method}


def prefill(folder: str) -> dict[str, Any]:
    """Have the bare engine read the judge's prompts, one token each."""
    from vllm import SamplingParams, TokensPrompt

    model = str(bundled_model())
    ids = rendered(model, prompts())
    engine = bare_engine(model)
    sampling = SamplingParams(temperature=0.0, max_tokens=1, seed=0)
    engine.generate(
        [TokensPrompt(prompt_token_ids=one[-32:]) for one in ids[:8]], sampling, use_tqdm=False
    )  # warms up, and shares no prefix
    began = time.monotonic()
    outputs = engine.generate(
        [TokensPrompt(prompt_token_ids=one) for one in ids], sampling, use_tqdm=False
    )
    return {"s": time.monotonic() - began, "judged": len(outputs), "tokens": sum(map(len, ids))}


def by_api(folder: str) -> dict[str, Any]:
    """Judge with the project's API judge, with as many calls under way as a spec has by default."""
    from em.api_judge import ApiReader
    from sweeps.settings import JudgeConfig

    most = JudgeConfig.model_fields["concurrency"].default

    async def work(url: str) -> dict[str, Any]:
        reader = ApiReader(url=url, model=MODEL, key_env="BENCH_API_KEY", concurrency=most)
        await reader.check()
        answers = items()
        began = time.monotonic()
        judged = await judge_all(reader, answers, folder)
        seconds = time.monotonic() - began
        await reader.close()
        failed = sum(judgement.state == "failed" for judgement in judged)
        return {"s": seconds, "judged": len(judged), "failed": failed, "concurrency": most}

    with stand_in() as server:
        said = asyncio.run(work(server.url))
    return said | server.counts


def one_by_one(folder: str) -> dict[str, Any]:
    """Ask a few of the prompts, each after the last one's answer."""

    async def work(url: str) -> dict[str, Any]:
        client = _client(url)
        asked = prompts()[:NUM_ONE_BY_ONE]
        began = time.monotonic()
        for prompt in asked:
            await _call(client, prompt)
        return {"s": time.monotonic() - began, "judged": len(asked)}

    with stand_in() as server:
        said = asyncio.run(work(server.url))
    return said | server.counts


def all_at_once(folder: str) -> dict[str, Any]:
    """Ask all prompts at once, and at once again those whose call failed, until all are there.

    The client tries each call again as often as ours does.
    """
    import openai

    async def work(url: str) -> dict[str, Any]:
        client = _client(url)
        left = prompts()
        total, rounds, lost = len(left), 0, 0
        began = time.monotonic()
        while left and rounds < MOST_ROUNDS:
            found = await asyncio.gather(
                *(_call(client, prompt) for prompt in left), return_exceptions=True
            )
            errors = [one for one in found if isinstance(one, BaseException)]
            for error in errors:
                if not isinstance(error, openai.APIError):
                    raise error
            left = [p for p, one in zip(left, found, strict=True) if isinstance(one, BaseException)]
            rounds, lost = rounds + 1, lost or len(left)
        seconds = time.monotonic() - began
        return {"s": seconds, "judged": total - len(left), "rounds": rounds, "lost_at_first": lost}

    with stand_in() as server:
        said = asyncio.run(work(server.url))
    return said | server.counts


def _client(url: str) -> Any:
    import openai

    from em.api_client import MAX_RETRIES, TIMEOUT_S

    return openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=MAX_RETRIES, timeout=TIMEOUT_S
    )


async def _call(client: Any, prompt: str) -> Any:
    return await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=1, temperature=0,
        logprobs=True, top_logprobs=20,
    )  # fmt: skip


def measure(ask: Ask) -> Measured:
    """Measure the row."""
    pool, limit = ask(by_pool), ask(prefill)
    api, slow, rush = ask(by_api), ask(one_by_one), ask(all_at_once)
    sides = {"the pool": pool, "prefill": limit, "the API judge": api, "all at once": rush}
    same = demand_same(
        "judgements",
        {"asked for": NUM_ANSWERS} | {name: said["judged"] for name, said in sides.items()},
    )
    demand_same("failed judgements", {"wanted": 0, "pool": pool["failed"], "API": api["failed"]})
    pool_rate, limit_rate = (limit["tokens"] / side["s"] for side in (pool, limit))
    return Measured(
        comparisons=[
            compared(
                f"by a pool ({pool['method']}), prompts", "tokens/s", pool_rate,
                "the bare engine reading the prompts (the limit)", limit_rate,
                least_ratio=LEAST_OF_PREFILL,
            ),
            *_by_address(api, slow, rush),
        ],
        checked=[same, "no judgement failed"],
        notes=[
            f"a call takes {LATENCY_S:g} s, {ALLOWED_A_SECOND:g} a second are allowed, {BURST} at "
            f"once; ours had up to {api['concurrency']} under way",
            f"refused (429): ours {api['refused']}, all at once {rush['refused']}; of all at once "
            f"{rush['lost_at_first']} calls were given up and asked again, in {rush['rounds']} "
            f"rounds; one at a time was measured on {NUM_ONE_BY_ONE} calls",
        ],
    )  # fmt: skip


def _by_address(
    api: dict[str, Any], slow: dict[str, Any], rush: dict[str, Any]
) -> Sequence[Comparison]:
    rate, slow_rate, rush_rate = (said["judged"] / said["s"] for said in (api, slow, rush))
    what = "behind an address"
    return [
        compared(what, "calls/s", rate, "the allowed rate", ALLOWED_A_SECOND,
                 least_ratio=LEAST_OF_ALLOWED),
        compared(what, "calls/s", rate, "one at a time", slow_rate),
        compared(what, "calls/s", rate, "all at once, until all are there", rush_rate),
    ]  # fmt: skip


ROW = Row("P4", f"Judge {NUM_ANSWERS:,} answers", measure)
