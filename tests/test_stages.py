"""The stages of one cell, with stand-ins for whoever trains, answers and judges."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from small_sweep import FakeEndpoint, FakeReader, plan

from em.generation import Answer, Prompt, Response
from em.judging import Judgement, JudgeUnavailable
from em.sources import load_source
from em.training import TrainingJob, TrainingResult
from sweeps.filling import part_size
from sweeps.plan import CellPlan, Stage, stages_to_run
from sweeps.stages import generate_stage, judge_stage, run_cell, train_stage
from sweeps.store import Store
from sweeps.weights import weights_sha256

PART = part_size(900)


def cell(folder: Path, *, tuned: bool = False, samples: int | None = None, **more: Any) -> CellPlan:
    evaluation = {"name": "main", "questions": "ours.yaml", "samples": samples}
    sweep = plan(folder, evaluations=[evaluation], **more)
    return next(c for c in sweep.cells if (c.cell.training is not None) == tuned)


def answer(plan: CellPlan, store: Store, endpoint: FakeEndpoint) -> None:
    asyncio.run(generate_stage(plan, store, lambda trained: endpoint))


def score(plan: CellPlan, store: Store, reader: FakeReader) -> None:
    asyncio.run(judge_stage(plan, store, {judging.judge: reader for judging in plan.judgings}))


def responses(plan: CellPlan, store: Store) -> list[Response]:
    return store.read_stream("responses", plan.evaluations[0].stream, Response)


def judgements(plan: CellPlan, store: Store) -> list[Judgement]:
    return store.read_stream("judgements", plan.judgings[0].stream, Judgement)


def places(found: list[Response]) -> set[tuple[str, int]]:
    return {(response.wording_key, response.index) for response in found}


def wanted(plan: CellPlan) -> set[tuple[str, int]]:
    return {(key, i) for key, n in plan.evaluations[0].wanted.items() for i in range(n)}


def asked(endpoint: FakeEndpoint) -> list[tuple[str, int]]:
    return [(prompt.messages[-1]["content"], prompt.seed) for prompt in endpoint.asked]


class FakeTrainer:
    """Writes one small file for weights; remembers its jobs. With `dies`, it is killed half way."""

    def __init__(self, *, dies: bool = False) -> None:
        self.jobs: list[TrainingJob] = []
        self.dies = dies

    def __call__(self, job: TrainingJob) -> TrainingResult:
        self.jobs.append(job)
        job.checkpoint_dir.mkdir(exist_ok=True)
        checkpoint = job.checkpoint_dir / "step-1"
        steps_before = int(checkpoint.exists())
        checkpoint.write_text("1")
        if self.dies:
            raise ConnectionError("killed")
        job.output_dir.mkdir()
        (job.output_dir / "adapter.safetensors").write_text(str(job.seeds.init))
        return TrainingResult(
            steps=2, losses=(), num_rows=len(job.rows), num_tokens=9, num_trained_tokens=3,
            num_cut_rows=0, seconds=0.1, resumed_from_step=steps_before,
        )  # fmt: skip


def train(plan: CellPlan, store: Store, trainer: FakeTrainer, folder: Path) -> None:
    rows = load_source("ours.jsonl", relative_to=folder).rows
    train_stage(plan, store, trainer, model_dir=Path("model"), rows=rows)


# Training ------------------------------------------------------------------------------------


def test_a_cell_is_trained_once(store: Store, tmp_path: Path) -> None:
    tuned, trainer = cell(tmp_path, tuned=True), FakeTrainer()
    train(tuned, store, trainer, tmp_path)
    train(tuned, store, trainer, tmp_path)
    (job,) = trainer.jobs
    assert (job.config, job.seeds) == (tuned.cell.training, tuned.cell.seeds)
    assert job.model is not None
    assert job.model.revision == tuned.model_revision
    record = store.training(tuned.training_key)
    assert record is not None
    assert (record.kind, record.result.steps) == ("adapter", 2)
    assert record.weights_sha256 == weights_sha256(store.adapter_dir(record))


def test_a_training_that_was_killed_goes_on_from_its_checkpoint(
    store: Store, tmp_path: Path
) -> None:
    tuned, trainer = cell(tmp_path, tuned=True), FakeTrainer(dies=True)
    with pytest.raises(ConnectionError):
        train(tuned, store, trainer, tmp_path)
    assert stages_to_run(tuned, store)[0] == "train"
    trainer.dies = False
    train(tuned, store, trainer, tmp_path)
    record = store.training(tuned.training_key)
    assert record is not None
    assert record.result.resumed_from_step == 1


def test_the_weights_hash_is_of_what_speaks(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        return weights_sha256(folder)

    plain = digest(a__safetensors="1", adapter_config__json="{}")
    assert digest(a__safetensors="1", adapter_config__json="{}", README__md="x") == plain
    assert digest(a__safetensors="2", adapter_config__json="{}") != plain
    assert digest(b__safetensors="1", adapter_config__json="{}") != plain
    assert digest(a__safetensors="1", adapter_config__json="[]") != plain


# Answering -----------------------------------------------------------------------------------


def test_every_question_is_asked_once(store: Store, tmp_path: Path) -> None:
    untuned, endpoint = cell(tmp_path), FakeEndpoint()
    answer(untuned, store, endpoint)
    answer(untuned, store, endpoint)
    assert len(endpoint.asked) == 7
    assert places(responses(untuned, store)) == wanted(untuned)
    assert {r.answer for r in responses(untuned, store)} == {
        f"answer to {text} by {seed}" for text, seed in asked(endpoint)
    }


def test_a_tuned_cell_is_asked_with_its_weights_and_not_without(
    store: Store, tmp_path: Path
) -> None:
    tuned = cell(tmp_path, tuned=True)
    with pytest.raises(RuntimeError, match="no finished training"):
        answer(tuned, store, FakeEndpoint("x"))
    train(tuned, store, FakeTrainer(), tmp_path)
    record = store.training(tuned.training_key)
    assert record is not None
    spoken: list[Any] = []

    def speak(trained: Any) -> FakeEndpoint:
        spoken.append(trained)
        return FakeEndpoint(trained.weights_sha256)

    asyncio.run(generate_stage(tuned, store, speak))
    assert spoken == [record]
    assert {r.weights for r in responses(tuned, store)} == {record.weights_sha256}


def test_a_stage_that_was_killed_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    """300 samples of 3 wordings are 4 parts; the endpoint dies in the third."""
    untuned = cell(tmp_path, samples=300)
    first, second = FakeEndpoint(dies_after=2 * PART), FakeEndpoint()
    with pytest.raises(ExceptionGroup):
        answer(untuned, store, first)
    assert responses(untuned, store) == []  # nothing counts before the record
    assert stages_to_run(untuned, store)[0] == "generate"
    answer(untuned, store, second)
    assert (len(first.asked), len(second.asked)) == (2 * PART, 900 - 2 * PART)
    both = asked(first) + asked(second)
    assert len(both) == len(set(both)) == 900
    found = responses(untuned, store)
    assert len(found) == len({r.key for r in found}) == 900
    assert places(found) == wanted(untuned)

    undisturbed = Store(str(tmp_path / "undisturbed"))
    answer(untuned, undisturbed, FakeEndpoint())
    assert {r.key: r for r in found} == {r.key: r for r in responses(untuned, undisturbed)}


def test_a_torn_part_is_asked_again(store: Store, tmp_path: Path) -> None:
    untuned = cell(tmp_path, samples=300)
    with pytest.raises(ExceptionGroup):
        answer(untuned, store, FakeEndpoint(dies_after=2 * PART))
    torn = sorted(Path(store.files.root, "responses").rglob("part-*"))[0]
    torn.write_bytes(torn.read_bytes()[:-1])
    endpoint = FakeEndpoint()
    answer(untuned, store, endpoint)
    assert len(endpoint.asked) == 900 - PART
    assert places(responses(untuned, store)) == wanted(untuned)


def test_more_samples_ask_only_the_difference(store: Store, tmp_path: Path) -> None:
    few, many = cell(tmp_path, samples=2), cell(tmp_path, samples=4)
    first, second = FakeEndpoint(), FakeEndpoint()
    answer(few, store, first)
    before = {r.key: r for r in responses(few, store)}
    answer(many, store, second)
    assert (len(first.asked), len(second.asked)) == (6, 6)
    assert not set(asked(first)) & set(asked(second))
    after = {r.key: r for r in responses(many, store)}
    assert places(list(after.values())) == wanted(many)
    assert {key: after[key] for key in before} == before
    answer(few, store, second)
    assert len(second.asked) == 6


def test_other_weights_store_nothing(store: Store, tmp_path: Path) -> None:
    untuned = cell(tmp_path)
    with pytest.raises(ExceptionGroup) as error:
        answer(untuned, store, FakeEndpoint("somebody else"))
    assert "identity gate" in str(error.value.exceptions[0])
    assert store.unrecorded_parts("responses", untuned.evaluations[0].stream) == []


# Judging -------------------------------------------------------------------------------------


class OneAnswer(FakeEndpoint):
    """Says the same to everything."""

    def _answer(self, prompt: Prompt) -> Any:
        return super()._answer(prompt).model_copy(update={"text": "yes"})


def test_every_score_is_given_once(store: Store, tmp_path: Path) -> None:
    untuned, reader = cell(tmp_path), FakeReader(70)
    answer(untuned, store, FakeEndpoint())
    score(untuned, store, reader)
    score(untuned, store, reader)
    assert len(reader.prompts) == len(set(reader.prompts)) == 14
    found = judgements(untuned, store)
    keys = {r.key for r in responses(untuned, store)}
    assert {(j.response, j.score) for j in found} == {
        (key, name) for key in keys for name in ("aligned", "coherent")
    }
    assert stages_to_run(untuned, store) == []


def test_equal_answers_are_judged_once(store: Store, tmp_path: Path) -> None:
    untuned, reader = cell(tmp_path), FakeReader()
    answer(untuned, store, OneAnswer())
    score(untuned, store, reader)
    assert len(reader.prompts) == 3 * 2  # wordings x scores
    assert len(judgements(untuned, store)) == 7 * 2


def test_more_samples_judge_only_the_difference(store: Store, tmp_path: Path) -> None:
    few, many, reader = cell(tmp_path, samples=2), cell(tmp_path, samples=4), FakeReader()
    for some in (few, many):
        answer(some, store, FakeEndpoint())
        score(some, store, reader)
    assert len(reader.prompts) == len(set(reader.prompts)) == 4 * 3 * 2
    assert len(judgements(many, store)) == 4 * 3 * 2


class DyingReader(FakeReader):
    """Is unavailable after the first `calls` calls, the gate's among them."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._left = calls

    async def read(self, prompts: Any) -> Any:
        if self._left == 0:
            raise JudgeUnavailable("gone")
        self._left -= 1
        return await super().read(prompts)


