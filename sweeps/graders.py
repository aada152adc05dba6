"""Models that grade the answers of tasks, behind an API: opened for a cell, paid for, foreseen.

What a grader used stands in the responses that it graded. Knows nothing of what it is asked.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from em.api_client import check_key
from em.api_endpoint import ApiEndpoint
from em.api_models import CHARACTERS_A_TOKEN, KnownApiModel, known_api_model
from em.budget import NOTHING, Usage
from em.generation import AskingStopped, Endpoint, Prompt
from em.inspect_tasks import GraderConfig
from em.record import Record
from sweeps.api_spend import PaidEndpoint, Purse
from sweeps.few import times
from sweeps.plan import CellPlan, EvaluationPlan, SweepPlan
from sweeps.store import Store
from sweeps.stream_parts import BY_GRADER, Graded, usage_of_grades

# Of a grade, what the task says around question and answer, and what the grader writes: a guess.
TASK_TOKENS, GRADE_TOKENS = 500, 200
CHECK_TOKENS = 16


class GraderPlan(Record):
    """The grader of one evaluation in a sweep, and the streams in which what it used is found."""

    evaluation: str
    config: GraderConfig
    streams: tuple[str, ...]


def grader_plans(plan: SweepPlan) -> tuple[GraderPlan, ...]:
    """Return the graders of the sweep's evaluations that have one."""
    streams: dict[str, dict[str, None]] = {}
    for cell in plan.cells:
        for evaluation in cell.evaluations:
            streams.setdefault(evaluation.of, {})[evaluation.stream] = None
    return tuple(
        GraderPlan(evaluation=e.name, config=e.grader, streams=tuple(streams.get(e.name, ())))
        for e in plan.spec.evaluations
        if e.grader is not None
    )


@contextlib.contextmanager
def open_graders(
    plans: Iterable[GraderPlan], cell: CellPlan, store: Store, runner: asyncio.Runner
) -> Iterator[Mapping[str, Endpoint]]:
    """Give the graders that a cell's missing answers need, by evaluation, and close them after."""
    needed = {evaluation.of for evaluation in _graded(cell, store)}
    with contextlib.ExitStack() as stack:
        opened: dict[str, Endpoint] = {}
        for plan in plans:
            if plan.evaluation not in needed:
                continue
            endpoint = _endpoint(plan.config)
            stack.callback(_close, endpoint, runner)
            spent = partial(_spent_usd, plan.streams, store)
            purse = Purse(plan.config, f"grader of {plan.evaluation!r}", spent)
            opened[plan.evaluation] = PaidEndpoint(endpoint, purse, at_once=plan.config.concurrency)
        yield opened


def graders_needed(cells: Iterable[CellPlan], store: Store) -> list[GraderConfig]:
    """Return the graders of answers that the cells lack, each once."""
    tasks = (evaluation.task for cell in cells for evaluation in _graded(cell, store))
    return list(dict.fromkeys(t.grader for t in tasks if t is not None and t.grader is not None))


def _graded(cell: CellPlan, store: Store) -> list[EvaluationPlan]:
    return [
        e
        for e in cell.evaluations
        if e.task is not None
        and e.task.grader is not None
        and store.lacks("responses", e.stream, e.wanted)
    ]


async def check_graders(graders: Iterable[GraderConfig]) -> None:
    """Ask each grader for a word, in no budget. Raises ValueError where it does not answer."""
    messages = ({"role": "user", "content": "Reply with the word ready."},)
    prompt = Prompt(messages=messages, max_tokens=CHECK_TOKENS, seed=0, temperature=0)
    for config in graders:
        endpoint = _endpoint(config)
        try:
            await endpoint.ask([prompt])
        except AskingStopped as stopped:
            raise ValueError(f"the grader cannot be asked: {stopped.why}") from stopped
        finally:
            await endpoint.close()


def check_grader_keys(graders: Iterable[GraderConfig]) -> None:
    """Raise ValueError where a grader on another machine would be asked without a key."""
    for config in graders:
        check_key(config.url, config.key_env, who="grader", setting="key_env")


def used(streams: Iterable[str], store: Store) -> Usage:
    """Return what graders used in `streams`; parts of attempts that did not end count, too."""
    total, columns = NOTHING, tuple(Graded.model_fields)
    for stream in streams:
        for part in store.all_parts("responses", stream):
            if part.used is not None:
                total += part.used.get(BY_GRADER, NOTHING)
            else:
                items = store.read_part("responses", stream, part, Graded, columns)
                total += usage_of_grades(items)
    return total


def foreseen_of_graders(plan: SweepPlan, todo: Sequence[CellPlan], store: Store) -> list[str]:
    """Return a line for each grader: what it may still cost, and what it lacks."""
    said = []
    for grader in grader_plans(plan):
        config, share = grader.config, times(plan)
        num, read = _grades_left(grader.evaluation, todo, store)
        num, read = int(num * share), int(read * share)
        until_now = used(grader.streams, store)
        line = (
            f"grader of {grader.evaluation}: {config.model} at {config.url}, {num:,} grades (if it "
            f"is asked once for each); {until_now.calls:,} until now"
        )
        known = known_api_model(config)
        if known is None:
            line += "; no price is known for this address"
        else:
            usd = _usd(known, Usage(prompt_tokens=read, completion_tokens=num * GRADE_TOKENS))
            line += f"; about {usd:,.2f} USD to come, {_usd(known, until_now):,.2f} USD until now"
            if config.budget_usd is not None:
                line += f", of a budget of {config.budget_usd:g} USD"
        try:
            check_grader_keys([config])
        except ValueError as error:
            line += f". IT CANNOT RUN YET: {error}"
        said.append(line)
    return said


def _close(endpoint: ApiEndpoint, runner: asyncio.Runner) -> None:
    runner.run(endpoint.close())


def _endpoint(config: GraderConfig) -> ApiEndpoint:
    return ApiEndpoint(config, model=config.model, weights="", who="grader")


def _grades_left(name: str, cells: Sequence[CellPlan], store: Store) -> tuple[int, int]:
    """Return how many answers are not graded, and about how many tokens a grader reads of them."""
    num = read = 0
    for cell in cells:
        for evaluation in (e for e in cell.evaluations if e.of == name):
            left = store.num_missing("responses", evaluation.stream, evaluation.wanted)
            length = {w.key: len(w.text) // CHARACTERS_A_TOKEN for w, _ in evaluation.asked}
            around = TASK_TOKENS + evaluation.longest
            num += sum(left.values())
            read += sum(count * (length[key] + around) for key, count in left.items())
    return num, read


def _spent_usd(streams: Sequence[str], store: Store, known: KnownApiModel) -> float:
    return _usd(known, used(streams, store))


def _usd(known: KnownApiModel, usage: Usage) -> float:
    return known.answer_usd(usage.prompt_tokens, usage.completion_tokens, tuned=False, batch=False)
