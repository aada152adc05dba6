"""The three stages of one cell, each from the store to the store.

A stage does what the store lacks, writes its artefact whole, and returns. It takes whoever does the
work as an argument, and knows nothing of Ray, of the grid, or of other cells.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from em.datasets import Row
from em.generation import Draw, Endpoint, Response, generate
from em.inspect_run import answer_samples
from em.inspect_tasks import LoadedTask, load_task
from em.judging import Item, Judgement, Reader, fill, judge, place_of
from em.models import ModelIdentity
from em.snapshots import snapshot_dir, whole_snapshots
from em.training import TrainingJob, TrainingResult
from sweeps.artefacts import SNAPSHOTS, SnapshotRecord, TrainingRecord
from sweeps.filling import AS_EVER, Cut, fill_stream
from sweeps.kept_checkpoints import fetch_checkpoint, forget_checkpoints
from sweeps.leases import ALONE, Holder, holding
from sweeps.plan import CellPlan, EvaluationPlan, JudgingPlan, Stage, draws_for, stages_to_run
from sweeps.provenance import Moment, provenance
from sweeps.stage_gates import adapter_gate, judge_gate
from sweeps.store import Store
from sweeps.weights import weights_sha256

# Answers to one wording in one batch of an API, by their index: who comes back cuts the same ones,
# and finds them. Each takes up to a day, so that many are under way.
BATCH, BATCHES_AT_ONCE = 100, 64
CHECKPOINTS, OUTPUT = "checkpoints", "output"  # in a training's attempt folder

NO_GRADERS: Mapping[str, Endpoint] = {}

Train = Callable[[TrainingJob], TrainingResult]
Speak = Callable[[TrainingRecord | None], Endpoint]


def train_stage(
    plan: CellPlan,
    store: Store,
    train: Train,
    *,
    model_dir: Path,
    rows: Sequence[Row],
    holder: Holder = ALONE,
) -> TrainingRecord:
    """Train the cell's adapter unless the store has it, and return its record.

    Raises HeldElsewhere where another driver trains it.
    """
    with holding(store, [plan.training_key], holder) as check_lease:
        done = store.training(plan.training_key)
        if done is not None:
            _check_kept(done, plan)
            return done
        attempt = store.attempt_dir(plan.training_key, holder.driver)
        fetch_checkpoint(store, plan.training_key, attempt / CHECKPOINTS)
        record = _train(plan, train, attempt, model_dir=model_dir, rows=rows)
        _check_kept(record, plan)
        check_lease()
        finished = store.finish_training(
            record,
            attempt / OUTPUT,
            attempt / SNAPSHOTS if record.snapshots else None,
            check_lease=check_lease,
        )
        forget_checkpoints(store, plan.training_key)
        _check_kept(finished, plan)
        return finished


def _check_kept(trained: TrainingRecord, plan: CellPlan) -> None:
    """Raise ValueError where a training lacks a step that this cell is to be asked after."""
    for step in plan.snapshots:
        trained.after(step)


def _train(
    plan: CellPlan, train: Train, attempt: Path, *, model_dir: Path, rows: Sequence[Row]
) -> TrainingRecord:
    assert plan.cell.local_training is not None
    started = Moment.now()
    output, snapshots = attempt / OUTPUT, attempt / SNAPSHOTS
    result = train(
        TrainingJob(
            model_dir=model_dir,
            model=ModelIdentity(name=plan.cell.model.name, revision=plan.model_revision),
            trust_remote_code=plan.cell.model.trust_remote_code,
            rows=tuple(rows),
            config=plan.cell.local_training,
            seeds=plan.cell.seeds,
            output_dir=output,
            checkpoint_dir=attempt / CHECKPOINTS,
            snapshots=plan.snapshots,
            snapshot_dir=snapshots,
        )
    )
    return TrainingRecord(
        key=plan.training_key,
        identity=plan.training_identity,
        weights_sha256=weights_sha256(output),
        kind="adapter" if plan.cell.local_training.method == "lora" else "full",
        result=result,
        provenance=provenance(started=started),
        snapshots=tuple(
            SnapshotRecord(
                step=step,
                weights_sha256=weights_sha256(snapshot_dir(snapshots, step)),
                canaries=mark.canaries,
            )
            for step, mark in sorted(whole_snapshots(snapshots).items())
        ),
    )


async def generate_stage(
    plan: CellPlan,
    store: Store,
    speak: Speak,
    holder: Holder = ALONE,
    graders: Mapping[str, Endpoint] = NO_GRADERS,
) -> None:
    """Ask every question that the store has no answer to, and store the responses.

    `speak` returns the endpoint for a training, as it ended or as it was after some step (None: the
    base model); `graders` are those of the evaluations that have one. Raises HeldElsewhere where
    another driver asks them, and ValueError where nothing was kept of a step that is asked for.
    """
    trained = store.training(plan.training_key) if plan.cell.training is not None else None
    if plan.cell.training is not None and trained is None:
        raise RuntimeError(f"{plan.cell_id}: there is no finished training to generate with")
    speakers = {
        step: trained.after(step) if trained else None
        for step in dict.fromkeys(evaluation.step for evaluation in plan.evaluations)
    }
    endpoints = {step: speak(speaker) for step, speaker in speakers.items()}
    streams = [evaluation.stream for evaluation in plan.evaluations]
    with holding(store, streams, holder) as check_lease:
        for evaluation in plan.evaluations:
            step = evaluation.step
            await _generate(
                plan, evaluation, store, endpoints[step], speakers[step],
                graders.get(evaluation.of), check_lease,
            )  # fmt: skip


async def _generate(
    plan: CellPlan,
    evaluation: EvaluationPlan,
    store: Store,
    endpoint: Endpoint,
    trained: TrainingRecord | None,
    grader: Endpoint | None,
    check_lease: Callable[[], None],
) -> None:
    missing = store.missing("responses", evaluation.stream, evaluation.wanted)
    if not missing:
        return
    gates = {}
    if trained is not None:
        gates["adapter"] = await adapter_gate(trained, evaluation, endpoint)
    batched = plan.cell.model.api is not None and plan.cell.model.api.batch
    cut, asked = AS_EVER, partial(generate, endpoint=endpoint)
    if batched:
        cut = Cut(size=1, at_once=BATCHES_AT_ONCE)
    if evaluation.task is not None:
        loaded = await asyncio.to_thread(_load_planned, evaluation)
        cut = Cut(at_once=1)  # one run of Inspect in a process
        asked = partial(
            answer_samples, endpoint=endpoint, loaded=loaded, scorer=evaluation.scorer,
            grader=grader,
        )  # fmt: skip

    async def answer(draws: Sequence[Draw]) -> list[Response]:
        return await asked(
            draws,
            stream=evaluation.stream,
            sampling=evaluation.sampling,
            sampling_seed=plan.cell.seeds.sampling,
            weights=trained.weights_sha256 if trained else "",
        )

    await fill_stream(
        store, "responses", evaluation.stream, evaluation.identity,
        work=draws_for(evaluation, missing), place=lambda draw: (draw.wording.key, draw.index),
        found=lambda response: (response.wording_key, response.index),
        do=answer, model=Response, gates=gates, check_lease=check_lease,
        together=lambda draw: (draw.wording.key, draw.index // (BATCH if batched else 1)),
        cut=cut,
    )  # fmt: skip


def _load_planned(evaluation: EvaluationPlan) -> LoadedTask:
    """Return an evaluation's task. Raises ValueError where it is another than the planned one."""
    assert evaluation.task is not None
    loaded = load_task(evaluation.task)
    planned, now = evaluation.identity["inspect"], loaded.identity | {"scorer": evaluation.scorer}
    if now != planned:
        other = ", ".join(sorted(k for k in now if now[k] != planned.get(k))) or "its parts"
        raise ValueError(
            f"the task {evaluation.task.told!r} is another here than when the sweep was planned "
            f"({other}): its file was changed meanwhile, or this node has other packages. Have it "
            "as it was, or start the run again"
        )
    return loaded