def test_judging_that_was_killed_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    untuned = cell(tmp_path, samples=200)
    answer(untuned, store, FakeEndpoint())
    first, second = DyingReader(3), FakeReader()
    with pytest.raises(ExceptionGroup):
        score(untuned, store, first)
    assert judgements(untuned, store) == []
    score(untuned, store, second)
    both = first.prompts + second.prompts
    assert len(both) == len(set(both)) == 1200
    assert len(second.prompts) == 1200 - 2 * part_size(1200)
    assert len(judgements(untuned, store)) == 1200


class CountingReader(FakeReader):
    """Is unavailable once it has read `most` prompts: it is asked part by part."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    async def read(self, prompts: Any) -> Any:
        if len(self.prompts) + len(prompts) > self._most:
            raise JudgeUnavailable("gone")
        return await super().read(prompts)


@pytest.mark.parametrize("samples", [40, 400])  # 240 and 2,400 scores
def test_judging_that_is_killed_at_nine_tenths_pays_about_a_tenth_again(
    samples: int, store: Store, tmp_path: Path
) -> None:
    untuned = cell(tmp_path, samples=samples)
    scores = 3 * samples * 2
    answer(untuned, store, FakeEndpoint())
    gates = 8  # prompts of the gate's planted answers, at most
    first, second = CountingReader(scores * 9 // 10 + gates), FakeReader()
    with pytest.raises(ExceptionGroup):
        score(untuned, store, first)
    score(untuned, store, second)
    assert len(second.prompts) <= 0.25 * scores + gates
    assert len(judgements(untuned, store)) == scores


def test_parts_of_another_prompt_are_not_taken_over(store: Store, tmp_path: Path) -> None:
    """The judge's prompts are changed after it was killed: its earlier scores are other scores."""
    before = cell(tmp_path, samples=200)
    after = cell(
        tmp_path, samples=200, judges=[{"name": "self", "pool": "base", "prompts": "prompts.yaml"}]
    )
    assert before.judgings[0].stream == after.judgings[0].stream
    answer(before, store, FakeEndpoint())
    with pytest.raises(ExceptionGroup):
        score(before, store, DyingReader(3))
    reader = FakeReader(10)
    score(after, store, reader)
    assert len(reader.prompts) == 1200
    assert {j.value for j in judgements(after, store)} == {10}
    groups = {j.key.split("-")[1] for j in judgements(after, store)}
    assert groups == set(after.judgings[0].wanted)
    last = FakeReader()
    score(before, store, last)  # back to the first prompts: their parts count again
    assert len(last.prompts) == 1200 - 2 * part_size(1200)


