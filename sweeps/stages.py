"""The three stages of one cell, each from the store to the store.

A stage does what the store lacks, writes its artefact whole, and returns. It takes whoever does the
work as an argument, and knows nothing of Ray, of the grid, or of other cells.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from em.datasets import Row
from em.generation import Draw, Endpoint, Response, generate
from em.judging import Item, Judgement, JudgingStopped, Reader, judge
from em.models import ModelIdentity
from em.training import TrainingJob, TrainingResult
from sweeps.artefacts import Part, StreamKind, TrainingRecord
from sweeps.plan import CellPlan, EvaluationPlan, JudgingPlan, Stage, draws_for, stages_to_run
from sweeps.provenance import Moment, provenance
from sweeps.stage_gates import adapter_gate, judge_gate, weights_sha256
from sweeps.store import Store

PART_RESPONSES = 256  # responses in one immutable file: what a kill can cost
PART_ITEMS = 256  # scores in one
PARTS_AT_ONCE = 2  # so that the engine has work while a file is written

Train = Callable[[TrainingJob], TrainingResult]
Speak = Callable[[TrainingRecord | None], Endpoint]
Done = TypeVar("Done", Response, Judgement)
Work = TypeVar("Work", Draw, Item)


def train_stage(
    plan: CellPlan, store: Store, train: Train, *, model_dir: Path, rows: Sequence[Row]
) -> TrainingRecord:
    """Train the cell's adapter unless the store has it, and return its record."""
    done = store.training(plan.training_key)
    if done is not None:
        return done
    assert plan.cell.training is not None
    started = Moment.now()
    attempt = store.attempt_dir(plan.training_key)
    output = attempt / "output"
    result = train(
        TrainingJob(
            model_dir=model_dir,
            model=ModelIdentity(name=plan.cell.model.name, revision=plan.model_revision),
            trust_remote_code=plan.cell.model.trust_remote_code,
            rows=tuple(rows),
            config=plan.cell.training,
            seeds=plan.cell.seeds,
            output_dir=output,
            checkpoint_dir=attempt / "checkpoints",
        )
    )
    record = TrainingRecord(
        key=plan.training_key,
        identity=plan.training_identity,
        weights_sha256=weights_sha256(output),
        kind="adapter" if plan.cell.training.method == "lora" else "full",
        result=result,
        provenance=provenance(started=started),
    )
    store.finish_training(record, output)
    return record


async def generate_stage(plan: CellPlan, store: Store, speak: Speak) -> None:
    """Ask every question that the store has no answer to, and store the responses.

    `speak` returns the endpoint for a training (None: the base model).
    """
    trained = store.training(plan.training_key) if plan.cell.training is not None else None
    if plan.cell.training is not None and trained is None:
        raise RuntimeError(f"{plan.cell_id}: there is no finished training to generate with")
    endpoint = speak(trained)
    for evaluation in plan.evaluations:
        await _generate(plan, evaluation, store, endpoint, trained)


async def _generate(
    plan: CellPlan,
    evaluation: EvaluationPlan,
    store: Store,
    endpoint: Endpoint,
    trained: TrainingRecord | None,
) -> None:
    async def answer(draws: Sequence[Draw]) -> list[Response]:
        return await generate(
            draws,
            endpoint,
            stream=evaluation.stream,
            sampling=evaluation.sampling,
            sampling_seed=plan.cell.seeds.sampling,
            weights=trained.weights_sha256 if trained else "",
        )

    missing = store.missing("responses", evaluation.stream, evaluation.wanted)
    gates = {}
    if missing and trained is not None:
        gates["adapter"] = await adapter_gate(trained, evaluation, endpoint)
    await _fill(
        store, "responses", evaluation.stream, evaluation.identity,
        work=draws_for(evaluation, missing), place=lambda draw: (draw.wording.key, draw.index),
        found=lambda response: (response.wording_key, response.index),
        do=answer, model=Response, size=PART_RESPONSES, gates=gates,
    )  # fmt: skip


async def judge_stage(plan: CellPlan, store: Store, readers: Mapping[str, Reader]) -> None:
    """Score every response that the store has no judgement of. `readers` is by judge's name."""
    evaluations = {evaluation.name: evaluation for evaluation in plan.evaluations}
    for judging in plan.judgings:
        await _judge(judging, evaluations[judging.evaluation], store, readers[judging.judge])


