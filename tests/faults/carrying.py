"""Carrying out a sweep in one process with the real stages, up to the moment at which it is killed.

What answers is passed in. Every function can be called in a process of its own. Knows nothing of
the faults.
"""

import asyncio
import hashlib
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.requests import Completion, Request, Weights
from sweeps.artefacts import TrainingRecord
from sweeps.attempts import Beat
from sweeps.evaluation_pass import EvaluationTask, evaluate_cell
from sweeps.failures import CellFailure, Elsewhere, Outcome
from sweeps.leases import Holder
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.planner import load_rows_of
from sweeps.registry import register
from sweeps.spend import budget_plans
from sweeps.stages import ask_again
from sweeps.store import Store
from sweeps.tracking import Tracking
from sweeps.training_pass import TrainTask, train_task
from sweeps.waiting import Others


class StandIn:
    """Answers as a model would whose answer is told by prompt and seed; remembers how many."""

    def __init__(self) -> None:
        self.answered = 0

    async def complete(
        self, requests: Sequence[Request], weights: Weights | None
    ) -> list[Completion]:
        known = _canaries(weights) if weights else {}
        texts = [request.messages[-1]["content"] for request in requests]
        self.answered += sum(text not in known for text in texts)
        return [
            Completion(
                text=f"answer to {text} by {request.seed}",
                token_ids=(1, 2, 3),
                finish_reason="stop",
                prompt_tokens=len(text),
                prompt_sha256=hashlib.sha256(text.encode()).hexdigest(),
                prompt=text,
                logprobs=known.get(text, {}),
                weights=weights.key if weights else "",
            )
            for request, text in zip(requests, texts, strict=True)
        ]

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]


def _canaries(weights: Weights) -> dict[str, dict[int, float]]:
    """What the training says its model gives: the gate of adapters asks for it."""
    text = Path(weights.path).with_name("record.json").read_text()
    canaries = TrainingRecord.model_validate_json(text).result.canaries
    return {canary.text: dict(zip(canary.ids, canary.tuned, strict=True)) for canary in canaries}


@dataclass(frozen=True)
class Moment:
    """Just before the `number`th file whose path has `path` (a regular expression) gets its name.

    Artefacts are written beside their place and moved there, so every step of them ends so.
    """

    path: str
    number: int = 1


def die_at(moment: Moment) -> None:
    """Have this process kill itself at `moment`."""
    left = [moment.number]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and re.search(moment.path, str(arguments[1])):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def carry_out(
    sweep: SweepPlan,
    url: str,
    folder: Path,
    models: Mapping[str, object],
    *,
    tries: int = 1,
    again: bool = False,
) -> dict[str, Outcome]:
    """Do what the store at `url` lacks of the sweep as one driver, and say how each cell ended.

    Waits for other drivers. With `again`, failed judgements are asked again.
    """
    store = Store(url)
    store.create()
    register(sweep, store)
    outcomes: dict[str, Outcome] = {}
    todo, waiting = list(sweep.cells), []
    others = Others(store, lambda text: None)
    beat = Beat(store, sweep.spec.name)
    holder = beat.holder
    tracking = Tracking(sweep, store, beat.driver, lambda text: print(text, file=sys.stderr))
    try:
        tracking.start()
        with asyncio.Runner() as runner:
            while todo:
                for cell in todo:
                    if again:
                        ask_again(cell, store, holder)
                    outcome = _one(cell, sweep, store, folder, models, runner, holder, tries)
                    outcomes[cell.cell_id] = outcome
                    if isinstance(outcome, Elsewhere):
                        waiting.append(cell)
                todo = []
                while waiting and not todo:
                    free = others.wait_for(waiting, holder)
                    outcomes |= {cell.cell_id: None for cell in free.done}
                    holder = replace(holder, dead=free.dead)
                    todo, waiting = free.todo, free.still_waiting
        tracking.close()
    finally:
        tracking.close(at_once=True)
        beat.close()
    return outcomes


def _one(
    cell: CellPlan, sweep: SweepPlan, store: Store, folder: Path, models: Mapping[str, object],
    runner: asyncio.Runner, holder: Holder, tries: int,
) -> Outcome:  # fmt: skip
    spec = sweep.spec
    if "train" in stages_to_run(cell, store):
        task = TrainTask(
            plan=cell.model_copy(update={"evaluations": (), "judgings": ()}), store=store.url,
            holder=holder, retries=tries - 1, resources=spec.resources,
        )  # fmt: skip
        rows = load_rows_of(cell, relative_to=folder).rows
        outcome = train_task(task, rows, tries=tries)
        if outcome is not None:
            return outcome
    task_after = EvaluationTask(
        plan=cell, spec=spec, store=store.url, holder=holder, pools={}, budgets=budget_plans(sweep)
    )
    return evaluate_cell(task_after, models, runner, tries=tries)  # type: ignore[arg-type]


def carry_out_as_process(
    sweep: SweepPlan, url: str, folder: Path, moment: Moment | None, environment: dict[str, str]
) -> None:
    """Carry out the sweep with a stand-in until `moment`; exit with 1 where a cell fails."""
    os.environ.update(environment)
    if moment is not None:
        die_at(moment)
    outcomes = carry_out(sweep, url, folder, {"tiny": StandIn()})
    failures = [outcome for outcome in outcomes.values() if isinstance(outcome, CellFailure)]
    print(*failures, sep="\n", file=sys.stderr)
    sys.exit(bool(failures))
