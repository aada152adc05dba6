"""What a sweep's numbers are of: models, data, judges, settings, and what made them.

Knows nothing of the numbers.
"""

import json
from typing import Any

from em.record import fingerprint
from sweeps.plan import SweepPlan
from sweeps.provenance import commit, versions
from sweeps.spend import Spending, judged_streams
from sweeps.store import Store
from sweeps.work import work_done


def identities(sweep: SweepPlan, store: Store) -> dict[str, Any]:
    """Return what the models, data, judges and settings of a sweep are, by what they are."""
    return {
        "models": {cell.cell.model.name: cell.model_revision for cell in sweep.cells},
        "data, by variant and seed": _data(sweep),
        "evaluations": _evaluations(sweep),
        "judges": _judges(sweep),
        "spent by judges behind an address": _spent(sweep, store),
        "training": sweep.spec.training.model_dump(),
        "serving": sweep.spec.serving.model_dump(),
        **_layouts(sweep),
        "report written with": {"commit": commit(), "versions": versions()},
        "cells made with": _made_with(sweep, store),
    }


def _layouts(sweep: SweepPlan) -> dict[str, Any]:
    found = {name: one.model_dump(exclude_none=True) for name, one in sweep.spec.layouts.items()}
    return {"layouts": found} if found else {}


def _data(sweep: SweepPlan) -> dict[str, Any]:
    """Rows are drawn by each cell's subset seed, so seeds may have different ones."""
    found: dict[str, Any] = {}
    for cell in sweep.cells:
        if cell.content_sha256 is None:
            continue
        found.setdefault(cell.cell.variant.name, {})[cell.cell.seed_label] = {
            "datasets": cell.cell.variant.datasets,
            "rows": cell.num_rows,
            "held out": cell.num_held_out,
            "content_sha256": cell.content_sha256,
            "steps": [step.model_dump() for step in cell.steps],
            "warnings": cell.data_warnings,
        }
    return found


def _evaluations(sweep: SweepPlan) -> dict[str, Any]:
    """Of the first cell: held-out rows are others in each seed."""
    return {
        plan.name: {
            "metric": plan.metric,
            "form": plan.identity["form"],
            "sampling": plan.sampling.model_dump(),
            "wordings": len(plan.asked),
            "responses": plan.num_responses,
            "wordings_sha256": fingerprint([wording.key for wording, _ in plan.asked]),
        }
        for plan in sweep.cells[0].evaluations
    }


def _judges(sweep: SweepPlan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for judging in sweep.cells[0].judgings:
        prompts = {
            score: fingerprint(template)
            for scores in judging.templates.values()
            for score, template in scores.items()
        }
        known = found.setdefault(judging.judge, dict(judging.identity["judge"]))
        known.setdefault("prompts_sha256", {})[judging.evaluation] = prompts
    return found


def _spent(sweep: SweepPlan, store: Store) -> dict[str, Any]:
    """Calls and tokens of what is stored; money where the judge has a budget in it."""
    found: dict[str, Any] = {}
    for judge in sweep.spec.judges:
        if judge.api is not None:
            usage = Spending(store, judge.name).total(judged_streams(sweep, judge.name))
            price = sweep.prices.get(judge.name)
            found[judge.name] = usage.model_dump() | (
                {"usd": round(usage.usd(price), 4)} if price else {}
            )
    return found


def _made_with(sweep: SweepPlan, store: Store) -> list[dict[str, Any]]:
    """Return each distinct (commit, device, versions) that made a finished stage."""
    found: dict[str, dict[str, Any]] = {}
    for cell in sweep.cells:
        for p in (p for work in work_done(cell, store).values() for p in work):
            one = {"commit": p.commit, "device": p.device, "host": p.host, "versions": p.versions}
            found[json.dumps(one, sort_keys=True)] = one
    return list(found.values())
