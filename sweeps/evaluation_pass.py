"""Answering and judging of cells whose adapter is there: light Ray tasks that ask the pools.

A task holds no CPU of its own: the pools do the work. Knows nothing of training.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.serving import connect_pool
from em.api_judge import ApiReader
from em.budget import Budget
from em.code_judge import BanditReader
from em.generation import Endpoint
from em.judging import JudgeCallFailed, JudgeUnavailable, Reader, Reading
from em.pattern_judge import PatternReader
from em.pool_judge import choose_reader
from sweeps.api_spend import PaidEndpoint, PursePlan, open_purse
from sweeps.api_training import tuned_model
from sweeps.artefacts import TrainingRecord
from sweeps.endpoints import Model, ModelEndpoint, weights_of
from sweeps.failures import OnStage, Outcome, attempt_cell, outcome_of
from sweeps.graders import GraderPlan, open_graders
from sweeps.keys import judge_model
from sweeps.leases import Holder
from sweeps.plan import CellPlan, stages_to_run
from sweeps.spec import SweepSpec
from sweeps.spend import BudgetPlan, open_budgets
from sweeps.stage_gates import check_same_weights
from sweeps.stages import BATCHES_AT_ONCE, Speak, generate_stage, judge_stage, run_cell
from sweeps.store import Store

WAIT_S = 0.2
LOOK_S = 5.0
NO_BUDGETS: Mapping[str, Budget] = {}

OnResult = Callable[[CellPlan, Outcome], None]


@dataclass(frozen=True)
class EvaluationTask:
    """What a task needs to evaluate one cell. `pools` maps a model's name to its pool's name."""

    plan: CellPlan
    spec: SweepSpec
    store: str
    holder: Holder
    pools: Mapping[str, str]
    budgets: tuple[BudgetPlan, ...] = ()
    purse: PursePlan | None = None  # of a model behind an API
    graders: tuple[GraderPlan, ...] = ()
    answer_only: bool = False  # it is judged later, by a pool that is not held meanwhile
    work: "Callable[[EvaluationTask], Outcome] | None" = None  # else its pools are asked


def evaluate_cells(
    source: "queue.Queue[EvaluationTask | None]",
    *,
    at_once: int,
    retries: int,
    on_answered: Callable[[CellPlan], None],
    on_done: OnResult,
    stop: threading.Event,
) -> None:
    """Evaluate the cells that come from `source` until it yields None; `at_once` side by side.

    Ends early where `stop` is set. A task that is lost for good is that cell's failure.
    `on_answered` is told, within LOOK_S seconds, that a cell's responses are all there.
    """
    import ray

    # On all nodes: without CPUs of their own they would all lie on the driver's.
    remote = ray.remote(num_cpus=0, max_retries=retries, scheduling_strategy="SPREAD")(
        _evaluate_remotely
    )
    running: dict[Any, CellPlan] = {}
    answering: dict[str, EvaluationTask] = {}
    looked = time.monotonic()
    open_source = True
    while (open_source or running) and not stop.is_set():
        while open_source and len(running) < at_once:
            try:
                task = source.get(timeout=WAIT_S if not running else 0.01)
            except queue.Empty:
                break
            if task is None:
                open_source = False
            else:
                running[remote.remote(task)] = task.plan
                answering[task.plan.cell_id] = task
        if running:
            done, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_S)
            for reference in done:
                plan = running.pop(reference)
                answering.pop(plan.cell_id, None)
                on_done(plan, outcome_of(partial(ray.get, reference), plan.cell_id, "generate"))

        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            for task in [t for t in answering.values() if _is_answered(t)]:
                on_answered(answering.pop(task.plan.cell_id).plan)


def _is_answered(task: EvaluationTask) -> bool:
    return "generate" not in stages_to_run(task.plan, Store(task.store))


def _evaluate_remotely(task: EvaluationTask) -> Outcome:
    """Evaluate one cell in a Ray task."""
    if task.work is not None:
        return task.work(task)
    pools = {name: connect_pool(pool) for name, pool in task.pools.items()}
    with asyncio.Runner() as runner:
        return evaluate_cell(task, pools, runner, tries=task.spec.retries + 1)


def evaluate_cell(
    task: EvaluationTask, models: Mapping[str, Model], runner: asyncio.Runner, *, tries: int
) -> Outcome:
    """Answer and judge one cell with `models`, by name; return how it ended."""
    store = Store(task.store)
    plan = task.plan

    def speak(trained: TrainingRecord | None) -> Endpoint:
        weights = None
        if trained is not None:
            if task.pools and not store.files.is_local:
                # Its engine may be on another node, fetches it to there, and compares the hash.
                place = store.adapter_url(trained)
            else:
                place = str(store.adapter_dir(trained))
                check_same_weights(Path(place), trained)
            weights = weights_of(place, trained.weights_sha256, trained.kind)
        return ModelEndpoint(models[plan.cell.model.name], weights)

    def work(on_stage: OnStage) -> None:
        if plan.cell.model.api is None:
            _answer_and_judge(task, store, speak, models, runner, on_stage)
            return
        with _open_speaker(task, store, runner) as ask_api:
            _answer_and_judge(task, store, ask_api, models, runner, on_stage)

    return attempt_cell(
        store, task.holder.sweep, plan.cell_id, task.holder.driver, work,
        first_stage="generate", tries=tries,
    )  # fmt: skip


@contextlib.contextmanager
def _open_speaker(task: EvaluationTask, store: Store, runner: asyncio.Runner) -> Iterator[Speak]:
    """Give what speaks to a cell's model behind its API, and close its connections afterwards."""
    from em.api_endpoint import ApiEndpoint

    api, purse_of = task.plan.cell.model.api, task.purse
    assert api is not None and purse_of is not None
    opened: list[ApiEndpoint] = []

    def speak(trained: TrainingRecord | None) -> Endpoint:
        model, weights = api.model, ""
        if trained is not None:
            folder = store.adapter_dir(trained)
            check_same_weights(folder, trained)
            model, weights = tuned_model(folder), trained.weights_sha256
        opened.append(ApiEndpoint(api, model=model, weights=weights, batch=api.batch))
        purse = open_purse(purse_of, store)
        at_once = BATCHES_AT_ONCE if api.batch else api.concurrency
        return PaidEndpoint(
            opened[-1], purse, at_once=at_once, tuned=trained is not None, batch=api.batch
        )

    try:
        yield speak
    finally:
        for endpoint in opened:
            runner.run(endpoint.close())


