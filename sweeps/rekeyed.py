"""A cell under the keys of what its names stood for earlier, or of the versions that make it.

Knows nothing of stores, or of why a name stands for another thing now.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import Field

from em.record import Record, fingerprint
from sweeps.artefacts import Stage
from sweeps.keys import judge_model
from sweeps.plan import CellPlan, EvaluationPlan, JudgingPlan, SweepPlan
from sweeps.resolved import Rows
from sweeps.settings import JudgeConfig
from sweeps.spec import SweepSpec

Stream = TypeVar("Stream", EvaluationPlan, JudgingPlan)

OTHER_ROWS = "counted as it was made: the data set's rows are others now than when this sweep ran"


class Pins(Record):
    """What stands in keys instead of what a name resolves to; `versions` are by stage."""

    models: dict[str, str] = Field(default_factory=dict)
    variants: dict[str, dict[str, Rows]] = Field(default_factory=dict)
    versions: dict[Stage, dict[str, str]] = Field(default_factory=dict)

    def rows_of(self, cell: CellPlan) -> Rows | None:
        """Return the rows that stand for those of a cell, or None where its own do."""
        return self.variants.get(cell.cell.variant.name, {}).get(str(cell.cell.seeds.subset))


def rekeyed(sweep: SweepPlan, pins: Pins) -> SweepPlan:
    """Return the sweep with every key as `pins` have it."""
    if not (pins.models or pins.variants or pins.versions):
        return sweep
    models = {judge.name: served_model(sweep.spec, judge) for judge in sweep.spec.judges}
    cells = tuple(_cell(cell, pins, models) for cell in sweep.cells)
    return sweep.model_copy(update={"cells": cells})


def served_model(spec: SweepSpec, judge: JudgeConfig) -> str | None:
    """Return the name of the model that a judge is, or None where none is served for it."""
    return judge_model(spec, judge).name if judge.served else None


def _cell(plan: CellPlan, pins: Pins, models: Mapping[str, str | None]) -> CellPlan:
    revision = pins.models.get(plan.cell.model.name, plan.model_revision)
    rows = pins.rows_of(plan) if plan.content_sha256 is not None else None
    identity = plan.training_identity | {"model": revision}
    if rows is not None:
        identity["rows"] = rows.content_sha256
    if plan.cell.local_training is not None:
        identity |= _made_with(pins, "train")
    key = fingerprint(identity)
    behind_api = plan.cell.model.api is not None  # which is made with no package of ours
    evaluations = [
        _evaluation(evaluation, key, Pins() if behind_api else pins)
        for evaluation in plan.evaluations
    ]
    streams = {evaluation.name: evaluation.stream for evaluation in evaluations}
    changes: dict[str, Any] = {
        "model_revision": revision,
        "training_identity": identity,
        "training_key": key,
        "evaluations": tuple(evaluations),
        "judgings": tuple(
            _judging(judging, streams[judging.evaluation], pins, models[judging.judge])
            for judging in plan.judgings
        ),
    }
    if rows is not None and rows.content_sha256 != plan.content_sha256:
        changes |= {name: getattr(rows, name) for name in Rows.model_fields}
        changes["data_warnings"] = (
            *plan.data_warnings,
            f"{plan.cell.variant.name}: {OTHER_ROWS}",
        )
    return plan.model_copy(update=changes)


def _evaluation(plan: EvaluationPlan, training_key: str, pins: Pins) -> EvaluationPlan:
    identity = plan.identity | {"training": training_key} | _made_with(pins, "generate")
    return _with_identity(plan, identity)


def _judging(plan: JudgingPlan, responses: str, pins: Pins, model: str | None) -> JudgingPlan:
    judge = plan.identity["judge"]
    identity = plan.identity | {"responses": responses}
    if model is not None:
        revision = pins.models.get(model, judge["model"])
        identity["judge"] = judge | {"model": revision} | _made_with(pins, "judge")
    return _with_identity(plan, identity)


def _with_identity(plan: Stream, identity: dict[str, Any]) -> Stream:
    return plan.model_copy(update={"identity": identity, "stream": fingerprint(identity)})


def _made_with(pins: Pins, stage: Stage) -> dict[str, Any]:
    versions = pins.versions.get(stage)
    return {"versions": versions} if versions else {}
