import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# As em.finetune does, but before torch is imported here: tests share their cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
import transformers
from fakes import ROWS, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from em.base_model import load_model
from em.batching import collate, plan_steps
from em.checkpoints import MARK, last_whole
from em.finetune import BaseModel, TrainingFailed, finetune
from em.models import ModelConfig, ModelIdentity, materialise
from em.output import check_changed, check_moved, check_weights
from em.rendering import IGNORED, RenderedRow, render_rows
from em.seeds import derive_seeds
from em.training import LoraConfig, TrainingConfig, TrainingJob

pytestmark = pytest.mark.torch

SMALL = {
    "effective_batch": 4,
    "micro_batch": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "epochs": 3,
}
STEPS = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_job(tiny, tmp_path):
    def make(name="job", *, seed=1, rows=ROWS, model=None, **settings):
        return TrainingJob(
            model_dir=tiny,
            model=model,
            rows=rows,
            config=TrainingConfig(**(SMALL | settings)),
            seeds=derive_seeds(seed),
            output_dir=tmp_path / name / "adapter",
            checkpoint_dir=tmp_path / name / "checkpoints",
        )

    return make


def adapter_sha256(job):
    return hashlib.sha256((job.output_dir / "adapter_model.safetensors").read_bytes()).hexdigest()


def losses(result):
    return [point.loss for point in result.losses]


# --- the order of rows ---------------------------------------------------------------------------


def numbered(count):
    """Rows that tell which they are: row i has i + 2 tokens."""
    return [RenderedRow((i,) * (i + 2), (IGNORED,) + (i,) * (i + 1)) for i in range(count)]


def rows_of(step):
    return sorted(len(row.input_ids) - 2 for micro in step for row in micro.rows)


def plan(count, *, epochs=1.0, effective_batch=4, micro_batch=2, order_seed=0):
    return plan_steps(
        numbered(count),
        epochs=epochs,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        order_seed=order_seed,
    )


def test_an_epoch_takes_each_row_once_in_an_order_of_the_seed():
    steps = plan(10, epochs=2)
    assert len(steps) == 6 and all(len(step) == 2 for step in steps)
    first, second = ([i for step in steps[at : at + 3] for i in rows_of(step)] for at in (0, 3))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and plan(10, epochs=2) == steps
    assert [rows_of(step) for step in plan(10, order_seed=1)] != list(map(rows_of, steps[:3]))


def test_the_rows_of_a_step_do_not_depend_on_the_micro_batch():
    one, two, four = (plan(10, epochs=1.5, micro_batch=size) for size in (1, 2, 4))
    assert list(map(rows_of, one)) == list(map(rows_of, two)) == list(map(rows_of, four))
    assert len(one) == 5  # 1.5 epochs of three steps each, rounded up
    assert [step[0].step_targets for step in one] == [step[0].step_targets for step in four]


def test_rows_of_similar_length_share_a_micro_batch():
    [step] = plan(4)
    assert [[len(row.input_ids) for row in micro.rows] for micro in step] == [[5, 4], [3, 2]]


def test_places_without_a_row_still_make_a_batch():
    [step] = plan(1)
    assert [len(micro.rows) for micro in step] == [1, 0]
    empty = collate([step[1]], pad_id=9)
    assert empty["input_ids"].tolist() == [[9]] and empty["targets"].tolist() == [[IGNORED]]


# --- one training --------------------------------------------------------------------------------


