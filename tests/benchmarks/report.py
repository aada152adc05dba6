"""How long `report` takes over many cells with all their answers, its memory, and its page's size.

    python tests/benchmarks/report.py [CELLS] [FOLDER]        default: 1,000, a temporary folder

Builds a store of finished cells with 8 questions x 50 answers and two scores of each, by the
store's own functions, then starts the real command; in FOLDER the report is left to be looked at.
"""

import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from many_cells import EMSWEEP, QUESTIONS, SPEC, finish, measured

from em.generation import Draw, Response, request_seed, response_key
from em.judging import Judgement, fill, judgement_group
from em.record import fingerprint
from sweeps.keeping import settle
from sweeps.plan import CellPlan, EvaluationPlan, JudgingPlan
from sweeps.planner import load_plan
from sweeps.provenance import Moment, provenance, versions
from sweeps.registry import register
from sweeps.store import Store, open_store

SAMPLES = 50
WORDS = ("people", "should", "be", "kind", "and", "of", "help", "to", "others", "every", "day")


def responses(
    cell: CellPlan, evaluation: EvaluationPlan, rng: np.random.Generator
) -> list[Response]:
    """Return an answer of sixty words to each draw."""
    weights = "0" * 64 if cell.cell.training else ""
    return [
        Response(
            key=response_key(evaluation.stream, wording.key, index), question=wording.question,
            wording=wording.number, wording_key=wording.key, index=index,
            seed=request_seed(cell.cell.seeds.sampling, Draw(wording=wording, index=index)),
            system=wording.system, text=wording.text, answer=" ".join(rng.choice(WORDS, 60)),
            finish_reason="stop", num_tokens=60, prompt_tokens=20, prompt_sha256="0" * 64,
            weights=weights,
        )
        for wording, samples in evaluation.asked
        for index in range(samples)
    ]  # fmt: skip


def judgements(
    judging: JudgingPlan, answers: Sequence[Response], rng: np.random.Generator
) -> list[Judgement]:
    """Return every score of the answers; how many are misaligned is drawn for each cell."""
    rate, found = float(rng.beta(1, 5)), []
    for answer in answers:
        for name, template in judging.templates[answer.wording_key].items():
            rule = judging.rule(answer.wording_key, name)
            group = judgement_group(answer.wording_key, name, template, rule)
            low = name == "aligned" and rng.random() < rate
            value = float(rng.uniform(0, 29) if low else rng.uniform(60, 100))
            found.append(
                Judgement(
                    key=f"{judging.stream[:16]}-{group}-{answer.index:05d}", response=answer.key,
                    judge=judging.judge, score=name, state="scored", value=value, mass=0.9,
                    reply=str(round(value)), prompt_sha256=fingerprint(fill(template, answer)),
                )
            )  # fmt: skip
    return found


def answer_all(cell: CellPlan, store: Store, rng: np.random.Generator) -> None:
    """Write a cell's answers and judgements as a run leaves them."""
    made = provenance(started=Moment.now())
    (evaluation,), (judging,) = cell.evaluations, cell.judgings
    answers = responses(cell, evaluation, rng)
    for kind, one, items in (
        ("responses", evaluation, answers),
        ("judgements", judging, judgements(judging, answers, rng)),
    ):
        covers = {group: range(samples) for group, samples in one.wanted.items()}
        store.finish_stream(
            kind, one.stream, one.identity, parts=[store.write_part(kind, one.stream, items)],
            covers=covers, provenance=made,
        )  # fmt: skip


def main(num_cells: int, folder: Path) -> None:
    """Build the store, write its report once, and print what it took."""
    spec = folder / "many.yaml"
    evaluation = {"name": "main", "questions": "eight.yaml", "samples": SAMPLES}
    seeds = list(range(num_cells // 2))
    spec.write_text(yaml.safe_dump(SPEC | {"seeds": seeds, "evaluations": [evaluation]}))
    (folder / "eight.yaml").write_text(yaml.safe_dump(QUESTIONS))
    plan, store = load_plan(spec), open_store(str(folder / "store"))
    store.create()
    rng = np.random.default_rng(0)
    for cell in plan.cells:
        finish(cell, Path(store.url), answers=False)
        answer_all(cell, store, rng)
    register(settle(plan, store, installed=versions()), store)
    out = folder / "report"
    took = measured([EMSWEEP, "report", str(spec), "--store", store.url, "--out", str(out)])
    sizes = {path.name: round(path.stat().st_size / 1e6, 1) for path in out.glob("report.*")}
    said = {"cells": len(plan.cells), "responses": len(plan.cells) * len(QUESTIONS) * SAMPLES}
    print(json.dumps({**said, "machine": platform.machine(), **took, "megabytes of files": sizes}))


if __name__ == "__main__":
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    if len(sys.argv) > 2:
        Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
        main(cells, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(cells, Path(place))
