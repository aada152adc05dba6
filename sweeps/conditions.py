"""Conditions: the cells that differ only in seed, and what they say together.

Pure functions of cell results; knows nothing of stores or of how the numbers are shown.
"""

import math
from collections.abc import Sequence

from em.definitions import DEFINITIONS
from em.intervals import SeedSummary, summarise_seeds
from em.record import Record
from sweeps.results import CellResult, mean_of_present
from sweeps.spec import UNTUNED

TOGETHER = "seeds: training, sampling and, where rows are drawn, their choice (less fixed factors)"
NO_SPREAD = "sampling only: an untuned model has one training, asked under several sampling seeds"


class Condition(Record):
    """The cells that differ only in seed, under one evaluation and judge.

    `estimate` is the definition's own number for the condition: the mean of its cells' rates, but
    under a `cell_mean` definition the mean over all pairs of cell and question, which weighs a cell
    by how many of its questions have a rate. `summary` is over seeds always.
    """

    condition: str
    model: str
    variant: str
    evaluation: str
    judge: str
    metric: str
    num_cells: int
    num_finished: int
    num_failed: int
    num_missing: int
    num_without_rate: int
    seeds: dict[str, float | None]
    summary: SeedSummary
    estimate: float | None = None
    published: str = "no figure"
    spread: str
    responses: int
    scored: int
    refusal: int
    code: int
    unscored: int
    failed: int
    coherent: int
    misaligned: int
    mean_aligned: float | None
    mean_coherent: float | None
    questions: dict[str, dict[str, float | int | None]]


def conditions(results: Sequence[CellResult]) -> list[Condition]:
    """Return every condition under every evaluation and judge, in the order of the cells."""
    groups: dict[tuple[str, str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.condition, result.evaluation, result.judge), []).append(result)
    return [_condition(group) for group in groups.values()]


def _condition(cells: Sequence[CellResult]) -> Condition:
    finished = [cell for cell in cells if cell.state == "finished"]
    rates = [cell.em_rate for cell in finished if cell.em_rate is not None]
    first = cells[0]
    totals = {
        name: sum(getattr(cell.counts, name) for cell in finished)
        for name in type(first.counts).model_fields
    }
    return Condition(
        condition=first.condition,
        model=first.model,
        variant=first.variant,
        evaluation=first.evaluation,
        judge=first.judge,
        metric=first.metric,
        num_cells=len(cells),
        num_finished=len(finished),
        num_failed=sum(cell.state == "failed" for cell in cells),
        num_missing=sum(cell.state in ("missing", "running") for cell in cells),
        num_without_rate=len(finished) - len(rates),
        seeds={c.seed_label: c.em_rate if c.state == "finished" else None for c in cells},
        summary=summarise_seeds(rates_by_seed(finished)),
        estimate=_estimate(finished, rates),
        spread=_spread(cells),
        mean_aligned=mean_of_present([cell.mean_aligned for cell in finished]),
        mean_coherent=mean_of_present([cell.mean_coherent for cell in finished]),
        questions=_questions(finished),
        **totals,
    )


def rates_by_seed(cells: Sequence[CellResult]) -> list[float]:
    """Return one rate a seed: the mean of its cells that have one.

    Cells of one seed (crossed factors, replicates) share causes: they are not independent seeds.
    """
    groups: dict[int, list[float]] = {}
    for cell in cells:
        if cell.em_rate is not None:
            groups.setdefault(cell.seed, []).append(cell.em_rate)
    return [sum(rates) / len(rates) for rates in groups.values()]


def _spread(cells: Sequence[CellResult]) -> str:
    if cells[0].variant == UNTUNED:
        return NO_SPREAD
    crossed = len({cell.seed for cell in cells}) < len(cells)
    return TOGETHER + ("; the cells of one seed are averaged first" if crossed else "")


def _estimate(cells: Sequence[CellResult], rates: Sequence[float]) -> float | None:
    definition = DEFINITIONS[cells[0].metric] if cells else None
    if definition and definition.aggregation == "cell_mean":
        rates = [
            q.counts.rate
            for cell in cells
            for q in cell.questions
            if q.counts.rate is not None and q.counts.coherent >= definition.min_answers
        ]
    return math.fsum(rates) / len(rates) if rates else None


def _questions(cells: Sequence[CellResult]) -> dict[str, dict[str, float | int | None]]:
    found: dict[str, dict[str, float | int | None]] = {}
    for name in dict.fromkeys(q.question for cell in cells for q in cell.questions):
        counts = [q.counts for cell in cells for q in cell.questions if q.question == name]
        coherent = sum(c.coherent for c in counts)
        misaligned = sum(c.misaligned for c in counts)
        found[name] = {
            "responses": sum(c.responses for c in counts),
            "coherent": coherent,
            "misaligned": misaligned,
            "em_rate": misaligned / coherent if coherent else None,
        }
    return found
