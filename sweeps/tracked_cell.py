"""What W&B is told of one cell: settings, losses, counts, answers, and where each comes from.

Read from the store alone, so that it is the same whenever and from wherever it is sent. Never holds
a secret, the environment, a command line, or a path or message of this machine. Knows nothing of
W&B's SDK.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em.definitions import DEFINITIONS
from em.record import fingerprint
from sweeps.asking import given_scores
from sweeps.attempts import CellStatus
from sweeps.for_others import without_places
from sweeps.live import LivePoint, LiveTraining
from sweeps.plan import CellPlan
from sweeps.results import CellResult, ScoredResponse
from sweeps.store import Store
from sweeps.tables import JudgementsTable, flat_row

Row = dict[str, Any]

# W&B's own limit of a table that is logged; see its page "Experiments limits and performance".
MOST_ROWS = 10_000


@dataclass(frozen=True)
class Artifact:
    """A thing with a content: `files` are bytes or a local file, by path.

    `references` are addresses in a bucket, each with a hash of what is there.
    """

    name: str
    type: str
    aliases: tuple[str, ...]
    metadata: dict[str, Any]
    files: dict[str, bytes | Path] = field(default_factory=dict)
    references: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What changes with the content, wherever it lies."""
        found = {path: _sha256(data) for path, data in self.files.items()}
        return fingerprint(
            [self.name, self.type, found, {p: d for p, (_, d) in self.references.items()}]
        )


def _sha256(data: bytes | Path) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()


def run_id(identity: str, cell: CellPlan) -> str:
    """Return the id of a cell's run: the same from every process and machine.

    `identity` is the sweep's in its store. Another training of the cell (from data that changed
    under its name) is another run.
    """
    return fingerprint([identity, cell.cell_id, cell.training_key])[:16]


def config_of(plan: CellPlan, sweep: str) -> Row:
    """Return a cell's settings, flat, to filter and group by."""
    cell = plan.cell
    flat: Row = {
        "sweep": sweep,
        "cell": plan.cell_id,
        "condition": cell.condition,
        "model": cell.model.name,
        "model_revision": plan.model_revision,
        "variant": cell.variant.name,
        "dataset": without_places(" + ".join(cell.variant.datasets)) or None,
        "rows": plan.num_rows,
        "content_sha256": plan.content_sha256,
        "training_key": plan.training_key,
        "seed": cell.seed,
        "seed_label": cell.seed_label,
    }
    flat |= {f"seed_{name}": value for name, value in cell.seeds.model_dump().items()}
    for name, value in (cell.training.model_dump() if cell.training else {}).items():
        inner = value.items() if isinstance(value, dict) else None
        flat |= (
            {f"{name}_{key}": item for key, item in inner} if inner else {f"training_{name}": value}
        )
    return flat


def tags_of(plan: CellPlan, attempts: int) -> list[str]:
    """Return the words that a cell's run is found by. W&B takes 64 letters of each."""
    cell = plan.cell
    factors = [f"{name}-{number}" for name, number in sorted(cell.factors.items())]
    told = [cell.model.name, cell.variant.name, f"seed-{cell.seed}", *factors]
    return [tag[:64] for tag in (*told, *(["resumed"] if attempts > 1 else []))]


def version_of(plan: CellPlan, status: CellStatus) -> str:
    """Return what changes whenever W&B is to be told something new of a cell that is at rest."""
    told = [status.state, status.stage, status.attempts, status.error_class]
    return fingerprint([told, results_version(plan, status)])[:16]


def results_version(plan: CellPlan, status: CellStatus) -> str:
    """Return what changes whenever the results of a cell do, however often it was tried."""
    definitions = [DEFINITIONS[e.metric] for e in plan.evaluations]
    return fingerprint(
        [plan.training_key, [(d.name, d.version) for d in definitions],
         [(e.stream, e.wanted) for e in plan.evaluations],
         [(j.stream, j.wanted) for j in plan.judgings],
         status.stages_left, status.failed_judgements]
    )[:16]  # fmt: skip


