"""When it appears: what cells say after parts of their training, from the untuned model to the end.

For conditions whose evaluations are asked before the end, too. None of it enters the results of a
cell, which are of its end. Pure functions of results; knows nothing of stores or of pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from em.definitions import Definition, ScaleDefinition
from em.intervals import REUSED, Interval, fixed_questions, no_interval
from em.record import Record
from em.seed_rates import WEIGHTS
from em.seeds import FACTORS
from sweeps.plan import CellPlan, JudgingPlan, asked_of
from sweeps.results import CellResult, ScoredResponse
from sweeps.settings import EvaluationConfig
from sweeps.spec import UNTUNED, SweepSpec

ONE_MODEL = "one model, asked under several sampling seeds: no band over trainings"


class TrajectoryPoint(Record):
    """A condition after one part of its training; 0 is the untuned model, 1 the end.

    `rate` is the mean over seeds of the evaluation's rate, `coherence` that of the share of
    coherent answers among those with a coherence score (None: the definition knows none). Only
    finished cells are in either. `responses` and what became of them are sums over these.
    """

    part: float
    steps: tuple[int, ...] = Field(description="of its seeds, which may have other numbers of rows")
    num_cells: int
    num_finished: int
    num_failed: int
    num_without_rate: int
    rate: Interval
    coherence: Interval | None
    responses: int
    unscored: int
    failed: int

    @property
    def step(self) -> float:
        """Where it is drawn: the mean of its seeds' steps."""
        return math.fsum(self.steps) / len(self.steps)


class Trajectory(Record):
    """One condition under one evaluation and judge, after growing parts of its training."""

    condition: str
    evaluation: str
    judge: str
    metric: str
    in_distribution: bool = Field(description="whether it asks held-out rows")
    points: tuple[TrajectoryPoint, ...]


@dataclass(frozen=True)
class _Seen:
    """What a trajectory needs of one cell after one part of its training."""

    result: CellResult
    step: int
    coherent: int
    with_coherence: int


class Gathered:
    """Takes the results of cells, one after the other, and says what they come to by step."""

    def __init__(self, spec: SweepSpec, metrics: Mapping[str, Definition]) -> None:
        """`metrics` are the definitions that evaluations follow, by name."""
        self._spec, self._metrics = spec, metrics
        self._asked = {e.name: e for e in spec.evaluations if any(f < 1 for f in e.at or ())}
        self._seen: dict[tuple[str, str, str], dict[float, list[_Seen]]] = {}

    def add(
        self,
        cell: CellPlan,
        judging: JudgingPlan,
        result: CellResult,
        rows: Sequence[ScoredResponse],
    ) -> None:
        """Take what one judge says of a cell after a part of its training, or at its end."""
        name = asked_of(judging.evaluation)
        if name not in self._asked or cell.cell.model.api is not None:
            return  # an API tells no steps that could be set beside ours
        part, step = self._part(cell, judging, self._asked[name])
        definition = self._metrics[name]
        scores = [row.scored.coherent for row in rows if row.scored.coherent is not None]
        coherent = 0
        if isinstance(definition, ScaleDefinition):
            coherent = sum(map(definition.is_coherent, scores))
        of = self._seen.setdefault((result.condition, name, result.judge), {})
        of.setdefault(part, []).append(_Seen(result, step, coherent, len(scores)))

    @staticmethod
    def _part(cell: CellPlan, judging: JudgingPlan, config: EvaluationConfig) -> tuple[float, int]:
        if cell.cell.training is None:
            return 0.0, 0
        if judging.step is None:
            return 1.0, cell.num_steps
        mine = [e.step for e in cell.evaluations if e.of == config.name and e.step is not None]
        return [f for f in config.at or () if f < 1][mine.index(judging.step)], judging.step

    def trajectories(self) -> list[Trajectory]:
        """Return one for each tuned condition, evaluation and judge, in the order of the cells."""
        untuned = {
            (seen.result.model, evaluation, judge): parts
            for (_, evaluation, judge), parts in self._seen.items()
            for seen in next(iter(parts.values()))
            if seen.result.variant == UNTUNED
        }
        found = []
        for (condition, evaluation, judge), parts in self._seen.items():
            first = next(iter(parts.values()))[0].result
            if first.variant == UNTUNED:
                continue
            before = untuned.get((first.model, evaluation, judge), {})
            found.append(
                Trajectory(
                    condition=condition,
                    evaluation=evaluation,
                    judge=judge,
                    metric=first.metric,
                    in_distribution=self._asked[evaluation].heldout is not None,
                    points=tuple(
                        self._point(part, cells, self._metrics[evaluation])
                        for part, cells in sorted((before | parts).items())
                    ),
                )
            )
        return found

    def _point(
        self, part: float, cells: Sequence[_Seen], definition: Definition
    ) -> TrajectoryPoint:
        finished = [seen for seen in cells if seen.result.state == "finished"]
        why = ONE_MODEL if part == 0 else REUSED if _crosses(self._spec) else None
        weights = WEIGHTS["answers" if definition.aggregation == "pooled" else "questions"]
        rates = [
            (seen.result.seed, seen.result.em_rate, seen.result.counts.coherent)
            for seen in finished
            if seen.result.em_rate is not None
        ]
        coherence = [
            (seen.result.seed, seen.coherent / seen.with_coherence, seen.with_coherence)
            for seen in finished
            if seen.with_coherence
        ]
        return TrajectoryPoint(
            part=part,
            steps=tuple(sorted({seen.step for seen in cells})),
            num_cells=len(cells),
            num_finished=len(finished),
            num_failed=sum(seen.result.state == "failed" for seen in cells),
            num_without_rate=len(finished) - len(rates),
            rate=_over_seeds(rates, weights, why),
            coherence=_over_seeds(coherence, WEIGHTS["answers"], why)
            if isinstance(definition, ScaleDefinition)
            else None,
            responses=sum(seen.result.counts.responses for seen in finished),
            unscored=sum(seen.result.counts.unscored for seen in finished),
            failed=sum(seen.result.counts.failed for seen in finished),
        )


