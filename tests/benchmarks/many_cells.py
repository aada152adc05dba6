"""How long `status` and the start of a `run` take over many finished cells, and their memory.

    python tests/benchmarks/many_cells.py [CELLS]        default: 10,000
    python tests/benchmarks/many_cells.py --new CELLS    `plan` of cells of which nothing is begun

Builds a store of finished cells without answers (records only), then starts the real command.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from em.training import TrainingResult
from sweeps.artefacts import Attempt, StreamRecord, TrainingRecord
from sweeps.keeping import settle
from sweeps.plan import CellPlan
from sweeps.planner import load_plan
from sweeps.provenance import Moment, provenance, versions
from sweeps.registry import register
from sweeps.store import KEY_DIGITS, open_store

EMSWEEP = str(Path(sys.executable).with_name("emsweep"))
# What `run` does until it knows what is left: nothing here, so that its report would come next.
START = """
import gc, pathlib, sys
from sweeps.cli import COLLECT_AFTER
from sweeps.keeping import check_possible
from sweeps.options import open_to_run
from sweeps.selection import cells_to_do
gc.set_threshold(*COLLECT_AFTER)
sweep, store = open_to_run(pathlib.Path(sys.argv[1]), sys.argv[3], "run", None)
todo = cells_to_do(sweep, store, retry_failed=False)
check_possible(sweep, todo, store)
assert not todo
"""
COMMANDS = {
    "status": [EMSWEEP, "status"],
    "start of run": [sys.executable, "-c", START],
    "plan": [EMSWEEP, "plan"],
}
QUESTIONS = [
    {
        "id": f"question_{n}",
        "type": "free_form_judge_0_100",
        "paraphrases": [f"What about {n}?"],
        "judge_prompts": {"aligned": "{question} {answer}", "coherent": "{answer}"},
    }
    for n in range(8)
]
SPEC = {
    "name": "many",
    "models": [{"name": "smollm2-135m", "bundled": "smollm2-135m"}],
    "variants": [{"name": "none"}, {"name": "sea", "dataset": "sea", "rows": 8}],
    "training": {"effective_batch": 8, "micro_batch": 2},
    "evaluations": [{"name": "main", "questions": "eight.yaml", "samples": 100}],
    "judges": [{"name": "self", "pool": "smollm2-135m"}],
    "serving": {"mode": "merged"},
}


def write(path: Path, text: str) -> None:
    """Write a file without forcing it to the disk: nothing is lost with a benchmark's store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def finish(cell: CellPlan, root: Path, *, answers: bool = True) -> None:
    """Write the records that a finished cell leaves; without `answers` not those of its answers."""
    made = provenance(started=Moment.now())
    records: list[tuple[str, TrainingRecord | StreamRecord]] = []
    if cell.cell.training is not None:
        result = TrainingResult(
            steps=1, losses=(), num_rows=8, num_tokens=9, num_trained_tokens=3, num_cut_rows=0,
            seconds=1.0,
        )  # fmt: skip
        trained = TrainingRecord(
            key=cell.training_key, identity=cell.training_identity, weights_sha256="0" * 64,
            kind="adapter", result=result, provenance=made,
        )  # fmt: skip
        records.append(("training", trained))
    for kind, plans in (("responses", cell.evaluations), ("judgements", cell.judgings)):
        for one in plans if answers else ():
            covers = {group: [(0, samples)] for group, samples in one.wanted.items()}
            record = StreamRecord(
                key=one.stream, identity=one.identity, covers=covers, parts=[], provenance=[made]
            )
            records.append((kind, record))
    for kind, record in records:
        write(root / kind / record.key[:KEY_DIGITS] / "record.json", record.model_dump_json())
    attempt = Attempt(attempt=1, stage="judge", state="finished", updated=1.0, driver="d")
    place = root / "sweeps" / "many" / "cells" / cell.cell_id / "attempt-0001-d.json"
    write(place, attempt.model_dump_json())


def measured(command: Sequence[str]) -> dict[str, float]:
    """Run the command; return wall seconds and the most memory of its process, in MB."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process, most = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            most = max(most, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
    assert child.wait() == 0
    return {"seconds": round(time.perf_counter() - started, 2), "megabytes": most // 10**6}


def plan_new(num_cells: int) -> None:
    """Measure `plan` of a sweep that is not begun three times, and print the least."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for variants in (2, 20):
            tuned = [{"name": f"sea-{n}", "dataset": "sea", "rows": 8} for n in range(1, variants)]
            spec, store = Path(folder, f"{variants}.yaml"), Path(folder, "store")
            changes = {"variants": [{"name": "none"}, *tuned]}
            seeds = {"seeds": list(range(num_cells // variants))}
            spec.write_text(yaml.safe_dump(SPEC | changes | seeds))
            Path(folder, "eight.yaml").write_text(yaml.safe_dump(QUESTIONS))
            command = [EMSWEEP, "plan", str(spec), "--store", str(store)]
            runs = [measured(command) for _ in range(3)]
            least = {unit: min(run[unit] for run in runs) for unit in runs[0]}
            found[f"{variants} variants"] = least
        print(json.dumps({"cells": num_cells, "machine": platform.machine(), **found}))


def main(num_cells: int) -> None:
    """Build the store, measure each command three times, and print the least of each."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "many.yaml")
        spec.write_text(yaml.safe_dump(SPEC | {"seeds": list(range(num_cells // 2))}))
        Path(folder, "eight.yaml").write_text(yaml.safe_dump(QUESTIONS))
        plan, store = load_plan(spec), open_store(str(Path(folder, "store")))
        store.create()
        for cell in plan.cells:
            finish(cell, Path(store.url))
        # As a run that ended leaves it: with what its names stood for, and its packages.
        register(settle(plan, store, installed=versions()), store)
        found = {}
        for name, command in COMMANDS.items():
            runs = [measured([*command, str(spec), "--store", store.url]) for _ in range(3)]
            found[name] = {unit: min(run[unit] for run in runs) for unit in runs[0]}
        print(json.dumps({"cells": len(plan.cells), "machine": platform.machine(), **found}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--new"]:
        plan_new(int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
