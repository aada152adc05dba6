"""What one cell came to: its scored responses, counts and rates, read from the store.

Derived, never stored: a threshold or a definition changes without running anything. Knows nothing
of how the numbers were made or of how they are shown.
"""

from collections.abc import Sequence

from pydantic import Field

from em.generation import Response
from em.judging import State, fill, place_of
from em.record import Record, fingerprint
from em.scoring import Counts, Definition, Scored, count_by_question, rate_of, total
from em.training import LossPoint
from sweeps.attempts import CellStatus
from sweeps.files import StoreError
from sweeps.plan import CellPlan, EvaluationPlan, JudgingPlan
from sweeps.store import Store

MOST_LOSSES = 200  # of one cell, in a report


class ScoredResponse(Record):
    """A response with all scores of one judge: one row of the table that everything comes from."""

    cell_id: str
    evaluation: str
    judge: str
    response: Response
    scored: Scored


class _Given(Record):
    """What a report reads of a judgement: a tenth of what is stored of it."""

    key: str
    response: str
    score: str
    state: State
    value: float | None = None
    label: str | None = None
    prompt_sha256: str


class QuestionResult(Record):
    """One question of one cell under one judge."""

    question: str
    counts: Counts
    em_rate: float | None


class CellResult(Record):
    """One cell under one judge and one evaluation. `em_rate` is None where nothing counts."""

    cell_id: str
    model: str
    variant: str
    seed: int
    seed_label: str = Field(description="the seed, and every factor that does not follow it")
    condition: str
    state: str
    stage: str | None
    attempts: int
    error: str | None
    error_class: str | None
    kind: str | None = Field(default=None, description="of the failure, see failure_kinds")
    cure: str | None = None
    evaluation: str
    judge: str
    metric: str = Field(description="name of the definition that `counts` and `em_rate` follow")
    counts: Counts
    em_rate: float | None
    mean_aligned: float | None
    mean_coherent: float | None
    questions: tuple[QuestionResult, ...]
    seconds: dict[str, float]
    losses: tuple[LossPoint, ...] = Field(
        description="MOST_LOSSES of them at most; the training's record has all"
    )


def scored_responses(plan: CellPlan, judging: JudgingPlan, store: Store) -> list[ScoredResponse]:
    """Return every wanted response of one evaluation with its judgements by one judge, in order.

    Reads only what records list. A response without all its judgements (an unfinished cell) is left
    out; the caller shows the cell's state.
    """
    evaluation = next(e for e in plan.evaluations if e.name == judging.evaluation)
    order = {w.key: (n, samples) for n, (w, samples) in enumerate(evaluation.asked)}
    judged: dict[str, dict[str, _Given]] = {}
    columns = tuple(_Given.model_fields)
    for item in store.read_stream("judgements", judging.stream, _Given, columns):
        if place_of(item.key)[0] in judging.wanted:
            judged.setdefault(item.response, {})[item.score] = item
    found = []
    spoke = _weights(plan, evaluation, store)
    for response in store.read_stream("responses", evaluation.stream, Response):
        _check_same_origin(response, spoke, judged.get(response.key, {}), judging, store)
        place, samples = order.get(response.wording_key, (0, 0))
        scores = judged.get(response.key, {})
        if response.index >= samples or set(judging.templates[response.wording_key]) - set(scores):
            continue
        found.append((place, response.index, _row(plan, judging, response, scores)))
    return [row for _, _, row in sorted(found, key=lambda item: item[:2])]


def _weights(plan: CellPlan, evaluation: EvaluationPlan, store: Store) -> str | None:
    training = store.training(plan.training_key) if plan.cell.training else None
    if training is None or not training.has(evaluation.step):
        return None
    return training.after(evaluation.step).weights_sha256