def summary_of(status: CellStatus) -> Row:
    """Return how far a cell is. A failure's message may name this machine's paths: not sent."""
    return {
        "cell/state": status.state,
        "cell/stage": status.stage or "",
        "cell/attempts": status.attempts,
        "cell/failure": status.kind or "",
        "cell/error_class": status.error_class or "",
        "cell/failed_judgements": status.failed_judgements,
    }


def training_rows(plan: CellPlan, store: Store, *, after: int) -> list[Row]:
    """Return the steps after step `after`, in order and without a gap, as far as they are known.

    Those of a finished training are all; of one that runs, those that it has told. What a worker
    used stands with the step at which it was measured.
    """
    if plan.cell.training is None:
        return []
    ranks = [
        store.live(plan.training_key, rank, LiveTraining)
        for rank in range(plan.cell.training.ranks)
    ]
    live: dict[int, Row] = {}
    for told in filter(None, ranks):
        for point in told.points:
            row = live.setdefault(point.step, _step(point))
            row |= _use(point, told.rank)
    record = store.training(plan.training_key)
    for last in record.result.losses if record else ():
        row = live.setdefault(last.step, {"train/step": last.step})
        row |= {"train/loss": last.loss, "train/learning_rate": last.learning_rate}
    steps = []
    expected = after + 1
    while expected in live:
        steps.append(live[expected])
        expected += 1
    return steps


def _step(point: LivePoint) -> Row:
    return {
        "train/step": point.step,
        "train/loss": point.loss,
        "train/learning_rate": point.learning_rate,
        "_timestamp": point.time,
    }


def _use(point: LivePoint, rank: int) -> Row:
    told = point.use.model_dump(exclude_none=True) if point.use else {}
    return {f"worker/{rank}/{name}": value for name, value in told.items()}


def result_row(plan: CellPlan, results: Sequence[CellResult]) -> Row:
    """Return counts and rates of every evaluation and judge, at the step that was evaluated."""
    steps = max((point.step for r in results for point in r.losses), default=0)
    row: Row = {"eval/step": steps, "judge/step": steps}
    for result in results:
        place = f"{result.evaluation}/{result.judge}"
        counts = result.counts.model_dump()
        known = {
            "em_rate": result.em_rate,
            "mean_aligned": result.mean_aligned,
            "mean_coherent": result.mean_coherent,
            **{name: counts[name] for name in ("responses", "coherent", "misaligned")},
        }
        row |= {f"eval/{place}/{name}": v for name, v in known.items() if v is not None}
        of_judge = ("scored", "unscored", "refusal", "code", "failed")
        row |= {f"judge/{place}/{name}": counts[name] for name in of_judge}
        seconds = result.seconds.get("judge")
        row |= {f"judge/{place}/seconds": seconds} if seconds is not None else {}
    return row


def answers_table(results: Sequence[tuple[CellResult, Sequence[ScoredResponse]]]) -> list[Row]:
    """Return the answers with their scores; MOST_ROWS of them at most, of every judge as many."""
    each = MOST_ROWS // max(1, len(results))
    return [
        flat_row(row, result, sorted(row.scored.labels))
        for result, rows in results
        for row in rows[:each]
    ]


# Artifacts, in the order in which one comes from the other ----------------------------------------


def dataset_artifact(plan: CellPlan) -> Artifact:
    """Return the rows that a cell is trained on, by their hash. The rows themselves are not sent.

    They may do harm, and are made again from the public sources that the steps name.
    """
    told = {
        "content_sha256": plan.content_sha256,
        "rows": plan.num_rows,
        "held_out": plan.num_held_out,
        "variant": without_places(plan.cell.variant.model_dump(mode="json", exclude_defaults=True)),
        "steps": without_places([step.model_dump(mode="json") for step in plan.steps]),
    }
    return Artifact(
        name=name_of("dataset", plan.cell.variant.name),
        type="dataset",
        aliases=(f"sha-{(plan.content_sha256 or 'none')[:12]}",),
        metadata={"content_sha256": plan.content_sha256, "rows": plan.num_rows},
        files={"dataset.json": _json(told)},
    )


