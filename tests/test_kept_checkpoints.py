"""A training on a store in a bucket goes on, on another machine, from its last checkpoint there."""

from pathlib import Path

import pytest
from finished_store import write_snapshot
from small_sweep import plan

from em.catalogue import CACHE_ENV
from em.checkpoints import last_whole, mark_whole, remove_older, step_of
from em.snapshots import whole_snapshots
from em.training import LossPoint, TrainingConfig, TrainingJob, TrainingResult
from sweeps.kept_checkpoints import CheckpointKeeper
from sweeps.leases import Holder
from sweeps.plan import CellPlan
from sweeps.stages import train_stage
from sweeps.store import Store
from sweeps.store_gc import leftovers

JOB_KEY = "key of the job"
STEPS = 6


class Killed(Exception):
    """The machine is lost here."""


def trainer(store: Store, plan: CellPlan, driver: str, *, dies_after: int = STEPS + 1):  # type: ignore[no-untyped-def]
    """A trainer that writes a checkpoint after every second step, and may be killed."""

    def train(job: TrainingJob) -> TrainingResult:
        folder = job.checkpoint_dir
        keeper = CheckpointKeeper(store, plan.training_key, driver, folder, job.config)
        found = last_whole(folder, JOB_KEY)
        begun = step_of(found) if found else 0
        if found:
            assert (found / "deep" / "state.pt").read_text() == f"state {begun}"
        for step in range(begun + 1, STEPS + 1):
            if step > dies_after:
                raise Killed
            keeper.on_step(LossPoint(step=step, loss=1.0, learning_rate=1.0))
            if step in job.snapshots and step not in whole_snapshots(job.snapshot_dir):  # type: ignore[arg-type]
                write_snapshot(job, step, f"weights of step {step} by {driver}")
            if step % 2 == 0:
                latest = folder / f"checkpoint-{step}"
                (latest / "deep").mkdir(parents=True)
                (latest / "deep" / "state.pt").write_text(f"state {step}")
                mark_whole(latest, JOB_KEY)
                remove_older(latest)
        job.output_dir.mkdir()
        (job.output_dir / "adapter.safetensors").write_text("weights")
        return TrainingResult(
            steps=STEPS, losses=(), num_rows=1, num_tokens=1, num_trained_tokens=1,
            num_cut_rows=0, seconds=1.0, resumed_from_step=begun,
        )  # fmt: skip

    return train


@pytest.fixture
def tuned(tmp_path: Path) -> CellPlan:
    return next(cell for cell in plan(tmp_path).cells if cell.cell.training is not None)


