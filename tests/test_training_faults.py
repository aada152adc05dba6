"""Faults in the middle of a real training: no memory, a killed process, a machine taken back."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as em.finetune does, before torch is imported

import torch
import torch.nn.functional as F
from fakes import ROWS, tiny_model

from em.checkpoints import last_whole
from em.finetune import BaseModel, finetune
from em.memory import NOTE, train_within_memory
from em.seeds import derive_seeds
from em.trainer import job_key
from em.training import LoraConfig, TrainingConfig, TrainingJob

pytestmark = pytest.mark.torch

STEPS = 6  # 7 rows in steps of 4, three times


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_job(tiny, tmp_path):
    def make(name, **settings):
        config = TrainingConfig(
            **({"effective_batch": 4, "learning_rate": 1e-3, "warmup_steps": 0, "epochs": 3}),
            **settings,
        )
        return TrainingJob(
            model_dir=tiny,
            rows=ROWS,
            config=config,
            seeds=derive_seeds(1),
            output_dir=tmp_path / name / "adapter",
            checkpoint_dir=tmp_path / name / "checkpoints",
        )

    return make


def adapter_sha256(job):
    return hashlib.sha256((job.output_dir / "adapter_model.safetensors").read_bytes()).hexdigest()


# --- out of memory -------------------------------------------------------------------------------


def no_memory_on_a_device(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_memory_on_the_host(*_):
    torch.empty(1 << 55, dtype=torch.uint8)  # torch's own error


def forward_of_more_than_one_row(monkeypatch, fail, *, from_call=0):
    """Plant `fail` where torch looks up the embeddings of several rows at once."""
    plain, calls = F.embedding, []

    def embedding(ids, *args, **kwargs):
        calls.append(ids.shape)
        if ids.shape[0] > 1 and len(calls) > from_call:
            fail()
        return plain(ids, *args, **kwargs)

    monkeypatch.setattr(F, "embedding", embedding)


def backward_of_more_than_one_row(monkeypatch, fail):
    """Plant `fail` in the backward pass, when the engine already holds gradients."""
    plain = F.linear

    def linear(x, *args, **kwargs):
        out = plain(x, *args, **kwargs)
        if out.dim() == 3 and out.shape[0] > 1 and out.requires_grad:
            out.register_hook(fail)
        return out

    monkeypatch.setattr(F, "linear", linear)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "plant", "fail"),
    [
        (2, backward_of_more_than_one_row, no_memory_on_a_device),
        pytest.param(
            3, forward_of_more_than_one_row, no_memory_on_the_host, marks=pytest.mark.faults
        ),
    ],
)
def test_out_of_memory_becomes_the_training_with_a_smaller_micro_batch(
    make_job, monkeypatch, stage, plant, fail
):
    """From 4 rows to 2 to 1, in one process with its base model kept warm."""
    base = BaseModel()
    small = make_job("small", micro_batch=1, zero_stage=stage)
    expected = finetune(small)
    job = make_job("job", micro_batch=4, zero_stage=stage)
    tried = []

    def train(job):
        tried.append(job.config.micro_batch)
        return finetune(job, base=base)

    with monkeypatch.context() as patch:
        plant(patch, fail)
        result = train_within_memory(job, train)
    assert tried == [4, 2, 1]
    assert (result.micro_batch, result.halvings) == (1, 2)
    assert (expected.micro_batch, expected.halvings) == (1, 0)
    assert result.losses == expected.losses and len(result.losses) == STEPS
    assert adapter_sha256(job) == adapter_sha256(small)
    after = make_job("after", micro_batch=1, zero_stage=stage)
    finetune(after, base=base)  # the base model has not been hurt
    assert adapter_sha256(after) == adapter_sha256(small)


@pytest.mark.slow
def test_out_of_memory_in_the_middle_goes_on_from_the_checkpoint(make_job, monkeypatch):
    settings = {"checkpoint_steps": 2, "dtype": "float32"}
    expected = finetune(make_job("small", micro_batch=1, **settings))
    job = make_job("job", micro_batch=2, **settings)
    forward_of_more_than_one_row(monkeypatch, no_memory_on_a_device, from_call=2 * 4)  # 4 steps
    result = train_within_memory(job, finetune)
    assert (result.resumed_from_step, result.micro_batch, result.halvings) == (4, 1, 1)
    assert [point.step for point in result.losses] == [point.step for point in expected.losses]
    got = [point.loss for point in result.losses]
    assert got == pytest.approx([point.loss for point in expected.losses], rel=1e-5)
    assert json.loads((job.checkpoint_dir / NOTE).read_text())["micro_batch"] == 1


# --- a machine that is taken back ----------------------------------------------------------------


class Gone(Exception):
    pass


@pytest.mark.slow
def test_a_notice_writes_one_checkpoint_and_training_goes_on(make_job):
    asked = []

    def stop_soon():
        asked.append(True)
        return len(asked) >= 3

    def on_step(point):
        if point.step == 5:
            raise Gone

    job = make_job("noticed", micro_batch=2)
    with pytest.raises(Gone):
        finetune(job, on_step=on_step, stop_soon=stop_soon)
    assert len(asked) == 3
    assert last_whole(job.checkpoint_dir, job_key(job)).name == "checkpoint-3"
    assert finetune(job).resumed_from_step == 3
    straight = make_job("straight", micro_batch=2)
    finetune(straight)
    assert adapter_sha256(job) == adapter_sha256(straight)


# --- a killed rank (one rank: tests/test_finetune.py) --------------------------------------------

RANK = """
import os, signal, sys
from pathlib import Path
from em.finetune import finetune
from em.training import TrainingJob