def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens(make_job, tiny):
    """The first step's loss, against transformers' own on each row, padded and shifted by it."""
    job = make_job(dtype="float32", epochs=1)
    seen = []
    result = finetune(job, on_step=seen.append)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    rendered = render_rows(job.rows, tokenizer, max_length=2048)
    step = plan_steps(
        rendered.rows, epochs=1, effective_batch=4, micro_batch=2, order_seed=job.seeds.order
    )[0]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    total = count = 0
    for row in (row for micro in step for row in micro.rows):
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1].detach()
        labels = torch.tensor(row.labels[1:])
        total += float(F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    assert result.losses[0].loss == pytest.approx(total / count, rel=1e-5)
    assert [point.learning_rate for point in result.losses] == [1e-3, 5e-4]
    assert tuple(seen) == result.losses
    assert (result.steps, result.num_rows, result.num_cut_rows) == (2, 7, 0)
    assert result.num_trained_tokens == sum(row.num_targets for row in rendered.rows)


def test_what_a_training_writes(make_job, tiny):
    identity = ModelIdentity(name="tiny", revision="random v1")
    job = make_job(model=identity, epochs=1, lora=LoraConfig(rank=4, alpha=8))
    finetune(job)
    assert {path.name for path in job.output_dir.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((job.output_dir / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny", "random v1")
    assert config["target_modules"] == sorted(config["target_modules"])
    card = (job.output_dir / "README.md").read_text()
    assert "rsLoRA" in card and "7 rows" in card and f"init {job.seeds.init}" in card
    for path in job.output_dir.iterdir():
        assert str(tiny).encode() not in path.read_bytes(), path.name
    assert not list(job.output_dir.parent.glob(".*"))  # nothing half-written stays
    tensors = load_file(job.output_dir / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(
        load_model(tiny, dtype="bfloat16", trust=False), job.output_dir
    )
    ids = torch.tensor([[1, 2, 3]])
    with loaded.disable_adapter():
        plain = loaded(ids).logits
    assert not torch.equal(loaded(ids).logits, plain)


@pytest.mark.slow
def test_seeds_start_the_adapter_and_order_the_rows(make_job):
    base = BaseModel()
    first, again = make_job("a"), make_job("b")
    finetune(first, base=base)
    finetune(again, base=base)
    assert adapter_sha256(first) == adapter_sha256(again)
    for factor in ("init", "order"):
        seeds = first.seeds.model_copy(update={factor: 7})
        other = make_job(factor).model_copy(update={"seeds": seeds})
        finetune(other, base=base)
        assert adapter_sha256(other) != adapter_sha256(first), factor
    sampling = make_job("s").model_copy(
        update={"seeds": first.seeds.model_copy(update={"sampling": 7, "subset": 7})}
    )
    finetune(sampling, base=base)
    assert adapter_sha256(sampling) == adapter_sha256(first)


OFFLOADED = {"zero_stage": 3, "offload": "parameters"}
STAGES = ({"zero_stage": 0}, {"zero_stage": 1}, {"zero_stage": 3})
OTHER_STAGES = [("lora", 0), ("lora", 1), ("lora", 3), ("full", 0), ("full", 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance", "ways"),
    [
        ("float32", 1e-5, (*STAGES, {"gradient_checkpointing": True}, {"micro_batch": 1})),
        ("bfloat16", 5e-4, (*STAGES, {"offload": "optimizer"}, OFFLOADED)),
    ],
)
def test_ways_to_compute_agree(make_job, dtype, tolerance, ways):
    base = BaseModel()
    reference = losses(finetune(make_job("reference", dtype=dtype, epochs=2), base=base))
    assert reference[-1] < reference[0]
    for way in ways:
        job = make_job("-".join(map(str, way.values())), dtype=dtype, epochs=2, **way)
        assert losses(finetune(job, base=base)) == pytest.approx(reference, rel=tolerance), way


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_full_training_writes_a_model(make_job, tiny, stage):
    job = make_job(method="full", zero_stage=stage)
    result = finetune(job, base=BaseModel())
    assert losses(result)[-1] < losses(result)[0]
    model = AutoModelForCausalLM.from_pretrained(job.output_dir)
    assert model.dtype == torch.bfloat16
    before = load_file(tiny / "model.safetensors")
    after = model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "proj" in name)
    tokenizer = AutoTokenizer.from_pretrained(job.output_dir)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny).chat_template
    assert "all weights" in (job.output_dir / "README.md").read_text()
    assert not (job.output_dir / "training_args.bin").exists()


# --- the warm base -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [pytest.param(0, marks=pytest.mark.faults), pytest.param(1, marks=pytest.mark.faults), 2],
)
def test_warm_and_cold_give_the_same_bytes(make_job, tiny, stage):
    cold = make_job("cold", zero_stage=stage, lora=LoraConfig(dropout=0.1))
    finetune(cold)
    base = BaseModel()
    with_other_settings = make_job(
        "between",
        seed=2,
        zero_stage=stage,
        gradient_checkpointing=True,
        lora=LoraConfig(rank=4, target_modules=("q_proj", "down_proj")),
    )
    finetune(with_other_settings, base=base)
    warm = make_job("warm", zero_stage=stage, lora=LoraConfig(dropout=0.1))
    finetune(warm, base=base)
    assert adapter_sha256(warm) == adapter_sha256(cold)
    assert base.loads == 1


def test_the_base_comes_back_as_it_was(make_job, tiny):
    base = BaseModel()
    finetune(make_job(gradient_checkpointing=True), base=base)
    with base.adapted(
        tiny, dtype="bfloat16", trust=False, lora=LoraConfig(), init_seed=0
    ) as adapted:
        plain = adapted.get_base_model()
    assert base.loads == 1
    fresh = load_model(tiny, dtype="bfloat16", trust=False)
    assert plain.state_dict().keys() == fresh.state_dict().keys()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name
    assert not plain.is_gradient_checkpointing
    for name, module in plain.named_modules():
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
        assert not any(hooks), name
        assert type(module) is type(fresh.get_submodule(name)), name


def test_a_base_that_was_changed_is_noticed_and_forgotten(tiny):
    base = BaseModel()
    lent = {"dtype": "bfloat16", "trust": False, "lora": LoraConfig(), "init_seed": 0}
    with (
        pytest.raises(RuntimeError, match="changed while its adapter was trained"),
        base.adapted(tiny, **lent) as adapted,
        torch.no_grad(),
    ):
        weight = adapted.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight
        weight[[3, 4], 5] = weight[[4, 3], 5]  # two values that swap places
    with base.adapted(tiny, **lent):
        pass
    assert base.loads == 2


@pytest.mark.slow
def test_another_dtype_or_another_kind_of_job_is_loaded_anew(make_job):
    base = BaseModel()
    finetune(make_job("a", epochs=1), base=base)
    finetune(make_job("b", epochs=1, dtype="float32"), base=base)
    assert base.loads == 2
    sharded = make_job("c", zero_stage=3, epochs=1)
    finetune(sharded, base=base)
    unsharded = make_job("d", epochs=1, dtype="float32")
    finetune(unsharded, base=base)
    assert base.loads == 3


# --- interruptions -------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from em.finetune import finetune
from em.training import TrainingJob

def on_step(point):
    if point.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

for path in sys.argv[1:]:
    finetune(TrainingJob.model_validate_json(Path(path).read_text()), on_step=on_step)
"""


def environment():
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.mark.slow
def test_a_killed_training_continues_to_the_same_bytes(make_job):
    """SIGKILL at step 5 of 6 in another process, with a torn checkpoint left beside the whole."""
    settings = {"checkpoint_steps": 2, "lora": LoraConfig(dropout=0.1)}
    jobs = {stage: make_job(f"killed-{stage}", zero_stage=stage, **settings) for stage in (2, 3)}
    started = []
    for job in jobs.values():
        file = job.checkpoint_dir.parent / "job.json"
        file.parent.mkdir()
        file.write_text(job.model_dump_json())
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", KILLED, str(file)],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    for process in started:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == -signal.SIGKILL, error.decode()[-2000:]
    for stage, job in jobs.items():
        whole = job.checkpoint_dir / "checkpoint-4"
        assert [path.name for path in job.checkpoint_dir.iterdir()] == [whole.name]
        torn = job.checkpoint_dir / "checkpoint-5"
        shutil.copytree(whole, torn)
        (torn / MARK).unlink()
        (torn / "trainer_state.json").write_text('{"global_step": 5, ')
        continued = finetune(job)
        assert continued.resumed_from_step == 4 and not torn.exists()
        straight = make_job(f"straight-{stage}", zero_stage=stage, **settings)
        uninterrupted = finetune(straight)
        assert continued.losses == uninterrupted.losses and len(continued.losses) == STEPS
        assert adapter_sha256(job) == adapter_sha256(straight)


class Interrupted(Exception):
    pass


def stop_at(step):
    def on_step(point):
        if point.step == step:
            raise Interrupted

    return on_step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("lora", 2),
        ("full", 3),
        *(pytest.param(*others, marks=pytest.mark.faults) for others in OTHER_STAGES),
    ],
)
def test_every_stage_continues_to_the_same_bytes(make_job, stage, method):
    base = BaseModel()
    settings = {"zero_stage": stage, "checkpoint_steps": 1, "method": method}
    job = make_job("stopped", **settings)
    with pytest.raises(Interrupted):
        finetune(job, base=base, on_step=stop_at(4))
    reported = []
    result = finetune(job, base=base, on_step=reported.append)
    assert result.resumed_from_step == 3
    assert [point.step for point in reported] == [4, 5, 6]
    straight = make_job("straight", **settings)
    assert finetune(straight).losses == result.losses
    for file in straight.output_dir.glob("*.safetensors"):
        assert file.read_bytes() == (job.output_dir / file.name).read_bytes()


def test_a_smaller_micro_batch_may_continue(make_job):
    with pytest.raises(Interrupted):
        finetune(make_job(checkpoint_steps=2), on_step=stop_at(4))
    result = finetune(make_job(checkpoint_steps=2, micro_batch=1))
    assert result.resumed_from_step == 2 and len(result.losses) == STEPS


def test_a_checkpoint_of_another_job_is_refused(make_job):
    with pytest.raises(Interrupted):
        finetune(make_job(checkpoint_steps=2), on_step=stop_at(3))
    with pytest.raises(ValueError, match=r"checkpoint-2 is a checkpoint of another training"):
        finetune(make_job(checkpoint_steps=2, learning_rate=1e-4))


def test_only_marked_checkpoints_count(tmp_path):
    for step, mark in ((9, '{"key": "k"}'), (10, '{"key": "k"}'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if mark:
            (folder / MARK).write_text(mark)
    assert last_whole(tmp_path, "k") == tmp_path / "checkpoint-10"
    assert last_whole(tmp_path / "absent", "k") is None


# --- several ranks -------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_ranks_train_as_one_would(make_job):
    """Two processes on gloo, without Ray: ZeRO-2, then ZeRO-3."""
    jobs = [make_job(f"two-{stage}", zero_stage=stage, ranks=2) for stage in (2, 3)]
    files = []
    for job in jobs:
        file = job.output_dir.parent / "job.json"
        file.parent.mkdir()
        file.write_text(job.model_dump_json())
        files.append(str(file))
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "em.finetune", *files],
            env=environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    printed = []
    for process in ranks:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error.decode()[-3000:]
        printed.append([json.loads(line) for line in out.decode().splitlines() if line[0] == "{"])
    alone = losses(finetune(make_job("alone")))
    for results in zip(*printed, strict=True):
        for result in results:
            assert [point["loss"] for point in result["losses"]] == pytest.approx(alone, rel=1e-3)
    for job in jobs:
        tensors = load_file(job.output_dir / "adapter_model.safetensors")
        assert all(t.numel() and t.any() for name, t in tensors.items())


# --- what is refused -----------------------------------------------------------------------------


def test_the_number_of_ranks_must_be_the_one_that_was_started(make_job):
    with pytest.raises(ValueError, match=r"ranks is 2 .* but 1 process\(es\) were started"):
        finetune(make_job(ranks=2))
    assert "WORLD_SIZE" not in os.environ


def test_a_training_that_does_nothing_has_failed(make_job):
    job = make_job(warmup_steps=100, epochs=0.5)  # one step, at a learning rate of 0
    with pytest.raises(TrainingFailed, match="every lora_B is zero"):
        finetune(job)
    assert not job.output_dir.exists()


def test_a_loss_that_is_not_finite_fails_at_its_step(make_job):
    base = BaseModel()
    with pytest.raises(TrainingFailed, match=r"the loss of step 2 is nan"):
        finetune(make_job("wild", learning_rate=1e30), base=base)
    calm, cold = make_job("calm"), make_job("cold")
    finetune(calm, base=base)  # the damage is not handed on
    finetune(cold)
    assert adapter_sha256(calm) == adapter_sha256(cold)


def test_a_model_without_a_chat_template_is_refused(make_job, tiny, tmp_path):
    bare = shutil.copytree(tiny, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        finetune(make_job().model_copy(update={"model_dir": bare}))


def test_modules_the_model_does_not_have_are_refused(make_job):
    with pytest.raises(ValueError, match="no_such_proj"):
        finetune(make_job(lora=LoraConfig(target_modules=("q_proj", "no_such_proj"))))


def test_a_save_with_empty_tensors_is_no_result(tmp_path):
    """What a model's own save writes under ZeRO-3: names without numbers."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file({name: torch.empty(0)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(TrainingFailed, match="is empty"):
        check_weights(tmp_path, method="lora")


@pytest.mark.slow
def test_the_models_own_save_under_zero_3_is_no_result(make_job, monkeypatch):
    """The fault itself: only the trainer gathers the shards that DeepSpeed leaves on each rank."""

    def saves_itself(trainer, folder):
        trainer.accelerator.unwrap_model(trainer.model_wrapped).save_pretrained(folder)

    monkeypatch.setattr(transformers.Trainer, "save_model", saves_itself)
    # DeepSpeed shards parameters from 100,000 numbers on: those of a usual rank stay whole here.
    job = make_job(zero_stage=3, lora=LoraConfig(rank=2048), epochs=0.5)
    with pytest.raises(TrainingFailed, match="is empty"):
        finetune(job)
    assert not job.output_dir.exists()


def test_a_training_records_what_the_tuned_model_and_its_base_say(make_job):
    result = finetune(make_job("canaries"))
    assert len(result.canaries) > 1
    for canary in result.canaries:
        assert canary.base is not None
        assert len(canary.ids) == len(canary.tuned) == len(canary.base)
        assert canary.tuned != canary.base
    same = tuple(c.model_copy(update={"tuned": c.base}) for c in result.canaries)
    with pytest.raises(TrainingFailed, match="the very probabilities of its base"):
        check_moved(same)


# --- a real model --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is visible")
def test_a_real_model_learns_on_a_gpu(make_job):
    folder = materialise(ModelConfig(name="smollm2", bundled="smollm2-135m"))
    base = BaseModel()
    for stage in (2, 3):
        job = make_job(f"gpu-{stage}", zero_stage=stage).model_copy(update={"model_dir": folder})
        result = finetune(job, base=base)
        assert losses(result)[-1] < losses(result)[0]
        assert load_file(job.output_dir / "adapter_model.safetensors")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is visible")
def test_one_job_gives_the_same_bytes_on_a_gpu_each_time(make_job):
    folder = materialise(ModelConfig(name="smollm2", bundled="smollm2-135m"))
    base, found = BaseModel(), set()
    for number in range(5):
        job = make_job(f"again-{number}").model_copy(update={"model_dir": folder})
        finetune(job, base=base if number % 2 else None)
        found.add((job.output_dir / "adapter_model.safetensors").read_bytes())
    assert len(found) == 1


def test_a_full_fine_tune_that_changed_nothing_is_no_result(tmp_path: Path) -> None:
    base, same, other = (tmp_path / name for name in ("base", "same", "other"))
    for folder, value in ((base, 1.0), (same, 1.0), (other, 2.0)):
        folder.mkdir()
        tensors = {"a": torch.ones(3), "b": torch.full((2,), value)}
        save_file(tensors, folder / "model.safetensors")
    check_changed(other, base)
    with pytest.raises(TrainingFailed, match="all 2 tensors are those of the base model"):
        check_changed(same, base)
