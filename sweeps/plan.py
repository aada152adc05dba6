"""A sweep's plan: what each cell asks for, with every name resolved, and what of it is missing.

Knows nothing of how a plan is made (see sweeps.planner) or a stage is carried out.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import Field

from em.budget import Price
from em.generation import Draw, SamplingConfig
from em.inspect_tasks import TaskConfig
from em.questions import Wording
from em.record import Record
from em.rules import NUMERIC, Rule
from em.snapshots import num_steps
from em.variants import Step
from sweeps.artefacts import Stage as Stage
from sweeps.resolved import Drift, Resolved
from sweeps.spec import Cell, SweepSpec
from sweeps.store import Store
from sweeps.stream_parts import failed_in, lacks

STAGES: tuple[Stage, ...] = ("train", "generate", "judge")


class EvaluationPlan(Record):
    """One question set asked of one cell; `stream` is where its responses are kept.

    With a `step` it is asked of the cell as it was after that step of its training: `name` tells
    it apart then, and `of` is the evaluation's own.
    """

    name: str
    step: int | None = None
    stream: str
    identity: dict[str, Any]
    metric: str
    sampling: SamplingConfig
    asked: tuple[tuple[Wording, int], ...]
    task: TaskConfig | None = Field(default=None, description="of Inspect, which asks and scores")
    scorer: str = Field(default="", description="of the task, whose scores count")
    longest: int = Field(description="tokens of an answer, at most: a task has its own limit")

    @property
    def of(self) -> str:
        """The name of the evaluation in the spec."""
        return asked_of(self.name)

    @property
    def dtype(self) -> str:
        """What the pool computes in."""
        return str(self.identity["serving"]["dtype"])

    @cached_property
    def wanted(self) -> dict[str, int]:
        """Wording key → number of samples."""
        return {wording.key: samples for wording, samples in self.asked}

    @property
    def num_responses(self) -> int:
        """Wordings × samples."""
        return sum(samples for _, samples in self.asked)


class JudgingPlan(Record):
    """One judge's scores of one evaluation of one cell."""

    judge: str
    demonstration: bool
    evaluation: str
    step: int | None = None
    stream: str
    identity: dict[str, Any]
    templates: dict[str, dict[str, str]]  # wording key → score → prompt template
    rules: dict[str, dict[str, Rule]]  # the same for how it is read; without those that are numbers
    wanted: dict[str, int]  # group → number of samples

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Score → the labels it can have; none for a number."""
        return {
            score: self.rule(wording, score).answers
            for wording, scores in self.templates.items()
            for score in scores
        }

    def rule(self, wording_key: str, score: str) -> Rule:
        """Return how a score of the answers to a wording is read."""
        return self.rules.get(wording_key, {}).get(score, NUMERIC)


class CellPlan(Record):
    """Everything that is needed to carry out a cell, and nothing of how far it is."""

    cell: Cell
    cell_id: str
    model_revision: str
    training_key: str
    training_identity: dict[str, Any]
    content_sha256: str | None
    num_rows: int
    num_characters: int
    num_held_out: int
    steps: tuple[Step, ...]  # how the rows were made, in order
    data_warnings: tuple[str, ...]
    snapshots: tuple[int, ...] = Field(
        default=(), description="steps of its training after which it is asked, too"
    )
    evaluations: tuple[EvaluationPlan, ...]
    judgings: tuple[JudgingPlan, ...]

    @property
    def num_steps(self) -> int:
        """Optimiser steps of its training; 0 where there is none, or an API does it."""
        config = self.cell.local_training
        if config is None:
            return 0
        batch = config.effective_batch
        return num_steps(self.num_rows, epochs=config.epochs, effective_batch=batch)


class Unresolved(Record):
    """A cell whose data or questions are neither on this machine nor to be fetched now."""

    cell: Cell
    why: str


class SweepPlan(Record):
    """A spec with every name resolved; `unresolved` is empty but for who asks for it."""

    spec: SweepSpec
    cells: tuple[CellPlan, ...]
    unresolved: tuple[Unresolved, ...] = ()
    prices: dict[str, Price] = Field(default={}, description="of judges behind an address")
    drifts: tuple[Drift, ...] = ()
    resolved: Resolved | None = Field(default=None, description="to be recorded with the sweep")


AT = "@"  # no evaluation's own name has it


def name_at(evaluation: str, step: int | None) -> str:
    """Return what an evaluation is called where it is asked after a step; None: at the end."""
    return evaluation if step is None else f"{evaluation}{AT}{step}"


def asked_of(name: str) -> str:
    """Return the evaluation's name in the spec: of `name_at` without the step."""
    return name.partition(AT)[0]


def at_the_end(plan: CellPlan) -> CellPlan:
    """Return a cell without what is asked before its training's end: its own results."""
    if not plan.snapshots:
        return plan
    return plan.model_copy(
        update={
            "snapshots": (),
            "evaluations": tuple(e for e in plan.evaluations if e.step is None),
            "judgings": tuple(j for j in plan.judgings if j.step is None),
        }
    )


def all_at_the_end(sweep: SweepPlan) -> SweepPlan:
    """Return a sweep whose cells are all as `at_the_end` has them."""
    return sweep.model_copy(update={"cells": tuple(map(at_the_end, sweep.cells))})


def streams_of(plan: CellPlan) -> tuple[str, ...]:
    """Return what the cell's responses and judgements are kept under.

    Two cells with equal data under two names share all of it.
    """
    kept = [e.stream for e in plan.evaluations] + [j.stream for j in plan.judgings]
    return tuple(kept)


class Left(NamedTuple):
    """What is left of a cell: stages that the store does not hold whole, judgements that failed."""

    stages: list[Stage]
    failed_judgements: int


def left_of(plan: CellPlan, store: Store) -> Left:
    """Return what is left of a cell; each of its records is read once."""
    stages: list[Stage] = []
    if plan.cell.training is not None and store.training(plan.training_key) is None:
        stages.append("train")
    if any(store.lacks("responses", e.stream, e.wanted) for e in plan.evaluations):
        stages.append("generate")
    judged = [(store.stream("judgements", j.stream), j.wanted) for j in plan.judgings]
    if any(lacks(record, wanted) for record, wanted in judged):
        stages.append("judge")
    failed = sum(
        len(indices) for record, wanted in judged for indices in failed_in(record, wanted).values()
    )
    return Left(stages, failed)


def is_whole(plan: CellPlan, store: Store) -> bool:
    """Whether the store holds a cell whole, with no judgement that failed."""
    return left_of(plan, store) == ([], 0)


def stages_to_run(plan: CellPlan, store: Store) -> list[Stage]:
    """Return the stages of a cell that the store does not hold whole."""
    return left_of(plan, store).stages


def draws_for(evaluation: EvaluationPlan, missing: Mapping[str, Sequence[int]]) -> list[Draw]:
    """Return the draws of an evaluation at the missing indices of each wording."""
    return [
        Draw(wording=wording, index=index)
        for wording, _ in evaluation.asked
        for index in missing.get(wording.key, ())
    ]
