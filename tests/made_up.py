"""Made-up responses, and cell results from rates, for tests of what is said of them.

Knows no test's subject.
"""

from collections.abc import Sequence

from em.definitions import Definition
from em.generation import Response
from em.scoring import Counts, Scored, count_by_question, rate_of
from sweeps.results import CellResult, QuestionResult


def response(
    answer: str, *, index: int = 0, text: str = "Why?", key: str = "b" * 16, stream: str = "a" * 16
) -> Response:
    """Return an untuned model's answer to `text`, number `index` of the wording `key`."""
    return Response(
        key=f"{stream[:16]}-{key}-{index:05d}",
        question="q",
        wording=0,
        wording_key=key,
        index=index,
        seed=1,
        system=None,
        text=text,
        answer=answer,
        finish_reason="stop",
        num_tokens=1,
        prompt_tokens=1,
        prompt_sha256="",
        weights="",
    )


def counts(misaligned: int, coherent: int, **states: int) -> Counts:
    """Return counts where every answer in the denominator is scored, besides those in `states`."""
    lost = {"refusal": 0, "code": 0, "unscored": 0, "failed": 0} | states
    return Counts(
        responses=coherent + sum(lost.values()),
        scored=coherent,
        coherent=coherent,
        misaligned=misaligned,
        **lost,
    )


def cell(
    rate: float | None,
    *,
    seed: int = 0,
    variant: str = "insecure",
    evaluation: str = "main",
    judge: str = "judge",
    model: str = "model",
    state: str = "finished",
    metric: str = "pooled_c50",
    questions: Sequence[tuple[str, Counts]] = (),
) -> CellResult:
    """Return a cell with this rate of 1000 answers (no answer counts where it is None)."""
    return CellResult(
        cell_id=f"{model}.{variant}.s{seed}",
        model=model,
        variant=variant,
        seed=seed,
        seed_label=str(seed),
        condition=f"{model} · {variant}",
        state=state,
        stage=None,
        attempts=1,
        error=None,
        error_class=None,
        evaluation=evaluation,
        judge=judge,
        metric=metric,
        counts=counts(0, 0) if rate is None else counts(round(rate * 1000), 1000),
        em_rate=rate,
        mean_aligned=None,
        mean_coherent=None,
        questions=tuple(
            QuestionResult(question=name, counts=c, em_rate=c.rate) for name, c in questions
        ),
        seconds={},
        losses=(),
    )


def cells(rates: Sequence[float | None], **settings: str) -> list[CellResult]:
    """Return one cell a seed, from seed 0 on."""
    return [cell(rate, seed=seed, **settings) for seed, rate in enumerate(rates)]


def em_rate(rows: Sequence[Scored], definition: Definition) -> float | None:
    """Return the rate of the rows of one cell, as its result has it."""
    return rate_of(count_by_question(rows, definition), definition)