def _answer_and_judge(
    task: EvaluationTask,
    store: Store,
    speak: Speak,
    models: Mapping[str, Model],
    runner: asyncio.Runner,
    on_stage: OnStage,
) -> None:
    plan = task.plan

    async def judge_all() -> None:
        if task.answer_only:
            return
        budgets = open_budgets(task.budgets, plan, store)
        async with open_readers(task.spec, models, budgets) as readers:
            await judge_stage(plan, store, readers, task.holder)

    def no_training(plan: CellPlan, store: Store) -> None:
        raise RuntimeError(f"{plan.cell_id}: there is no finished training to ask")

    with open_graders(task.graders, plan, store, runner) as graders:
        run_cell(
            plan,
            store,
            train=no_training,
            generate=lambda plan, store: runner.run(
                generate_stage(plan, store, speak, task.holder, graders)
            ),
            judge=lambda plan, store: runner.run(judge_all()),
            on_stage=on_stage,
        )


class NobodyReads:
    """Stands where a judge would, for scores that came with the answers."""

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        """Never called: those scores are known."""
        raise AssertionError(f"{len(prompts)} answers of a task have no score")


@contextlib.asynccontextmanager
async def open_readers(
    spec: SweepSpec,
    models: Mapping[str, Model] | None,
    budgets: Mapping[str, Budget] = NO_BUDGETS,
) -> AsyncIterator[dict[str, Reader]]:
    """Give every judge of the spec by name, ready to read, and close it afterwards.

    Without `models` only those that the sweep does not serve. Raises JudgeUnavailable or ValueError
    where one does not answer as it must.
    """
    readers: dict[str, Reader] = {}
    async with contextlib.AsyncExitStack() as stack:
        for judge in spec.judges:
            if judge.api is not None and judge.api_model is not None:
                reader = ApiReader(
                    url=judge.api,
                    model=judge.api_model,
                    key_env=judge.api_key_env,
                    concurrency=judge.concurrency,
                    api_version=judge.api_version,
                    budget=budgets.get(judge.name),
                )
                stack.push_async_callback(reader.close)
                await reader.check()
                readers[judge.name] = reader
            elif judge.pattern is not None:
                readers[judge.name] = PatternReader(judge.pattern)
            elif judge.scorer is not None:
                readers[judge.name] = NobodyReads()
            elif judge.analyser is not None:
                readers[judge.name] = BanditReader()
            elif models is not None:
                model = models[judge_model(spec, judge).name]
                readers[judge.name] = await choose_reader(ModelEndpoint(model, None))
        yield readers


async def check_judges(spec: SweepSpec) -> None:
    """Raise ValueError where a judge behind an address does not answer, before anything runs."""
    try:
        async with open_readers(spec, None):
            return
    except JudgeUnavailable as error:
        raise ValueError(str(error)) from error