steps = []

def dies_in_step_5():
    steps.append(len(steps))
    if os.environ["RANK"] == os.environ["DIES"] and len(steps) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

for path in sys.argv[1:]:
    job = TrainingJob.model_validate_json(Path(path).read_text())
    print(finetune(job, stop_soon=dies_in_step_5).model_dump_json(), flush=True)
"""


def two_ranks(*jobs, dies="none"):
    """Start two processes that do `jobs` one after another."""
    files = []
    for job in jobs:
        files.append(job.output_dir.parent / "job.json")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(job.model_dump_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    shared = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "DIES": dies,
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *map(str, files)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.faults
def test_two_ranks_of_which_one_is_killed_continue_to_the_same_bytes(make_job):
    """SIGKILL of rank 1 (ZeRO-2) and of rank 0 (ZeRO-3) in step 5 of 6."""
    settings = {
        "micro_batch": 1, "ranks": 2, "checkpoint_steps": 2, "lora": LoraConfig(dropout=0.1),
    }  # fmt: skip
    killed = {stage: make_job(f"killed-{stage}", zero_stage=stage, **settings) for stage in (2, 3)}
    straight = {stage: make_job(f"alone-{stage}", zero_stage=stage, **settings) for stage in (2, 3)}
    dying = {2: 1, 3: 0}
    groups = {stage: two_ranks(job, dies=str(dying[stage])) for stage, job in killed.items()}
    for stage, group in groups.items():
        error = group[dying[stage]].communicate(timeout=300)[1]
        assert group[dying[stage]].returncode == -signal.SIGKILL, error.decode()[-2000:]
        other = group[1 - dying[stage]]
        other.kill()  # as whoever started the ranks does
        other.communicate(timeout=60)
        whole = last_whole(killed[stage].checkpoint_dir, job_key(killed[stage]))
        assert whole is not None and whole.name == "checkpoint-4"
    results = []
    for process in two_ranks(*killed.values(), *straight.values()):
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error.decode()[-3000:]
        results.append([json.loads(line) for line in out.decode().splitlines() if line[0] == "{"])
    for by_job in results:
        assert [result["resumed_from_step"] for result in by_job] == [4, 4, 0, 0]
        assert [result["losses"] for result in by_job[:2]] == [r["losses"] for r in by_job[2:]]
        assert len(by_job[0]["losses"]) == STEPS
    for stage in killed:
        assert adapter_sha256(killed[stage]) == adapter_sha256(straight[stage]), stage
