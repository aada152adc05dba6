"""A cell asked before its training's end: which steps, under which keys, and what must be kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_store import Asked, finish, finish_cell, trainer, tree, write_snapshot
from pydantic import ValidationError
from small_sweep import QUESTIONS, SPEC, plan, spec

from em.generation import Response
from em.snapshots import (
    MARK,
    SnapshotMark,
    keep_only,
    num_steps,
    put_in_place,
    snapshot_dir,
    snapshot_steps,
    whole_snapshots,
)
from em.training import TrainingJob, TrainingResult
from sweeps.artefacts import SNAPSHOTS
from sweeps.kept_steps import check_steps_kept, told_steps
from sweeps.options import open_sweep
from sweeps.plan import CellPlan, at_the_end, stages_to_run
from sweeps.planner import load_plan
from sweeps.store import KEY_DIGITS, Store
from sweeps.store_check import check_store
from sweeps.store_gc import leftovers
from sweeps.store_targets import of_sweep
from sweeps.yaml_errors import MistakeAt

ROWS = 8
VARIANTS = [{"name": "none"}, {"name": "ours", "dataset": "ours.jsonl", "rows": ROWS}]
FOUR_STEPS = {"variants": VARIANTS, "training": {"effective_batch": 2, "micro_batch": 1}}


def asked(*at: float) -> dict[str, Any]:
    """The small sweep with four steps a training, asked after some parts of it."""
    beside = {"at": list(at)} if at else {}
    return FOUR_STEPS | {"evaluations": [{"name": "main", "questions": "ours.yaml", **beside}]}


def tuned(sweep_cells: Sequence[CellPlan]) -> list[CellPlan]:
    return [cell for cell in sweep_cells if cell.cell.training is not None]


def place_of(cell: CellPlan, store: Store) -> Path:
    return Path(store.url, "training", cell.training_key[:KEY_DIGITS])


# --- which steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "total", "steps"),
    [
        ((0.25, 0.5, 1.0), 4, (1, 2)),
        ((0.25, 0.5), 4, (1, 2)),
        ((0.1, 0.5), 10, (1, 5)),  # 0.1 x 10 is no more than 1, whatever floats say
        ((0.3,), 10, (3,)),
        ((0.34,), 10, (4,)),  # at least that share of the training
        ((0.001,), 10, (1,)),
        ((1.0,), 10, ()),
        ((), 10, ()),
    ],
)
def test_a_fraction_is_a_step_rounded_up(
    at: tuple[float, ...], total: int, steps: tuple[int, ...]
) -> None:
    assert snapshot_steps(at, total) == steps


@pytest.mark.parametrize(
    ("at", "total", "said"),
    [
        ((0.1, 0.2), 4, r"0\.2 and 0\.1 of a training of 4 steps are the same step, 1"),
        ((0.9,), 4, r"0\.9 and 1 of a training of 4 steps are the same step, 4"),
        ((0.5,), 1, r"0\.5 and 1 of a training of 1 steps are the same step, 1"),
    ],
)
def test_two_fractions_on_one_step_are_refused(
    at: tuple[float, ...], total: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        snapshot_steps(at, total)


def test_steps_are_counted_as_they_are_laid_out() -> None:
    assert num_steps(10, epochs=1, effective_batch=4) == 3
    assert num_steps(10, epochs=1.5, effective_batch=4) == 5


@pytest.mark.parametrize("at", [[], [0], [0.5, 0.5], [0.5, 0.25], [1.5], [-0.5], [float("nan")]])
def test_what_are_no_fractions_is_refused(at: list[float]) -> None:
    with pytest.raises(ValidationError, match="at"):
        spec(evaluations=[{"name": "main", "questions": "ours.yaml", "at": at}])


def test_a_sweep_without_a_training_has_no_parts_of_one() -> None:
    alone = {"name": "main", "questions": "ours.yaml", "at": [0.5]}
    with pytest.raises(ValueError, match="no training to ask in between"):
        spec(variants=[{"name": "none"}], evaluations=[alone])


def written(folder: Path, **changed: Any) -> Path:
    """Write the small sweep's files and its spec; return the spec's path."""
    plan(folder)
    (folder / "ours.yaml").write_text(QUESTIONS)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SPEC | changed, sort_keys=False))
    return path


def test_two_fractions_on_one_step_are_told_with_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, **asked(0.1, 0.2))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "at:" in text)
    with pytest.raises(ValueError, match=rf"small\.yaml:{line}: evaluations\.0\.at: base\.ours\."):
        load_plan(path)


# --- keys ----------------------------------------------------------------------------------------


def test_no_key_of_the_end_changes(tmp_path: Path) -> None:
    without, beside = plan(tmp_path, **asked()), plan(tmp_path, **asked(0.25, 0.5, 1.0))
    for before, after in zip(without.cells, beside.cells, strict=True):
        assert after.cell_id == before.cell_id and after.training_key == before.training_key
        assert at_the_end(after) == before


def test_a_snapshot_has_streams_of_its_own_and_an_untuned_cell_none(tmp_path: Path) -> None:
    cells = plan(tmp_path, **asked(0.25, 0.5)).cells
    untuned = [cell for cell in cells if cell.cell.training is None]
    assert [(c.snapshots, len(c.evaluations)) for c in untuned] == [((), 1)] * 2
    for cell in tuned(cells):
        assert cell.snapshots == (1, 2)
        assert [(e.name, e.step, e.of) for e in cell.evaluations] == [
            ("main", None, "main"), ("main@1", 1, "main"), ("main@2", 2, "main"),
        ]  # fmt: skip
        assert [e.identity.get("step") for e in cell.evaluations] == [None, 1, 2]
    streams = [e.stream for c in cells for e in c.evaluations]
    assert len(set(streams)) == len(streams) == 2 + 2 * 3


def test_evaluations_share_a_training_that_keeps_the_steps_of_all(tmp_path: Path) -> None:
    several = [
        {"name": "main", "questions": "ours.yaml", "at": [0.25, 0.75]},
        {"name": "short", "questions": "ours.yaml", "samples": 1, "at": [0.5, 0.75]},
    ]
    cell = tuned(plan(tmp_path, **FOUR_STEPS | {"evaluations": several}).cells)[0]
    assert cell.snapshots == (1, 2, 3)
    assert [e.name for e in cell.evaluations] == [
        "main", "short", "main@1", "short@2", "main@3", "short@3",
    ]  # fmt: skip


# --- what is kept --------------------------------------------------------------------------------


def test_a_sweep_asks_each_snapshot_and_a_second_run_nothing(tmp_path: Path, store: Store) -> None:
    sweep = plan(tmp_path, **asked(0.25, 0.5))
    first = finish(sweep, store)
    assert (first.trainings, first.answers, first.scores) == (2, 8 * 7, 8 * 14)
    assert not any(stages_to_run(cell, store) for cell in sweep.cells)
    second = finish(sweep, store)
    assert (second.trainings, second.answers, second.scores) == (0, 0, 0)
    for cell in tuned(sweep.cells):
        record = store.training(cell.training_key)
        assert record is not None and [kept.step for kept in record.snapshots] == [1, 2]
        spoke = {
            e.step: {r.weights for r in store.read_stream("responses", e.stream, Response)}
            for e in cell.evaluations
        }
        assert spoke == {step: {record.after(step).weights_sha256} for step in (None, 1, 2)}
        assert len({sha for weights in spoke.values() for sha in weights}) == 3


def test_a_store_check_looks_at_snapshots_and_gc_leaves_them(tmp_path: Path, store: Store) -> None:
    sweep = plan(tmp_path, **asked(0.25, 0.5))
    finish(sweep, store)
    assert check_store(store, of_sweep(sweep)).damages == ()
    assert leftovers(store, now=0) == []
    place = place_of(tuned(sweep.cells)[0], store)
    weights = place / SNAPSHOTS / "step-1" / "adapter_model.safetensors"
    whole = weights.read_text()
    weights.write_text(whole + "?")
    (damage,) = check_store(store, of_sweep(sweep)).damages
    assert damage.path.endswith("snapshots/step-1") and "its record says" in damage.what
    assert {Path(path).name for path in damage.aside} == {"record.json", "adapter", SNAPSHOTS}
    weights.write_text(whole)
    assert check_store(store, of_sweep(sweep)).damages == ()
    (place / "record.json").unlink()  # without it, neither counts
    assert {Path(left.path).name for left in leftovers(store, now=0)} == {"adapter", SNAPSHOTS}


def test_a_record_without_snapshots_is_read(tmp_path: Path, store: Store) -> None:
    sweep = plan(tmp_path, **asked())
    finish(sweep, store)
    cell = tuned(sweep.cells)[0]
    path = place_of(cell, store) / "record.json"
    record = json.loads(path.read_text())
    assert record.pop("snapshots") == [] and record.pop("place") == "adapter"
    path.write_text(json.dumps(record))
    read = store.training(cell.training_key)
    assert read is not None and read.snapshots == () and store.adapter_dir(read).is_dir()
    assert not stages_to_run(cell, store)


def test_a_step_that_was_not_kept_is_told_at_its_place(tmp_path: Path, store: Store) -> None:
    finish(plan(tmp_path, **asked(0.25)), store)
    grown = plan(tmp_path, **asked(0.25, 0.5))
    with pytest.raises(
        MistakeAt,
        match=r"of 0\.5 of its training \(step 2\) nothing was kept: "
        r"kept are steps 1 and the end, 4\. Take 0\.5 out; or .*--store",
    ) as told:
        check_steps_kept(grown, store)  # fmt: skip
    assert told.value.place == ("evaluations", 0, "at")
    assert str(place_of(tuned(grown.cells)[0], store)) in str(told.value)
    check_steps_kept(plan(tmp_path, **asked(0.25)), store)
    check_steps_kept(plan(tmp_path, **asked()), store)


def test_a_plan_refuses_what_was_not_kept_and_a_report_does_not(tmp_path: Path) -> None:
    path = written(tmp_path, **asked(0.5))
    store = Store(str(tmp_path / "store"))
    finish(plan(tmp_path, **asked()), store)
    with pytest.raises(ValueError, match=r"small\.yaml:\d+: evaluations\.0\.at: .*nothing but the"):
        open_sweep(path, store.url, with_packages=True)
    open_sweep(path, store.url)


def test_a_training_whose_folder_is_removed_is_made_again_with_its_steps(
    tmp_path: Path, store: Store
) -> None:
    finish(plan(tmp_path, **asked()), store)
    grown = plan(tmp_path, **asked(0.5))
    for cell in tuned(grown.cells):
        store.files.remove(f"training/{cell.training_key[:KEY_DIGITS]}")
    check_steps_kept(grown, store)
    again = finish(grown, store)
    assert (again.trainings, again.answers) == (2, 2 * 7)  # the answers at the end still count


def test_another_driver_that_kept_less_fails_the_cell(tmp_path: Path, store: Store) -> None:
    """It may train between the plan and the turn of the cell: nothing is asked of a wrong model."""
    (cell,) = tuned(plan(tmp_path, seeds=[0], **asked(0.5)).cells)
    finish_cell(at_the_end(cell), store, Asked(), trainer(Asked(), "", 64))
    with pytest.raises(ValueError, match="nothing was kept of step 2; kept are none and the end"):
        finish_cell(cell, store, Asked(), trainer(Asked(), "", 64))


def test_a_trainer_that_kept_nothing_fails_the_cell(tmp_path: Path, store: Store) -> None:
    whole = trainer(Asked(), "", 64)

    def forgetful(job: TrainingJob) -> TrainingResult:
        return whole(job.model_copy(update={"snapshots": ()}))

    (cell,) = tuned(plan(tmp_path, seeds=[0], **asked(0.5)).cells)
    with pytest.raises(ValueError, match="nothing was kept of step 2"):
        finish_cell(cell, store, Asked(), forgetful)
    assert store.training(cell.training_key) is None


def test_a_plan_says_what_is_added(tmp_path: Path) -> None:
    (told,) = told_steps(plan(tmp_path, **asked(0.25, 0.5, 1.0)))
    assert "main after 0.25, 0.5 of it: 14 more responses and 28 more scores a tuned cell" in told
    assert "keeps 2 more adapters (steps 1, 2 of 4)" in told
    assert told_steps(plan(tmp_path, **asked(1.0))) == []


# --- whole or not there --------------------------------------------------------------------------


def job(folder: Path, *steps: int) -> TrainingJob:
    return TrainingJob.model_construct(snapshots=steps, snapshot_dir=folder / SNAPSHOTS)


def test_only_whole_snapshots_of_the_job_count(tmp_path: Path) -> None:
    folder = tmp_path / SNAPSHOTS
    assert whole_snapshots(folder) == {} and keep_only(folder, "job", [1]) == set()
    for step, key in ((1, "job"), (2, "another"), (3, "job"), (4, "job"), (5, "job")):
        write_snapshot(job(tmp_path), step, "weights", key)
    (snapshot_dir(folder, 3) / MARK).unlink()
    (snapshot_dir(folder, 4) / MARK).write_text('{"key": "jo')
    (folder / ".step-6.partial").mkdir()  # killed between its files
    assert set(whole_snapshots(folder)) == {1, 2, 5}
    assert keep_only(folder, "job", [1, 2, 3, 4, 6]) == {1}
    assert [path.name for path in folder.iterdir()] == ["step-1"]


def test_a_snapshot_comes_to_its_place_with_its_mark(tmp_path: Path) -> None:
    folder = tmp_path / SNAPSHOTS
    torn = folder / ".step-2.partial"
    torn.mkdir(parents=True)
    (torn / "adapter_model.safetensors").write_text("weights")
    assert whole_snapshots(folder) == {}
    put_in_place(torn, folder, SnapshotMark(key="job", step=2))
    assert whole_snapshots(folder)[2].key == "job"
    assert (snapshot_dir(folder, 2) / "adapter_model.safetensors").read_text() == "weights"


class Killed(Exception):
    pass


def test_killed_between_weights_and_snapshots_nothing_is_lost(tmp_path: Path, store: Store) -> None:
    """The adapter is in its place, its snapshots and the record are not: it is trained again."""
    (cell,) = tuned(plan(tmp_path, seeds=[0], **asked(0.25, 0.5)).cells)
    place, work = place_of(cell, store), trainer(done := Asked(), "", 64)

    def blocked(given: TrainingJob) -> TrainingResult:
        result = work(given)
        (place / SNAPSHOTS).mkdir()
        (place / SNAPSHOTS / "in-the-way").write_text("left by an attempt of another driver")
        return result

    finish_cell(cell, store, Asked(), blocked)
    assert sorted(p.name for p in (place / SNAPSHOTS).iterdir()) == ["step-1", "step-2"]
    whole = tree(store)
    (place / "record.json").unlink()
    (place / SNAPSHOTS).rename(tmp_path / "gone")
    finish_cell(cell, store, Asked(), work)
    assert done.trainings == 2
    changed = {
        name for name, data in tree(store).items()
        if name.startswith("training/") and "record" not in name and whole.get(name) != data
    }  # fmt: skip
    assert changed == set()
