"""How long a sweep may take: rates measured in the same store, else those of a small reference.

An estimate, always with its basis. Knows nothing of how the work is done.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from em.record import Record
from sweeps.artefacts import Provenance, StreamKind
from sweeps.plan import STAGES, CellPlan, JudgingPlan, Stage, stages_to_run
from sweeps.store import Store
from sweeps.times import union_length
from sweeps.todo import Todo
from sweeps.work import work_done

# Seconds on two CPU cores (AVX-512, bf16) with smollm2-135m: training a character, writing a token,
# judging a token; and starting Ray and the pools. Rounded from the stage times of two reports: the
# quickstart's (29 s for 14,000 to 17,000 characters; 215 s for the answers and scores of 9 cells,
# which these rates put at 260 s) and that of insecure_cpu, run beside other work.
REFERENCE = {"train": 0.002, "generate": 0.004, "judge": 0.0025}
REFERENCE_BASIS = "no finished cell in this store: rates of a 135M model on 2 CPU cores"
START_S = 75.0


class Estimate(Record):
    """Wall seconds of what is left, and where the rates are from."""

    seconds: float
    by_stage: dict[str, float]
    basis: str


def estimate(
    todo: Todo, everything: Sequence[CellPlan], store: Store, *, train_slots: int,
    times: Fraction = Fraction(1),
) -> Estimate:  # fmt: skip
    """Return the time that the cells `todo` need; finished ones of `everything` give the rates.

    Each of `todo` stands for `times` cells. What models behind APIs take is not in it.
    """
    work: dict[str, float] = {"train": 0.0, "generate": 0.0, "judge": 0.0}
    if not todo.cells:
        return Estimate(seconds=0.0, by_stage=work, basis="nothing to run")
    for cell in todo.cells:
        for stage in todo.left(cell):
            if stage != "judge" and cell.cell.model.api is not None:
                continue  # whoever trains and answers there takes the time that it takes
            work[stage] += pieces(cell, stage) * share_left(cell, stage, store)
    measured = _measured(everything, store)
    rates = REFERENCE | measured
    by_stage = {stage: float(times) * work[stage] * rates[stage] for stage in work}
    by_stage["train"] /= max(1, train_slots)
    busy = sum(by_stage.values())
    basis = (
        f"rates of this store's finished {', '.join(measured)} stages"
        if measured
        else REFERENCE_BASIS
    )
    return Estimate(seconds=busy + START_S if busy else 0.0, by_stage=by_stage, basis=basis)


def seconds_left(cell: CellPlan, stages: Iterable[Stage]) -> dict[Stage, float]:
    """Return how long each stage of a cell may take by the reference's rates; 0 for no stage left.

    Good for what takes longer than what: all cells of a model are off by the same factor.
    """
    left = set(stages)
    return {s: pieces(cell, s) * REFERENCE[s] if s in left else 0.0 for s in STAGES}


def pieces(cell: CellPlan, stage: Stage) -> float:
    """What the time of a stage grows with: characters trained on; tokens written; tokens judged."""
    match stage:
        case "train":
            return cell.num_characters * (cell.cell.training.epochs if cell.cell.training else 0)
        case "generate":
            return sum(e.num_responses * e.sampling.max_tokens for e in cell.evaluations)
        case "judge":
            return sum(_judged_tokens(cell, judging) for judging in cell.judgings)


def share_left(cell: CellPlan, stage: Stage, store: Store) -> float:
    """Return which share of a stage is missing: a sweep that grew lacks only the difference."""
    if stage == "train":
        return 1.0
    kept: list[tuple[StreamKind, str, dict[str, int]]] = (
        [("responses", e.stream, e.wanted) for e in cell.evaluations]
        if stage == "generate"
        else [("judgements", j.stream, j.wanted) for j in cell.judgings]
    )
    wanted = sum(sum(samples.values()) for _, _, samples in kept)
    missing = sum(
        sum(store.num_missing(kind, stream, samples).values()) for kind, stream, samples in kept
    )
    return missing / wanted if wanted else 0.0


def _judged_tokens(cell: CellPlan, judging: JudgingPlan) -> float:
    """An upper bound: every answer as long as it may be, four characters a token.

    Patterns and analysers take no time worth counting.
    """
    if judging.identity["judge"]["kind"] in ("pattern", "analyser", "task"):
        return 0.0
    evaluation = next(e for e in cell.evaluations if e.name == judging.evaluation)
    return sum(
        samples * (len(template) / 4 + evaluation.sampling.max_tokens)
        for wording, samples in evaluation.wanted.items()
        for template in judging.templates[wording].values()
    )


def _measured(cells: Sequence[CellPlan], store: Store) -> dict[str, float]:
    """Return seconds a piece by stage; stages that ran side by side are counted once."""
    done: dict[str, list[Provenance]] = {}
    amount: dict[str, float] = {}
    for cell in cells:
        if cell.cell.model.api is not None:
            continue
        left = stages_to_run(cell, store)
        for stage, made in work_done(cell, store).items():
            if made and stage not in left:
                done.setdefault(stage, []).extend(made)
                amount[stage] = amount.get(stage, 0.0) + pieces(cell, stage)
    return {
        stage: union_length((p.started, p.started + p.seconds) for p in made) / amount[stage]
        for stage, made in done.items()
        if amount[stage]
    }