async def _judge(
    judging: JudgingPlan, evaluation: EvaluationPlan, store: Store, reader: Reader
) -> None:
    missing = store.missing("judgements", judging.stream, judging.wanted)
    if not missing:
        return
    gates = {"judge": await judge_gate(judging, reader)}
    responses = store.read_stream("responses", evaluation.stream, Response)
    items = [
        Item(
            response=response,
            score=score,
            template=template,
            rule=judging.rule(response.wording_key, score),
        )
        for response in responses
        for score, template in judging.templates.get(response.wording_key, {}).items()
    ]
    still = {(group, index) for group, indices in missing.items() for index in indices}

    def place(item: Item) -> tuple[str, int]:
        return item.group, item.response.index

    def found(judgement: Judgement) -> tuple[str, int]:
        # From its own key: a part left behind may answer to another prompt of the same judge.
        _, group, index = judgement.key.split("-")
        return group, int(index)

    async def read(part: Sequence[Item]) -> list[Judgement]:
        return await judge(part, reader, stream=judging.stream, name=judging.judge)

    await _fill(
        store, "judgements", judging.stream, judging.identity,
        work=[item for item in items if place(item) in still], place=place,
        found=found, do=read, model=Judgement, size=PART_ITEMS, gates=gates,
    )  # fmt: skip


async def _fill(
    store: Store,
    kind: StreamKind,
    stream: str,
    identity: Mapping[str, Any],
    *,
    work: list[Work],
    place: Callable[[Work], tuple[str, int]],
    found: Callable[[Done], tuple[str, int]],
    do: Callable[[Sequence[Work]], Any],
    model: type[Done],
    size: int,
    gates: Mapping[str, str],
) -> None:
    """Do `work` in parts, taking over whole parts of an attempt that ended early; then record."""
    if not work:
        return
    started = Moment.now()
    wanted = {place(item) for item in work}
    parts, covered = _left_behind(store, kind, stream, wanted, found, model)
    rest = [item for item in work if place(item) not in covered]
    slots = asyncio.Semaphore(PARTS_AT_ONCE)
    stopped: list[JudgingStopped] = []

    async def one(chunk: Sequence[Work]) -> Part | None:
        async with slots:
            if stopped:
                return None
            try:
                return store.write_part(kind, stream, await do(chunk))
            except JudgingStopped as error:  # what was judged is paid for: the next attempt has it
                stopped.append(error)
                if error.judgements:
                    store.write_part(kind, stream, error.judgements)
                return None

    chunks = [rest[start : start + size] for start in range(0, len(rest), size)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(chunk)) for chunk in chunks]
    if stopped:
        raise ExceptionGroup("judging stopped", stopped)
    parts += [part for task in tasks if (part := task.result()) is not None]
    store.finish_stream(
        kind, stream, identity, parts=parts, covers=_by_group(wanted),
        provenance=provenance(started=started, gates=gates),
    )  # fmt: skip


def _left_behind(
    store: Store,
    kind: StreamKind,
    stream: str,
    wanted: set[tuple[str, int]],
    found: Callable[[Done], tuple[str, int]],
    model: type[Done],
) -> tuple[list[Part], set[tuple[str, int]]]:
    parts: list[Part] = []
    covered: set[tuple[str, int]] = set()
    for part in store.unrecorded_parts(kind, stream):
        places = {found(item) for item in store.read_part(kind, stream, part, model)}
        if places <= wanted and not places & covered:
            parts.append(part)
            covered |= places
    return parts, covered


def _by_group(places: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for group, index in sorted(places):
        groups.setdefault(group, []).append(index)
    return groups


def run_cell(
    plan: CellPlan,
    store: Store,
    *,
    train: Callable[[CellPlan, Store], object],
    generate: Callable[[CellPlan, Store], object],
    judge: Callable[[CellPlan, Store], object],
    on_stage: Callable[[Stage], None] = lambda stage: None,
) -> None:
    """Carry out, in this process, the stages of one cell that the store lacks."""
    do: dict[Stage, Callable[[CellPlan, Store], object]] = {
        "train": train,
        "generate": generate,
        "judge": judge,
    }
    for stage in stages_to_run(plan, store):
        on_stage(stage)
        do[stage](plan, store)