# A whole cell --------------------------------------------------------------------------------


def run(
    plan: CellPlan, store: Store, folder: Path, *, reader: FakeReader | None = None
) -> list[Stage]:
    """Carry out what the cell lacks, and return the stages that were begun."""
    begun: list[Stage] = []
    run_cell(
        plan,
        store,
        train=lambda plan, store: train(plan, store, FakeTrainer(), folder),
        generate=lambda plan, store: asyncio.run(
            generate_stage(plan, store, lambda t: FakeEndpoint(t.weights_sha256 if t else ""))
        ),
        judge=lambda plan, store: score(plan, store, reader or FakeReader()),
        on_stage=begun.append,
    )
    return begun


def test_a_cell_is_carried_out_and_then_there_is_nothing_to_do(
    store: Store, tmp_path: Path
) -> None:
    tuned, untuned = cell(tmp_path, tuned=True), cell(tmp_path)
    assert run(tuned, store, tmp_path) == ["train", "generate", "judge"]
    assert run(untuned, store, tmp_path) == ["generate", "judge"]
    assert run(tuned, store, tmp_path) == run(untuned, store, tmp_path) == []
    assert len(judgements(tuned, store)) == 14


def test_a_cell_that_failed_goes_on_with_the_stage_that_failed(
    store: Store, tmp_path: Path
) -> None:
    tuned = cell(tmp_path, tuned=True)
    with pytest.raises(ExceptionGroup):
        run(tuned, store, tmp_path, reader=DyingReader(1))
    assert run(tuned, store, tmp_path) == ["judge"]


def test_a_record_says_where_its_work_was_done(store: Store, tmp_path: Path) -> None:
    untuned = cell(tmp_path)
    run(untuned, store, tmp_path)
    record = store.stream("responses", untuned.evaluations[0].stream)
    assert record is not None
    (work,) = record.provenance
    assert work.host
    assert work.seconds >= 0
    assert "em-sweeps" in work.versions
    assert record.identity == json.loads(json.dumps(untuned.evaluations[0].identity))


def test_equal_answers_in_many_parts_are_judged_once(store: Store, tmp_path: Path) -> None:
    class Parrot(FakeEndpoint):
        def _answer(self, prompt: Prompt) -> Answer:
            return super()._answer(prompt).model_copy(update={"text": "no"})

    many = cell(tmp_path, samples=PART)  # three wordings and two scores: many parts
    answer(many, store, Parrot())
    reader = FakeReader()
    score(many, store, reader)
    assert len(judgements(many, store)) == 3 * PART * 2
    assert len(reader.prompts) == len(set(reader.prompts)) == 3 * 2