class World:
    """One bucket, and machines whose disks are their own."""

    def __init__(self, url: str, tuned: CellPlan, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.store, self.tuned, self._folder, self._patch = Store(url), tuned, folder, patch

    def train(self, machine: str, driver: str, *, dies_after: int = STEPS + 1) -> int:
        """Train on a machine; return the step that it began after."""
        self._patch.setenv(CACHE_ENV, str(self._folder / machine))
        work = trainer(self.store, self.tuned, driver, dies_after=dies_after)
        record = train_stage(
            self.tuned, self.store, work, model_dir=Path("m"), rows=(), holder=Holder(driver, "s")
        )
        return record.result.resumed_from_step

    def killed(self, machine: str, driver: str, after: int) -> None:
        with pytest.raises(Killed):
            self.train(machine, driver, dies_after=after)

    def files(self) -> list[str]:
        place = f"training/{self.tuned.training_key[:32]}/"
        return sorted(path.removeprefix(place) for path in self.store.files.sizes("training"))


@pytest.fixture
def world(
    bucket_url: str, tuned: CellPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    return World(bucket_url, tuned, tmp_path / "machines", monkeypatch)


def test_another_machine_goes_on_and_nothing_is_left(world: World) -> None:
    world.killed("one", "a", after=5)
    assert world.files() == [
        f"attempt-a/{name}"
        for name in ("checkpoint-4/deep/state.pt", "checkpoint-4/whole.json", "checkpoint.json")
    ]
    (left,) = leftovers(world.store, now=0.0)
    assert "from its last checkpoint" in left.why
    assert world.train("two", "b") == 4
    assert world.files() == ["adapter/adapter.safetensors", "record.json"]


@pytest.fixture
def asked_before(world: World) -> World:
    """The same with a training whose steps 2 and 5 are kept, too."""
    world.tuned = world.tuned.model_copy(update={"snapshots": (2, 5)})
    return world


def test_a_checkpoint_has_the_snapshots_of_before_it_beside_it(asked_before: World) -> None:
    asked_before.killed("one", "a", after=5)
    kept = [name for name in asked_before.files() if "snapshots" in name]
    assert kept == [
        f"attempt-a/snapshots/step-2/{name}"
        for name in ("adapter_model.safetensors", "snapshot.json")
    ]
    assert asked_before.train("two", "b") == 4
    assert asked_before.files() == [
        "adapter/adapter.safetensors",
        "record.json",
        *(
            f"snapshots/step-{step}/{name}"
            for step in (2, 5)
            for name in ("adapter_model.safetensors", "snapshot.json")
        ),
    ]
    place = f"training/{asked_before.tuned.training_key[:32]}/snapshots"
    read = asked_before.store.files.read
    assert read(f"{place}/step-2/adapter_model.safetensors") == b"weights of step 2 by a"
    assert read(f"{place}/step-5/adapter_model.safetensors") == b"weights of step 5 by b"


def test_weights_of_a_step_are_fetched_as_those_of_the_end_are(asked_before: World) -> None:
    asked_before.train("one", "a")
    record = asked_before.store.training(asked_before.tuned.training_key)
    assert record is not None
    early = record.after(2)
    assert early.weights_sha256 != record.weights_sha256
    for store_dir in (
        asked_before.store.adapter_dir(early),
        Store.adapter_from(asked_before.store.adapter_url(early), early.weights_sha256),
    ):
        weights = store_dir / "adapter_model.safetensors"
        assert weights.read_text() == "weights of step 2 by a"


def test_a_snapshot_that_is_torn_in_the_bucket_is_left_out(asked_before: World) -> None:
    """The trainer sees that it is not there, and goes back to before it."""
    asked_before.killed("one", "a", after=5)
    place = f"training/{asked_before.tuned.training_key[:32]}/attempt-a/snapshots/step-2"
    asked_before.store.files.write(f"{place}/adapter_model.safetensors", b"weig")
    with pytest.raises(ValueError, match="nothing was kept of step 2; kept are 5"):
        asked_before.train("two", "b")  # this stand-in does not look, and is found out


def test_the_latest_of_all_machines_counts(world: World) -> None:
    world.killed("one", "a", after=3)
    world.killed("two", "b", after=5)  # from 2 to 4
    assert world.train("one", "c") == 4


def test_a_machine_that_is_further_than_the_bucket_goes_on_from_its_own(world: World) -> None:
    world.killed("one", "a", after=4)  # the checkpoint of step 4 was written, and not yet sent
    assert [f for f in world.files() if f.endswith("state.pt")] == [
        "attempt-a/checkpoint-2/deep/state.pt"
    ]
    assert world.train("one", "b") == 4


@pytest.mark.parametrize("damage", ["torn", "gone", "note"])
def test_what_is_not_whole_in_the_bucket_is_not_gone_on_from(world: World, damage: str) -> None:
    world.killed("one", "a", after=5)
    place = f"training/{world.tuned.training_key[:32]}/attempt-a"
    if damage == "torn":
        world.store.files.write(f"{place}/checkpoint-4/deep/state.pt", b"stat")
    elif damage == "gone":
        world.store.files.remove(f"{place}/checkpoint-4")
    else:
        world.store.files.write(f"{place}/checkpoint.json", b"{")
    assert world.train("two", "b") == 0


def test_only_adapters_of_one_rank_are_kept(tmp_path: Path, bucket_url: str) -> None:
    store = Store(bucket_url)
    folder = tmp_path / "checkpoints"
    for config in (TrainingConfig(method="full"), TrainingConfig(ranks=2)):
        keeper = CheckpointKeeper(store, "a" * 64, "d", folder, config)
        (folder / "checkpoint-2").mkdir(parents=True, exist_ok=True)
        mark_whole(folder / "checkpoint-2", JOB_KEY)
        keeper.on_step(LossPoint(step=3, loss=1.0, learning_rate=1.0))
    assert store.files.sizes("training") == {}