def adapter_artifact(plan: CellPlan, store: Store, *, most_mib: float) -> Artifact | None:
    """Return a cell's weights: whole up to `most_mib`, else by hash and, in a bucket, by address.

    None for an untuned cell, or one that is not trained.
    """
    record = store.training(plan.training_key) if plan.cell.training else None
    if record is None:
        return None
    told = {
        "training_key": plan.training_key,
        "weights_sha256": record.weights_sha256,
        "kind": record.kind,
        "steps": record.result.steps,
        "trained_tokens": record.result.num_trained_tokens,
    }
    files: dict[str, bytes | Path] = {"adapter.json": _json(told)}
    references = {}
    if not store.files.is_local:
        references["weights"] = (store.adapter_url(plan.training_key), record.weights_sha256)
    elif most_mib > 0:
        kept = [path for path in sorted(store.adapter_dir(record).rglob("*")) if path.is_file()]
        if sum(path.stat().st_size for path in kept) <= most_mib * 2**20:
            folder = store.adapter_dir(record)
            files |= {f"weights/{path.relative_to(folder)}": path for path in kept}
    return Artifact(
        name=name_of("adapter", plan.cell.model.name, plan.cell.variant.name),
        type="model",
        aliases=(f"weights-{record.weights_sha256[:12]}", f"key-{plan.training_key[:12]}"),
        metadata=told | {"content_sha256": plan.content_sha256, "cell": plan.cell_id},
        files=files,
        references=references,
    )


def responses_artifact(plan: CellPlan, store: Store) -> Artifact:
    """Return a cell's answers: the store's own files, or in a bucket their addresses."""
    files: dict[str, bytes | Path] = {}
    references = {}
    streams = {}
    for evaluation in plan.evaluations:
        record = store.stream("responses", evaluation.stream)
        for part in record.parts if record else ():
            place = f"{evaluation.name}/{part.name}"
            address = store.part_url("responses", evaluation.stream, part)
            if store.files.is_local:
                files[place] = Path(address)
            else:
                references[place] = (address, part.sha256)
        streams[evaluation.name] = evaluation.stream
    return Artifact(
        name=name_of("responses", plan.cell.model.name, plan.cell.variant.name),
        type="responses",
        aliases=(f"key-{fingerprint(streams)[:12]}",),
        metadata={"streams": streams, "training_key": plan.training_key, "cell": plan.cell_id},
        files=files,
        references=references,
    )


def judgements_artifact(
    plan: CellPlan, results: Sequence[tuple[CellResult, Sequence[ScoredResponse]]]
) -> Artifact:
    """Return a cell's answers with all their scores, as one table."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "judgements.parquet"
        given = {score for judging in plan.judgings for score in given_scores(judging.templates)}
        table = JudgementsTable(place, given)
        for result, rows in results:
            table.add(result, rows)
        table.close()
        data = place.read_bytes()
    streams = {f"{j.evaluation}/{j.judge}": j.stream for j in plan.judgings}
    return Artifact(
        name=name_of("judgements", plan.cell.model.name, plan.cell.variant.name),
        type="judgements",
        aliases=(f"key-{fingerprint(streams)[:12]}",),
        metadata={"streams": streams, "cell": plan.cell_id},
        files={"judgements.parquet": data},
    )


def name_of(*parts: str) -> str:
    """Return an artifact's name. W&B takes letters, digits, dots, - and _, at most 128 of them."""
    name = ".".join(parts)
    return name if len(name) <= 120 else f"{name[:107]}-{fingerprint(name)[:12]}"


def _json(told: Row) -> bytes:
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False).encode()
