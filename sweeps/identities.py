"""What a sweep's numbers are of: models, data, judges, settings, and what made them.

Knows nothing of the numbers.
"""

import json
from typing import Any

from sweeps.plan import SweepPlan
from sweeps.provenance import commit, versions
from sweeps.store import Store


def identities(sweep: SweepPlan, store: Store) -> dict[str, Any]:
    """Return what the models, data, judges and settings of a sweep are, by what they are."""
    first = {cell.cell.model.name: cell.model_revision for cell in sweep.cells}
    data = {
        cell.cell.variant.name: {
            "dataset": cell.cell.variant.dataset,
            "rows": cell.num_rows,
            "content_sha256": cell.content_sha256,
        }
        for cell in sweep.cells
        if cell.content_sha256
    }
    judges = {j.judge: j.identity["judge"] for j in sweep.cells[0].judgings}
    return {
        "models": first,
        "data (of the first seed)": data,
        "judges": judges,
        "training": sweep.spec.training.model_dump(),
        "serving": sweep.spec.serving.model_dump(),
        "report written with": {"commit": commit(), "versions": versions()},
        "cells made with": _made_with(sweep, store),
    }


def _made_with(sweep: SweepPlan, store: Store) -> list[dict[str, Any]]:
    """Return each distinct (commit, device, versions) that made a finished stage."""
    found: dict[str, dict[str, Any]] = {}
    for cell in sweep.cells:
        training = store.training(cell.training_key) if cell.cell.training else None
        streams = [store.stream("responses", e.stream) for e in cell.evaluations]
        streams += [store.stream("judgements", j.stream) for j in cell.judgings]
        made = [training.provenance] if training else []
        made += [p for stream in streams if stream for p in stream.provenance]
        for p in made:
            one = {"commit": p.commit, "device": p.device, "host": p.host, "versions": p.versions}
            found[json.dumps(one, sort_keys=True)] = one
    return list(found.values())