def _check_same_origin(
    response: Response,
    weights: str | None,
    scores: dict[str, _Given],
    judging: JudgingPlan,
    store: Store,
) -> None:
    """Raise StoreError where a response or judgement is of something that was made anew since."""
    place = f"{store.url}: responses/{response.key[:16]}…"
    if weights is not None and response.weights != weights:
        raise StoreError(
            f"{place} were given by other weights than the training now has (it was made again): "
            "remove that folder, and the judgements of it, to have them made again"
        )
    for name, judgement in scores.items():
        template = judging.templates.get(response.wording_key, {}).get(name)
        if template is not None and judgement.prompt_sha256 != fingerprint(
            fill(template, response)
        ):
            raise StoreError(
                f"{store.url}: judgements/{judging.stream[:16]}… are of other answers than {place} "
                "now holds (they were made again): remove that folder of judgements to judge again"
            )


def _row(
    plan: CellPlan, judging: JudgingPlan, response: Response, scores: dict[str, _Given]
) -> ScoredResponse:
    return ScoredResponse(
        cell_id=plan.cell_id,
        evaluation=judging.evaluation,
        judge=judging.judge,
        response=response,
        scored=Scored(
            response=response.key,
            question=response.question,
            states={name: item.state for name, item in scores.items()},
            values={n: item.value for n, item in scores.items() if item.value is not None},
            labels={n: item.label for n, item in scores.items() if item.label is not None},
        ),
    )


def cell_result(
    plan: CellPlan,
    judging: JudgingPlan,
    status: CellStatus,
    rows: list[ScoredResponse],
    definition: Definition,
    store: Store,
) -> CellResult:
    """Return what `rows` (all of one cell, judge and evaluation) come to under `definition`."""
    scored = [row.scored for row in rows]
    by_question = count_by_question(scored, definition)
    training = store.training(plan.training_key) if plan.cell.training else None
    done = is_judged(plan, judging, store)
    return CellResult(
        cell_id=plan.cell_id,
        model=plan.cell.model.name,
        variant=plan.cell.variant.name,
        seed=plan.cell.seed,
        seed_label=plan.cell.seed_label,
        condition=plan.cell.condition,
        state="finished" if done else status.state,
        stage=None if done else status.stage,
        attempts=status.attempts,
        error=None if done else status.error,
        error_class=None if done else status.error_class,
        kind=None if done else status.kind,
        cure=None if done else status.cure,
        evaluation=judging.evaluation,
        judge=judging.judge,
        metric=definition.name,
        counts=total(by_question),
        em_rate=rate_of(by_question, definition),
        mean_aligned=mean_of_present([row.aligned for row in scored]),
        mean_coherent=mean_of_present([row.coherent for row in scored]),
        questions=tuple(
            QuestionResult(
                question=question,
                counts=counts,
                em_rate=counts.rate,
            )
            for question, counts in by_question.items()
        ),
        seconds=stage_seconds(plan, judging, store),
        losses=thinned(training.result.losses) if training else (),
    )


def thinned(losses: tuple[LossPoint, ...]) -> tuple[LossPoint, ...]:
    """Return every n-th point, the last among them: a sweep of many cells has millions."""
    each = max(1, -(-len(losses) // MOST_LOSSES))
    return losses[::-1][::each][::-1]


def is_judged(plan: CellPlan, judging: JudgingPlan, store: Store) -> bool:
    """Whether all that one judge is to score is there, however far the cell's other judges are."""
    evaluation = next(e for e in plan.evaluations if e.name == judging.evaluation)
    return not (
        store.lacks("responses", evaluation.stream, evaluation.wanted)
        or store.lacks("judgements", judging.stream, judging.wanted)
    )


def stage_seconds(plan: CellPlan, judging: JudgingPlan, store: Store) -> dict[str, float]:
    """Return the wall seconds that each finished stage took, wherever it ran."""
    found = {}
    training = store.training(plan.training_key) if plan.cell.training else None
    if training:
        found["train"] = training.provenance.seconds
    evaluation = next(e for e in plan.evaluations if e.name == judging.evaluation)
    responses = store.stream("responses", evaluation.stream)
    if responses:
        found["generate"] = sum(p.seconds for p in responses.provenance)
    judgements = store.stream("judgements", judging.stream)
    if judgements:
        found["judge"] = sum(p.seconds for p in judgements.provenance)
    return found


def mean_of_present(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there; None where none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
