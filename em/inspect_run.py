"""Samples of an Inspect task, answered by an endpoint: Inspect solves and scores, we are the model.

One pass of Inspect gives an answer and its score, which are kept together in the response. Imports
Inspect only where a task is run. Knows nothing of stores, or of what is asked beside it.
"""

import asyncio
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from em.generation import (
    AskingStopped,
    Draw,
    Endpoint,
    GateFailed,
    Response,
    SamplingConfig,
    request_seed,
    response_key,
)
from em.inspect_asking import Ask, GraderModel, Run, ScoredModel, Spoken
from em.inspect_model import (
    GRADER,
    SCORED,
    current_sample,
    cut_short,
    evaluate,
    model_of,
    solving,
)
from em.inspect_tasks import LoadedTask
from em.task_scores import TaskScore
from em.told import cut

MOST_KEPT = 2000  # characters of a scorer's explanation
LIMITS_OF_TIME = ("time", "working")
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
    what cells are not served with, and AskingStopped where an endpoint can go on no more, with
    what was answered until then; a sample that was cut short is a failed one.
    """
    gone = [draw.wording.question for draw in draws if draw.wording.key not in loaded.samples]
    if gone:
        raise ValueError(
            f"the task's data changed while the sweep was running: {gone[0]!r} is gone. Does the "
            "task shuffle without a seed? Give it one in 'task_args'"
        )
    found: dict[tuple[str, int], Response] = {}
    for index in sorted({draw.index for draw in draws}):
        mine = [draw for draw in draws if draw.index == index]
        samples = {d.wording.question: Spoken(request_seed(sampling_seed, d)) for d in mine}
        run = Run(samples, current_sample)
        models = {SCORED: ScoredModel(run, endpoint, sampling, weights).ask}
        if grader is not None and loaded.config.grader is not None:
            models[GRADER] = GraderModel(run, grader, loaded.config.grader.max_tokens).ask
        done, why = await _run(run, mine, loaded, models)
        for draw in mine:
            name = draw.wording.question
            if name not in done:
                continue
            try:
                score = _score(done[name], samples[name], scorer, is_cut=run.broken.done())
            except GateFailed as gate:
                why, score = why or gate, _failed(scorer, gate)
            response = _response(draw, done[name], samples[name], score, stream, weights)
            found[draw.wording.key, index] = response
        if why is not None:
            raise _stopped(why, found.values(), scorer)
    return [found[draw.wording.key, draw.index] for draw in draws]


async def _run(
    run: Run, draws: Sequence[Draw], loaded: LoadedTask, models: Mapping[str, Ask]
) -> tuple[dict[str, Any], Exception | None]:
    """Return Inspect's record of each sample, by its id, and why there are not all to be had.

    Of a run that is broken these are the samples that anything was asked for until then.
    """
    samples = [
        loaded.samples[draw.wording.key].model_copy(update={"id": draw.wording.question})
        for draw in draws
    ]
    asked = {name: model_of(run.ending(ask), name) for name, ask in models.items()}
    task = solving(loaded.task, samples, run.note_solving)
    with tempfile.TemporaryDirectory(prefix="emsweep-inspect-") as folder:
        running = asyncio.create_task(evaluate(task, asked, folder, sandbox=loaded.config.sandbox))
        try:
            await asyncio.wait({running, run.broken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
        log = cut_short(folder) if run.broken.done() else running.result()
    done = {str(sample.id): sample for sample in (log and log.samples) or ()}
    if run.broken.done():
        begun = {name: sample for name, sample in done.items() if run.samples[name].is_begun}
        return begun, run.why
    others = sorted(set(log.stats.model_usage) - set(map(str, asked.values())))
    if others:
        return done, GateFailed(
            f"task gate: the task asked other models ({', '.join(others)}), which no budget or "
            "record here knows of. Have it ask its role 'grader' (an argument of the task, in "
            "'task_args') and name that one in 'grader'"
        )
    if len(done) < len(draws):
        why = log.error.message if log.error else log.status
        return done, RuntimeError(f"Inspect ended with {len(done)} of {len(draws)} samples: {why}")
    return done, None


def _stopped(why: Exception, found: Iterable[Response], scorer: str) -> AskingStopped:
    """Return what ends the work, with what was answered and paid for until then.

    Where a gate has failed no answer is to be trusted: each is a failed one.
    """
    stopped = AskingStopped(why.why if isinstance(why, AskingStopped) else why, [])
    void = {"answer": "", "scores": (_failed(scorer, why),)} if isinstance(why, GateFailed) else {}
    stopped.responses = [response.model_copy(update=void) for response in found]
    return stopped


def _failed(scorer: str, why: Exception) -> TaskScore:
    return TaskScore(scorer=scorer, state="failed", error=cut(str(why), 500))


def _response(
    draw: Draw, sample: Any, spoken: Spoken, score: TaskScore, stream: str, weights: str
) -> Response:
    answers, grades = spoken.model.answers, spoken.grader.answers
    last = answers[-1] if answers else None
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
        answer=str(sample.output.completion) if score.state != "failed" else "",
        finish_reason=last.finish_reason if last else "stop",
        num_tokens=sum(answer.num_tokens for answer in answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        prompt_sha256=last.prompt_sha256 if last else "",
        weights=weights,
        scores=(score,),
        grader_calls=len(grades),
        grader_prompt_tokens=sum(answer.prompt_tokens for answer in grades),
        grader_tokens=sum(answer.num_tokens for answer in grades),
    )


def _score(sample: Any, spoken: Spoken, scorer: str, *, is_cut: bool) -> TaskScore:
    """Return what the scorer made of a sample; never 0 for what it did not score.

    A sample of a run that `is_cut` has failed where nothing has scored it.
    """
    if sample.error is not None:
        text = cut(str(sample.error.message), 500)
        return TaskScore(scorer=scorer, state="failed", error=text)
    if is_cut and not sample.scores:
        return TaskScore(scorer=scorer, state="failed", error="the run was cut short")
    if sample.limit is not None:
        told = f"the task's {sample.limit.type} limit of {sample.limit.limit:g} was reached"
        if sample.limit.type in LIMITS_OF_TIME:  # which say how busy the pool was
            return TaskScore(scorer=scorer, state="failed", error=told)
        return TaskScore(scorer=scorer, state="unscored", explanation=told)
    if not spoken.model.answers:
        raise GateFailed(
            "identity gate: the task answers a sample itself, and the cell was not asked"
        )
    score = (sample.scores or {}).get(scorer)
    if score is None:
        return TaskScore(scorer=scorer, state="unscored", explanation="the scorer said nothing")
    if isinstance(score.value, list | dict):
        raise GateFailed(
            f"task gate: the scorer {scorer!r} gives several values for a sample "
            f"({cut(str(score.value), 80)}), and one is wanted: name a task that gives one"
        )
    number = number_of(score.value)
    if number is not None and not 0 <= number <= 1:
        raise GateFailed(
            f"task gate: the scorer {scorer!r} gives {number:g}, and its scores are read as shares "
            "from 0 to 1: name a task that gives one, or bring its scale to one in a task of your "
            "own (configs/tasks/strong_reject.py does)"
        )
    return TaskScore(
        scorer=scorer,
        state="scored" if number is not None else "unscored",
        number=number,
        value=json.dumps(score.value),
        explanation=str(score.explanation or "")[:MOST_KEPT],
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