async def judge_stage(
    plan: CellPlan, store: Store, readers: Mapping[str, Reader], holder: Holder = ALONE
) -> None:
    """Score every response that the store has no judgement of. `readers` is by judge's name.

    Raises HeldElsewhere where another driver judges them.
    """
    evaluations = {evaluation.name: evaluation for evaluation in plan.evaluations}
    with holding(store, [judging.stream for judging in plan.judgings], holder) as check_lease:
        for judging in plan.judgings:
            evaluation, reader = evaluations[judging.evaluation], readers[judging.judge]
            await _judge(judging, evaluation, store, reader, check_lease)


async def _judge(
    judging: JudgingPlan,
    evaluation: EvaluationPlan,
    store: Store,
    reader: Reader,
    check_lease: Callable[[], None],
) -> None:
    missing = store.missing("judgements", judging.stream, judging.wanted)
    if not missing:
        return
    gates = {"judge": await judge_gate(judging, evaluation.metric, reader)}
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
        return place_of(judgement.key)

    async def read(part: Sequence[Item]) -> list[Judgement]:
        return await judge(part, reader, stream=judging.stream, name=judging.judge)

    await fill_stream(
        store, "judgements", judging.stream, judging.identity,
        work=[item for item in items if place(item) in still], place=place,
        found=found, do=read, model=Judgement, gates=gates, check_lease=check_lease,
        together=lambda item: fill(item.template, item.response),  # equal prompts are read once
    )  # fmt: skip


def ask_again(plan: CellPlan, store: Store, holder: Holder = ALONE) -> None:
    """Have the cell's failed judgements count as missing, so that the judge is asked again.

    Samples of a task that ended by an error, too. Raises HeldElsewhere where another driver answers
    or judges the cell.
    """
    tasks = [evaluation for evaluation in plan.evaluations if evaluation.task is not None]
    with holding(store, [evaluation.stream for evaluation in tasks], holder):
        for evaluation in tasks:
            store.reopen("responses", evaluation.stream, evaluation.wanted)
    with holding(store, [judging.stream for judging in plan.judgings], holder):
        for judging in plan.judgings:
            store.reopen("judgements", judging.stream, judging.wanted)


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
