"""The artifacts of a cell in W&B, each made from the one before: data set, adapter, responses,
judgements. They go by what is in them.

Read from the store alone, as sweeps.tracked_cell. Rows that a model is trained on are never in
them. Knows nothing of W&B's SDK.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em.record import fingerprint
from sweeps.asking import given_scores
from sweeps.for_others import without_places
from sweeps.plan import CellPlan, at_the_end
from sweeps.results import CellResult, ScoredResponse
from sweeps.store import Store
from sweeps.tables import JudgementsTable


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
        references["weights"] = (store.adapter_url(record), record.weights_sha256)
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
    """Return a cell's answers at its end: the store's own files, or in a bucket their addresses."""
    files: dict[str, bytes | Path] = {}
    references = {}
    streams = {}
    for evaluation in at_the_end(plan).evaluations:
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
        given = {
            score
            for judging in at_the_end(plan).judgings
            for score in given_scores(judging.templates)
        }
        table = JudgementsTable(place, given)
        for result, rows in results:
            table.add(result, rows)
        table.close()
        data = place.read_bytes()
    streams = {f"{j.evaluation}/{j.judge}": j.stream for j in at_the_end(plan).judgings}
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


def _json(told: dict[str, Any]) -> bytes:
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False).encode()
