"""Samples of an Inspect task, answered by an endpoint: Inspect solves and scores, we are the model.

One pass of Inspect gives an answer and its score, which are kept together in the response. Imports
Inspect only where a task is run. Knows nothing of stores or cells.
"""

import asyncio
import json
import math
import tempfile
from collections.abc import Sequence
from typing import Any

from em.generation import (
    Draw,
    Endpoint,
    GateFailed,
    Response,
    SamplingConfig,
    request_seed,
    response_key,
)
from em.inspect_asking import Cell, Grader, Run, Spoken, note_solving
from em.inspect_model import CELL, GRADER, current_sample, evaluate, model_of, solving
from em.inspect_tasks import LoadedTask
from em.task_scores import TaskScore
from em.told import cut

MOST_KEPT = 2000  # characters of a scorer's explanation
WORDS = ("yes", "true", "no", "false")


async def answer_samples(
    draws: Sequence[Draw],
    endpoint: Endpoint,
    loaded: LoadedTask,
    *,
    scorer: str,
    stream: str,
    sampling: SamplingConfig,
    sampling_seed: int,
    weights: str,
    grader: Endpoint | None = None,
) -> list[Response]:
    """Return a response with its score for each draw, in order.

    `grader` is who is asked in the task's role of that name. What the task itself says of
    temperature, top_p and max_tokens goes before `sampling`. A sample that ends by an error is a
    response with a failed score. Raises GateFailed as em.generation does, and for a task that asks
    what cells are not served with; what the endpoints raise, too.
    """
    gone = [draw.wording.question for draw in draws if draw.wording.key not in loaded.samples]
    if gone:
        raise ValueError(
            f"the task's data changed while the sweep was running: {gone[0]!r} is gone"
        )
    found: dict[tuple[str, int], Response] = {}
    for index in sorted({draw.index for draw in draws}):
        mine = [draw for draw in draws if draw.index == index]
        seeds = {d.wording.question: Spoken(request_seed(sampling_seed, d)) for d in mine}
        run = Run(seeds, current_sample)
        cell = Cell(run, endpoint, sampling, weights)
        done = await _run(mine, loaded, cell, grader)
        for draw in mine:
            spoken = seeds[draw.wording.question]
            response = _response(draw, done[draw.wording.key], spoken, scorer, stream, weights)
            found[draw.wording.key, index] = response
    return [found[draw.wording.key, draw.index] for draw in draws]


async def _run(
    draws: Sequence[Draw], loaded: LoadedTask, cell: Cell, grader: Endpoint | None
) -> dict[str, Any]:
    """Return Inspect's record of each sample, by wording key."""
    run = cell.run
    keys = {draw.wording.question: draw.wording.key for draw in draws}
    samples = [
        loaded.samples[draw.wording.key].model_copy(update={"id": draw.wording.question})
        for draw in draws
    ]
    models = {CELL: model_of(cell, CELL)}
    if grader is not None:
        assert loaded.grader is not None
        models[GRADER] = model_of(Grader(run, grader, loaded.grader.max_tokens), GRADER)
    task = solving(loaded.task, samples, note_solving)
    with tempfile.TemporaryDirectory(prefix="emsweep-inspect-") as folder:
        running = asyncio.create_task(evaluate(task, models, folder, sandbox=loaded.sandbox))
        try:
            await asyncio.wait({running, run.broken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
    if run.broken.done():
        run.broken.result()
    log = running.result()
    others = sorted(set(log.stats.model_usage) - set(map(str, models.values())))
    if others:
        raise GateFailed(
            f"task gate: the task asked other models ({', '.join(others)}), which no budget or "
            "record here knows of; nothing was stored. Have it ask its role 'grader' (an argument "
            "of the task, in 'task_args') and name that one in 'grader'"
        )
    done = {keys[str(sample.id)]: sample for sample in log.samples or ()}
    if len(done) < len(draws):
        why = log.error.message if log.error else log.status
        raise RuntimeError(f"Inspect ended with {len(done)} of {len(draws)} samples: {why}")
    return done


def _response(
    draw: Draw, sample: Any, spoken: Spoken, scorer: str, stream: str, weights: str
) -> Response:
    last = spoken.answers[-1] if spoken.answers else None
    wording = draw.wording
    return Response(
        key=response_key(stream, wording.key, draw.index),
        question=wording.question,
        wording=wording.number,
        wording_key=wording.key,
        index=draw.index,
        seed=spoken.seed,
        system=None,
        text=wording.text,
        answer=str(sample.output.completion) if sample.error is None else "",
        finish_reason=last.finish_reason if last else "stop",
        num_tokens=sum(answer.num_tokens for answer in spoken.answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in spoken.answers),
        prompt_sha256=last.prompt_sha256 if last else "",
        weights=weights,
        scores=(_score(sample, scorer),),
        grader_calls=len(spoken.grades),
        grader_prompt_tokens=sum(answer.prompt_tokens for answer in spoken.grades),
        grader_tokens=sum(answer.num_tokens for answer in spoken.grades),
    )


def _score(sample: Any, scorer: str) -> TaskScore:
    """Return what the scorer made of a sample; never 0 for what it did not score."""
    if sample.error is not None:
        text = cut(str(sample.error.message), 500)
        return TaskScore(scorer=scorer, state="failed", error=text)
    score = (sample.scores or {}).get(scorer)
    if score is None:
        return TaskScore(scorer=scorer, state="unscored", explanation="the scorer said nothing")
    if isinstance(score.value, list | dict):
        raise GateFailed(
            f"task gate: the scorer {scorer!r} gives several values for a sample "
            f"({cut(str(score.value), 80)}), and one is wanted: name a task that gives one"
        )
    number = number_of(score.value)
    inside = number is not None and 0 <= number <= 1
    outside = "" if inside or number is None else "(not from 0 to 1) "
    return TaskScore(
        scorer=scorer,
        state="scored" if inside else "unscored",
        number=number if inside else None,
        value=json.dumps(score.value),
        explanation=outside + str(score.explanation or "")[:MOST_KEPT],
    )


def number_of(value: str | int | float | bool) -> float | None:
    """Return a score's value as Inspect's value_to_float has it; None where that would guess 0.

    C is 1, P is 0.5, I and N (no answer) are 0, yes and true 1, no and false 0.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if value not in ("C", "P", "I", "N") and word not in WORDS and not _is_number(word):
            return None
    from inspect_ai.scorer import value_to_float

    number = float(value_to_float()(value))
    return number if math.isfinite(number) else None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