def _over_seeds(
    shares: Sequence[tuple[int, float, int]], weights: str, why: str | None
) -> Interval:
    """Return the mean over seeds of cells' `shares` (seed, value, of how many), and its bounds.

    Cells of one seed are averaged first. `why` says for which reason there are no bounds.
    """
    by_seed: dict[int, list[tuple[float, int]]] = {}
    for seed, value, num in shares:
        by_seed.setdefault(seed, []).append((value, num))
    values = [math.fsum(v for v, _ in mine) / len(mine) for mine in by_seed.values()]
    if why is not None:
        return no_interval(math.fsum(values) / len(values) if values else None, why)
    worth = [sum(num for _, num in mine) for mine in by_seed.values()]
    hits = [value * num for value, num in zip(values, worth, strict=True)]
    return fixed_questions(hits, worth, weights=weights)


def _crosses(spec: SweepSpec) -> bool:
    """Whether seeds share levels of a factor, and so are no independent draws."""
    levels = (getattr(spec.factors, name) for name in FACTORS)
    return any(isinstance(numbers, tuple) and len(numbers) > 1 for numbers in levels)


def lacking(trajectories: Sequence[Trajectory]) -> list[str]:
    """Return a warning for each part of a training of which some cells have no results."""
    return [
        f"{one.condition}, {one.evaluation} judged by {one.judge} after {point.part:g} of the "
        f"training: {point.num_cells - point.num_finished} of {point.num_cells} cells are not "
        "finished there"
        for one in trajectories
        for point in one.points
        if 0 < point.part < 1 and point.num_finished < point.num_cells
    ]


def flat(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Return one row a point, for a table."""
    return [
        {
            "condition": one.condition,
            "evaluation": one.evaluation,
            "judge": one.judge,
            "metric": one.metric,
            "in_distribution": one.in_distribution,
            "part": point.part,
            "step": point.step,
            "num_cells": point.num_cells,
            "num_finished": point.num_finished,
            "num_failed": point.num_failed,
            "responses": point.responses,
            "unscored": point.unscored,
            "failed": point.failed,
            **_bounds("rate", point.rate),
            **_bounds("coherence", point.coherence),
        }
        for one in trajectories
        for point in one.points
    ]


def _bounds(name: str, of: Interval | None) -> dict[str, float | str | None]:
    return {
        name: of.estimate if of else None,
        f"{name}_low": of.low if of else None,
        f"{name}_high": of.high if of else None,
        f"{name}_method": of.method if of else None,
    }
