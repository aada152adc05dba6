"""What the names in a resolved sweep stand for, as the store keeps it. Knows nothing of stores."""

from collections.abc import Mapping
from typing import Any, TypeVar

from em.record import fingerprint
from sweeps.plan import CellPlan, JudgingPlan, SweepPlan, at_the_end
from sweeps.rekeyed import served_model
from sweeps.resolved import Resolved, Rows

Found = TypeVar("Found")


def resolve(sweep: SweepPlan) -> Resolved:
    """Return what the names in the sweep stand for, under the keys that it has."""
    return Resolved(
        models=_models(sweep),
        variants=_variants(sweep),
        questions=_questions(sweep),
        tasks=_tasks(sweep),
        prompts=_prompts(sweep),
    )


def merged(old: Resolved, new: Resolved) -> Resolved:
    """Return `old` with what `new` has of names; names that only `old` has stay."""
    return old.model_copy(
        update={
            "models": old.models | new.models,
            "variants": _deep(old.variants, new.variants),
            "questions": _deep(old.questions, new.questions),
            "tasks": old.tasks | new.tasks,
            "prompts": _deep(old.prompts, new.prompts),
        }
    )


def _deep(
    old: Mapping[str, dict[str, Found]], new: Mapping[str, dict[str, Found]]
) -> dict[str, dict[str, Found]]:
    return {**old, **{name: old.get(name, {}) | found for name, found in new.items()}}


def _models(sweep: SweepPlan) -> dict[str, str]:
    models = {cell.cell.model.name: cell.model_revision for cell in sweep.cells}
    for judge in sweep.spec.judges:
        name = served_model(sweep.spec, judge)
        mine = (j for cell in sweep.cells[:1] for j in cell.judgings if j.judge == judge.name)
        if name is not None and (judging := next(mine, None)) is not None:
            models.setdefault(name, judging.identity["judge"]["model"])
    return models


def _variants(sweep: SweepPlan) -> dict[str, dict[str, Rows]]:
    found: dict[str, dict[str, Rows]] = {}
    for cell in sweep.cells:
        if cell.content_sha256 is not None:
            seeds = found.setdefault(cell.cell.variant.name, {})
            if str(cell.cell.seeds.subset) not in seeds:
                seeds[str(cell.cell.seeds.subset)] = _rows(cell)
    return found


def _rows(cell: CellPlan) -> Rows:
    return Rows.model_validate({name: getattr(cell, name) for name in Rows.model_fields})


def _questions(sweep: SweepPlan) -> dict[str, dict[str, tuple[str, ...]]]:
    """Of the first cell, as all share them: but for held-out rows, which are a variant's."""
    held_out = {e.name for e in sweep.spec.evaluations if e.heldout is not None}
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for evaluation in (e for cell in sweep.cells[:1] for e in at_the_end(cell).evaluations):
        if evaluation.name not in held_out:
            of = found.setdefault(evaluation.name, {})
            for wording, _ in evaluation.asked:
                of[wording.question] = (*of.get(wording.question, ()), wording.key)
    return found


def _tasks(sweep: SweepPlan) -> dict[str, dict[str, Any]]:
    evaluations = (e for cell in sweep.cells[:1] for e in at_the_end(cell).evaluations)
    return {e.name: e.identity["inspect"] for e in evaluations if e.task is not None}


def _prompts(sweep: SweepPlan) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for cell in map(at_the_end, sweep.cells[:1]):
        asked = {w.key: w.question for e in cell.evaluations for w, _ in e.asked}
        for judging in cell.judgings:
            found.setdefault(judging.judge, {}).update(_prompts_of(judging, asked))
    return found


def _prompts_of(judging: JudgingPlan, asked: Mapping[str, str]) -> dict[str, str]:
    return {
        f"{judging.evaluation}/{asked[key]}/{score}": fingerprint(
            [template, judging.rule(key, score)]
        )
        for key, templates in judging.templates.items()
        for score, template in templates.items()
    }
