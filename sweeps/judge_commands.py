"""Judging apart from a run: stored responses by one judge, and a judge against a table of scores.

Generates nothing and trains nothing. Knows nothing of the command line.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from em.judge_check import (
    ScoreCheck,
    ScoredAnswer,
    check_score,
    draw_answers,
    load_answers,
    score_answers,
)
from em.judging import JudgingStopped
from em.questions import SCORES
from em.record import Record
from sweeps.attempts import Beat
from sweeps.endpoints import Model
from sweeps.engines import Engines, start_engine
from sweeps.evaluation_pass import check_judges, open_readers
from sweeps.failures import CellFailure, Elsewhere, OnStage, Outcome, attempt_cell
from sweeps.keys import judge_model
from sweeps.leases import Holder
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.registry import register
from sweeps.settings import JudgeConfig
from sweeps.spec import SweepSpec
from sweeps.spend import BudgetPlan, budget_plans, open_budgets
from sweeps.stages import judge_stage
from sweeps.store import Store


class StoredJudging(Record):
    """What there is to judge: cells to do, and how many are done or have not all responses."""

    plan: SweepPlan
    todo: tuple[CellPlan, ...]
    num_done: int
    num_without_responses: int


class JudgeCheck(Record):
    """A judge of a sweep beside a table of scores; `seed` drew the rows where there is a limit."""

    judge: str
    identity: dict[str, object]
    answers_file: str
    answers_sha256: str
    num_rows: int
    num_checked: int
    seed: int | None
    scores: tuple[ScoreCheck, ...]


def find_judge(spec: SweepSpec, name: str) -> JudgeConfig:
    """Return a judge of the spec by its name. Raises ValueError with those that there are."""
    found = next((judge for judge in spec.judges if judge.name == name), None)
    if found is None:
        raise ValueError(
            f"the spec has no judge {name!r}: add it to 'judges', or name one of "
            f"{', '.join(judge.name for judge in spec.judges)}"
        )
    return found


def only_judge(sweep: SweepPlan, name: str) -> SweepPlan:
    """Return the sweep with one judge, and the evaluations that it scores."""
    judge = find_judge(sweep.spec, name)
    cells = []
    for cell in sweep.cells:
        judgings = tuple(j for j in cell.judgings if j.judge == name)
        scored = {judging.evaluation for judging in judgings}
        evaluations = tuple(e for e in cell.evaluations if e.name in scored)
        cells.append(cell.model_copy(update={"judgings": judgings, "evaluations": evaluations}))
    spec = sweep.spec.model_copy(update={"judges": (judge,)})
    return sweep.model_copy(update={"spec": spec, "cells": tuple(cells)})


def stored_judging(sweep: SweepPlan, store: Store, name: str) -> StoredJudging:
    """Return which cells of `sweep` one judge can score now."""
    only = only_judge(sweep, name)
    stages = {cell.cell_id: stages_to_run(cell, store) for cell in only.cells}
    # The store may hold responses of a training that is gone: nothing is trained for them.
    lacking = [cell for cell in only.cells if "generate" in stages[cell.cell_id]]
    todo = [
        cell for cell in only.cells
        if "judge" in stages[cell.cell_id] and "generate" not in stages[cell.cell_id]
    ]  # fmt: skip
    return StoredJudging(
        plan=only,
        todo=tuple(todo),
        num_done=len(only.cells) - len(todo) - len(lacking),
        num_without_responses=len(lacking),
    )


def judge_stored(
    sweep: SweepPlan,
    store: Store,
    judging: StoredJudging,
    *,
    address: str | None,
    inline: bool,
    say: Callable[[str], None],
) -> list[CellFailure | Elsewhere]:
    """Judge the cells of `judging`, whose judgements go to the store; return what was not done.

    Raises ValueError where a judge behind an address does not answer at the start.
    """
    asyncio.run(check_judges(judging.plan.spec))
    register(sweep, store)
    not_done = []
    budgets = budget_plans(judging.plan)
    beat = Beat(store, sweep.spec.name)
    only = judging.plan.spec
    try:
        with (
            engine_here(only) if inline else pool_of_judge(only, store, beat, address) as models,
            asyncio.Runner() as runner,
        ):
            for number, cell in enumerate(judging.todo, start=1):
                work = _judging_of(cell, only, store, beat.holder, budgets, models, runner)
                outcome = attempt_cell(
                    store, sweep.spec.name, cell.cell_id, beat.driver, work,
                    first_stage="judge", tries=sweep.spec.retries + 1,
                )  # fmt: skip
                not_done += [outcome] if outcome else []
                say(f"{_told(outcome)} {number}/{len(judging.todo)}  {cell.cell_id}")
    finally:
        beat.close()
    return not_done


def _told(outcome: Outcome) -> str:
    match outcome:
        case None:
            return "judged"
        case Elsewhere():
            return "left to another driver, which judges it now:"
        case CellFailure():
            return f"FAILED: {outcome.error_class}"


def _judging_of(
    cell: CellPlan,
    spec: SweepSpec,
    store: Store,
    holder: Holder,
    budgets: Sequence[BudgetPlan],
    models: Mapping[str, Model] | None,
    runner: asyncio.Runner,
) -> Callable[[OnStage], None]:
    async def judge_all() -> None:
        opened = open_budgets(budgets, cell, store)
        async with open_readers(spec, models, opened) as readers:
            await judge_stage(cell, store, readers, holder)

    return lambda on_stage: runner.run(judge_all())


@contextlib.contextmanager
def engine_here(spec: SweepSpec) -> Iterator[Mapping[str, Model] | None]:
    """Give the model of the spec's one judge by name, in an engine of this process.

    None where the judge is served by nobody here (an address, patterns, an analyser).
    """
    (judge,) = spec.judges
    if not judge.served:
        yield None
        return
    engines = Engines([judge_model(spec, judge)], start_engine(spec))
    try:
        engines.start(engines)
        yield engines
    finally:
        engines.close()


@contextlib.contextmanager
def pool_of_judge(
    spec: SweepSpec, store: Store, beat: Beat, address: str | None
) -> Iterator[Mapping[str, Model] | None]:
    """Give the same from a pool, on the Ray cluster at `address` or on one started here."""
    (judge,) = spec.judges
    if not judge.served:
        yield None
        return
    from cluster.serving import connect_pool
    from cluster.session import session
    from sweeps.console import QUIET
    from sweeps.pools import Pools

    model = judge_model(spec, judge)
    with session(address, environment=QUIET):
        pools = Pools(spec, store, beat, joined=address is not None)
        try:
            pools.start(model, model.name)
            yield {model.name: connect_pool(pools.name(model.name))}
        finally:
            pools.give_up()


def templates_of(sweep: SweepPlan, name: str) -> Callable[[str], Mapping[str, str]]:
    """Return a function from a question's text to the prompts of one judge for scores 0 to 100.

    A question that the sweep does not ask has the prompts that all its others share. Raises
    ValueError where the judge gives no such scores.
    """
    find_judge(sweep.spec, name)
    found: dict[str, Mapping[str, str]] = {}
    for cell in sweep.cells[:1]:
        texts = {w.key: w.text for e in cell.evaluations for w, _ in e.asked}
        for judging in (j for j in cell.judgings if j.judge == name):
            for key, templates in judging.templates.items():
                if set(SCORES) <= set(templates):
                    found[texts[key]] = templates
    if not found:
        raise ValueError(
            f"the judge {name!r} gives no {' and '.join(SCORES)} in this spec: there is nothing "
            "to compare with the table"
        )
    kinds = {tuple(templates[score] for score in SCORES) for templates in found.values()}

    def of(question: str) -> Mapping[str, str]:
        if question in found:
            return found[question]
        if len(kinds) > 1:
            raise ValueError(
                f"the sweep does not ask {question!r:.80}, and its questions have different judge "
                "prompts: give the judge a 'prompts' file of its own"
            )
        return dict(zip(SCORES, next(iter(kinds)), strict=True))

    return of


def check_judge(
    sweep: SweepPlan, name: str, answers_path: Path, *, limit: int | None, seed: int
) -> JudgeCheck:
    """Have a judge of the sweep score a table's answers, in this process; return the comparison.

    Raises ValueError for what is wrong with the table or the judge. Nothing is stored, and no
    budget holds: `limit` does.
    """
    rows = load_answers(answers_path)
    chosen = draw_answers(rows, limit=limit, seed=seed)
    templates = templates_of(sweep, name)
    for row in chosen:
        templates(row.question)  # before anything is started
    only = only_judge(sweep, name)
    try:
        with engine_here(only.spec) as models:
            scores = asyncio.run(_read_table(only.spec, models, chosen, templates))
    except JudgingStopped as error:
        raise ValueError(str(error)) from error
    judging = next(j for cell in only.cells for j in cell.judgings)
    return JudgeCheck(
        judge=name,
        identity=judging.identity["judge"],
        answers_file=answers_path.name,
        answers_sha256=hashlib.sha256(answers_path.read_bytes()).hexdigest(),
        num_rows=len(rows),
        num_checked=len(chosen),
        seed=seed if len(chosen) < len(rows) else None,
        scores=scores,
    )


async def _read_table(
    spec: SweepSpec,
    models: Mapping[str, Model] | None,
    answers: Sequence[ScoredAnswer],
    templates: Callable[[str], Mapping[str, str]],
) -> tuple[ScoreCheck, ...]:
    async with open_readers(spec, models) as readers:
        (reader,) = readers.values()
        judged = await score_answers(answers, reader, templates)
    return tuple(check_score(score, answers, found) for score, found in judged.items())
