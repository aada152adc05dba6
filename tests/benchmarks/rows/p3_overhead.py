"""P3: what a cell of the quickstart costs beyond its stages' own work.

Ours: the wall time of a whole quickstart, less what stages at work cover by the store's records,
less the starts of Ray and engines, over its cells: the figure that every report has. Peer: the same
of the usual nested way, a Ray Tune trial a cell with a Ray Train trainer inside, whose one worker
loads the same model and trains nothing; loading counts as its stage's work, the start of Ray does
not count.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from sweeps.times import union_length
from tests.benchmarks.comparisons import Ask, Measured, Row, compared, demand_same
from tests.benchmarks.rows.engines import bundled_model
from tests.benchmarks.rows.whole_quickstart import HERE, whole

MOST_S = 5.0  # seconds a cell wanted at most

NUM_NESTED_CELLS = 2
NEXT_TO_NOTHING = 0.01  # with the default of a whole CPU, trial and trainer would wait for ever


def nested(folder: str) -> dict[str, Any]:
    """Train nothing in two cells, Tune over Train; wall seconds, and when workers were at work."""
    import ray
    from ray import tune

    place = Path(folder) / "nested"
    place.mkdir()
    ray.init(
        address="local", num_cpus=os.cpu_count(), include_dashboard=False, logging_level="warning"
    )
    space = {
        "cell": tune.grid_search(list(range(NUM_NESTED_CELLS))),
        "folder": str(place),
        "model": str(bundled_model()),
    }
    began = time.time()
    found = tune.Tuner(
        tune.with_resources(_trial, {"cpu": NEXT_TO_NOTHING}),
        param_space=space,
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="nested", storage_path=str(place / "tune"), verbose=0),
    ).fit()
    wall_s = time.time() - began
    if found.errors:
        raise RuntimeError(f"a trial failed: {found.errors[0]}")
    work = [json.loads(path.read_text()) for path in sorted(place.glob("worked-*.json"))]
    ray.shutdown()
    return {"wall_s": wall_s, "work_s": union_length(map(tuple, work)), "cells": len(work)}


def _trial(config: dict[str, Any]) -> None:
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=f"cell-{config['cell']}", storage_path=str(Path(config["folder"]) / "train")
        ),
    ).fit()
    tune.report({"cell": config["cell"]})


def _worker(config: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    began = time.time()
    AutoModelForCausalLM.from_pretrained(config["model"])
    worked = Path(config["folder"]) / f"worked-{config['cell']}.json"
    worked.write_text(json.dumps([began, time.time()]))


def measure(ask: Ask) -> Measured:
    """Measure the row."""
    own, peer = ask(whole, version=HERE), ask(nested)
    demand_same("cells that ran", {"asked for": NUM_NESTED_CELLS, "nested": peer["cells"]})
    theirs = (peer["wall_s"] - peer["work_s"]) / peer["cells"]
    spent = own["overhead"]
    return Measured(
        comparisons=[
            compared(
                "overhead a cell", "s", spent["per_cell"], "Tune over Train, nested", theirs,
                less_is_better=True, most=MOST_S,
            )
        ],
        checked=[f"all {own['cells']} cells finished, {own['failed']} judgements failed"],
        notes=[
            f"the quickstart: {spent['wall']:.0f} s, {spent['stage_work']:.0f} s of them with a "
            f"stage at work, {spent['starts']:.0f} s starting Ray and engines"
        ],
    )  # fmt: skip


ROW = Row("P3", "Overhead a cell of the quickstart", measure)
