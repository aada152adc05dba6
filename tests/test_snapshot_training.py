"""Real trainings that keep snapshots: they bear on nothing, and are the model of their step."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import ROWS, tiny_model

from em.snapshots import MARK, snapshot_dir, whole_snapshots

pytestmark = [pytest.mark.torch, pytest.mark.slow]

STEPS = 6  # two a time through seven rows, in batches of four
KEPT = (2, 3)


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Callable[..., None]:
    def on_step(point) -> None:  # type: ignore[no-untyped-def]
        if point.step == step:
            raise Interrupted

    return on_step


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_job(tiny: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    from em.seeds import derive_seeds
    from em.training import LoraConfig, TrainingConfig, TrainingJob

    def make(name: str, *kept: int, **settings: object):  # type: ignore[no-untyped-def]
        common = {
            "effective_batch": 4, "micro_batch": 2, "learning_rate": 1e-3, "warmup_steps": 0,
            "epochs": 3, "checkpoint_steps": 1, "lora": LoraConfig(dropout=0.1),
        }  # fmt: skip
        return TrainingJob(
            model_dir=tiny, rows=ROWS, config=TrainingConfig(**(common | settings)),
            seeds=derive_seeds(1), output_dir=tmp_path / name / "adapter",
            checkpoint_dir=tmp_path / name / "checkpoints",
            snapshots=kept, snapshot_dir=tmp_path / name / "snapshots",
        )  # fmt: skip

    return make


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def kept_weights(job) -> dict[int, dict[str, bytes]]:  # type: ignore[no-untyped-def]
    return {
        step: weights(snapshot_dir(job.snapshot_dir, step))
        for step in whole_snapshots(job.snapshot_dir)
    }


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("lora", 2),
        pytest.param("lora", 3, marks=pytest.mark.faults),
        pytest.param("full", 3, marks=pytest.mark.faults),
    ],
)
def test_snapshots_bear_on_nothing_and_survive_an_interruption(
    make_job: Callable[..., object], method: str, stage: int
) -> None:
    from em.finetune import BaseModel, finetune

    base, settings = BaseModel(), {"method": method, "zero_stage": stage}
    plain = make_job("plain", **settings)
    without = finetune(plain, base=base)
    kept = make_job("kept", *KEPT, **settings)
    result = finetune(kept, base=base)
    assert result.losses == without.losses and result.canaries == without.canaries
    assert weights(kept.output_dir) == weights(plain.output_dir)
    whole = kept_weights(kept)
    assert set(whole) == set(KEPT) and whole[2] != whole[3] != weights(plain.output_dir)

    stopped = make_job("stopped", *KEPT, **settings)
    with pytest.raises(Interrupted):  # after step 5, whose checkpoint is not written any more
        finetune(stopped, base=base, on_step=stop_at(5))
    torn = stopped.snapshot_dir / ".step-3.partial"
    torn.mkdir()
    continued = finetune(stopped, base=base)
    assert continued.resumed_from_step == 4 and not torn.exists()
    assert kept_weights(stopped) == whole
    assert weights(stopped.output_dir) == weights(plain.output_dir)
    marks, others = (whole_snapshots(job.snapshot_dir) for job in (kept, stopped))
    assert marks == others and marks[2].canaries != marks[3].canaries != result.canaries


@pytest.mark.faults  # it is slow, and plants none
def test_two_ranks_keep_one_snapshot_between_them(make_job: Callable[..., object]) -> None:
    """Two processes on gloo, without Ray: ZeRO-2, then ZeRO-3, each without snapshots and with."""
    jobs = {
        (stage, kept): make_job(f"two-{stage}-{len(kept)}", *kept, zero_stage=stage, ranks=2)
        for stage in (2, 3)
        for kept in ((), KEPT)
    }
    files = []
    for job in jobs.values():
        file = job.output_dir.parent / "job.json"
        file.parent.mkdir()
        file.write_text(job.model_dump_json())
        files.append(str(file))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "em.finetune", *files],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in ranks:
        error = process.communicate(timeout=600)[1]
        assert process.returncode == 0, error.decode()[-3000:]
    for stage in (2, 3):
        without, kept = jobs[stage, ()], jobs[stage, KEPT]
        assert weights(kept.output_dir) == weights(without.output_dir)
        whole = kept_weights(kept)
        assert set(whole) == set(KEPT) and whole[2] != whole[3] != weights(kept.output_dir)
        assert [path.name for path in sorted(kept.snapshot_dir.iterdir())] == ["step-2", "step-3"]


def test_where_a_snapshot_is_lost_training_goes_on_from_before_it(
    make_job: Callable[..., object],
) -> None:
    from em.finetune import BaseModel, finetune

    base = BaseModel()
    whole = make_job("whole", *KEPT)
    finetune(whole, base=base)
    stopped = make_job("stopped", *KEPT)
    with pytest.raises(Interrupted):
        finetune(stopped, base=base, on_step=stop_at(5))
    (snapshot_dir(stopped.snapshot_dir, 3) / MARK).unlink()
    # The one checkpoint that there is, of step 4, is of no use.
    assert finetune(stopped, base=base).resumed_from_step == 0
    assert kept_weights(stopped) == kept_weights(whole)
    assert weights(stopped.output_dir) == weights(whole.output_dir)


def test_a_snapshot_is_the_model_at_that_step(make_job: Callable[..., object]) -> None:
    """A constant learning rate does not know the end: step 4 of 6 is the end of a training of 4."""
    from em.finetune import finetune

    longer = make_job("longer", 4, schedule="constant")
    finetune(longer)
    shorter = make_job("shorter", schedule="constant", epochs=2)
    result = finetune(shorter)
    snapshot = snapshot_dir(longer.snapshot_dir, 4)
    assert result.steps == 4 and weights(snapshot) == weights(shorter.output_dir)
    assert whole_snapshots(longer.snapshot_dir)[4].canaries == result.canaries
    settings = "adapter_config.json"
    assert (snapshot / settings).read_bytes() == (shorter.output_dir / settings).read_bytes()
    assert "after step 4" in (snapshot / "README.md").read_text()
    shutil.rmtree(snapshot)


def test_the_first_steps_of_a_warm_up_may_be_those_of_the_base(
    make_job: Callable[..., object],
) -> None:
    from em.finetune import finetune

    job = make_job("warm", 1, warmup_steps=3)
    finetune(job)  # the first step has the learning rate 0: its adapter does nothing yet
    mark = whole_snapshots(job.snapshot_dir)[1]
    assert all(canary.tuned == canary.base for canary in mark.canaries)
