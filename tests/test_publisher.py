"""What W&B is told of a sweep: all of it, once, in order, whatever happens in between."""

import hashlib
import io
import math
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_wandb import FakeRuns, Kept
from finished_store import finish
from small_sweep import AlignedReader, plan

from em.training import LossPoint
from sweeps.artefacts import Attempt
from sweeps.attempts import Beat, statuses
from sweeps.cell_runs import MOST_OPEN
from sweeps.for_others import without_places
from sweeps.live import WRITE_EVERY_S, LiveLog, LiveTraining
from sweeps.plan import CellPlan
from sweeps.publisher import (
    CELLS_A_MINUTE,
    CELLS_AT_ONCE,
    LONGEST_S,
    TRY_AGAIN_S,
    Publisher,
)
from sweeps.report import make_report
from sweeps.sent import NotSent, identity_of, not_sent
from sweeps.store import Store
from sweeps.tracked_artifacts import Artifact, adapter_artifact, responses_artifact
from sweeps.tracked_cell import run_id, training_rows
from sweeps.tracked_report import estimate_rows


class World:
    """A small sweep, its store, W&B, and a clock that only the test moves."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.sweep = plan(folder, **changes)
        self.store = Store(str(folder / "store"))
        self.store.create()
        self.runs = FakeRuns()
        self.said: list[str] = []
        self.clock = 0.0
        self.slept = 0.0
        self.publisher = self.fresh()

    def fresh(self, runs: FakeRuns | None = None) -> Publisher:
        """Return the publisher of another process."""
        return Publisher(
            self.sweep, self.store, runs or self.runs, say=self.said.append,  # type: ignore[arg-type]
            now=lambda: self.clock, sleep=self._sleep,
        )  # fmt: skip

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.clock += seconds

    def finish(self) -> None:
        finish(self.sweep, self.store)

    def attempt(
        self, cell: int, state: Any, *, driver: str, stage: Any = "train", number: int = 1
    ) -> None:
        """Note an attempt at a cell, by its place in the sweep."""
        failed = {"error": f"at {self.folder}", "error_class": "X", "kind": "unknown"}
        told = Attempt(
            attempt=number, stage=stage, state=state, updated=time.time(), driver=driver,
            **(failed if state == "failed" else {}),
        )  # fmt: skip
        self.store.write_attempt("small", self.sweep.cells[cell].cell_id, told)

    def kept(self, number: int) -> Kept:
        return self.runs.kept[self.id_of(number)]

    def id_of(self, number: int) -> str:
        """The id of a cell's run."""
        return run_id(identity_of(self.store, "small"), self.sweep.cells[number])

    @property
    def tuned(self) -> int:
        return next(n for n, c in enumerate(self.sweep.cells) if c.cell.training is not None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def left(world: World) -> NotSent:
    """What W&B has not."""
    return not_sent(world.sweep, world.store, statuses(world.sweep, world.store))


def tell(world: World, cell: CellPlan, steps: range) -> None:
    """Have an attempt at a cell's training make these steps, and end."""
    log = LiveLog(world.store, cell.training_key)
    say(log, steps)
    log.close()


def say(log: LiveLog, steps: range) -> None:
    for step in steps:
        log.add(LossPoint(step=step, loss=1 / step, learning_rate=0.1))


def test_a_finished_sweep_is_sent_once(world: World) -> None:
    world.finish()
    assert world.publisher.look(last=True)
    runs = world.runs.cells()
    assert {kept.about.name for kept in runs} == {cell.cell_id for cell in world.sweep.cells}
    assert all(kept.ends == ["finished"] for kept in runs)
    assert world.runs.report().ends == ["finished"]
    before = {name: len(kept.rows) for name, kept in world.runs.kept.items()}
    opened = world.runs.calls["open"]
    assert world.publisher.look(last=True)
    assert world.fresh().look(last=True)
    assert {name: len(kept.rows) for name, kept in world.runs.kept.items()} == before
    assert world.runs.calls["open"] == opened


def test_nothing_is_sent_twice_where_the_note_of_it_is_lost(world: World) -> None:
    world.finish()
    world.publisher.look(last=True)
    rows = {kept.about.name: len(kept.rows) for kept in world.runs.cells()}
    uploads = {kept.about.name: len(kept.uploads) for kept in world.runs.cells()}
    for left in (world.folder / "store" / "sweeps" / "small").glob("tracking-*.json"):
        left.unlink()
    assert world.fresh().look(last=True)
    assert {kept.about.name: len(kept.rows) for kept in world.runs.cells()} == rows
    assert {kept.about.name: len(kept.uploads) for kept in world.runs.cells()} == uploads


def test_what_a_cell_is_told_with(world: World) -> None:
    world.finish()
    world.publisher.look(last=True)
    kept = world.kept(world.tuned)
    cell = world.sweep.cells[world.tuned]
    assert kept.about.config["condition"] == cell.cell.condition == "base · ours"
    assert kept.about.config["training_key"] == cell.training_key
    assert kept.about.config["lora_rank"] == 32
    assert kept.about.tags == ("base", "ours", "seed-0")
    (row,) = kept.rows
    assert row["eval/main/self/em_rate"] == 0.0  # the stand-in judge calls every answer aligned
    assert row["judge/main/self/unscored"] == 0
    assert len(kept.tables["answers"]) == cell.evaluations[0].num_responses
    assert kept.summary["cell/state"] == "finished"
    types = [upload.type for upload in kept.uploads]
    assert types == ["dataset", "model", "responses", "judgements"]
    assert [name.partition(".")[0] for name in kept.used] == ["dataset", "adapter", "responses"]


def test_what_cells_share_is_uploaded_once(tmp_path: Path) -> None:
    whole = [{"name": "ours", "dataset": "ours.jsonl"}]  # every row, so the same for each seed
    world = World(tmp_path, variants=whole)
    world.finish()
    world.publisher.look(last=True)
    uploads = [upload.type for kept in world.runs.cells() for upload in kept.uploads]
    assert uploads.count("dataset") == 1
    assert uploads.count("model") == 2
    assert all("dataset.ours:v1" in kept.used for kept in world.runs.cells())


def test_the_sweeps_run_is_made_from_all_judgements(world: World) -> None:
    world.finish()
    world.publisher.look(last=True)
    report = world.runs.report()
    assert [name.partition(".")[0] for name in report.used] == ["judgements"] * 4
    (content,) = report.uploads
    assert set(content.files) > {"report.html", "report.json", "cells.parquet", "values.json"}
    assert report.rows[0]["sweep/finished"] == 4
    assert len(report.tables["cells"]) == 4
    assert {row["condition"] for row in report.tables["conditions"]} == {
        "base · none", "base · ours"
    }  # fmt: skip
    assert "report" in report.media
    estimates = [row for row in report.rows if any(key.endswith("/seeds") for key in row)]
    (tuned,) = (row for row in estimates if "estimate/main/self/base/ours/seeds" in row)
    assert tuned["estimate/main/self/base/ours/seeds"] == tuned["estimate/seeds"] == 2
    assert tuned["estimate/main/self/base/ours/estimate"] == 0.0


def test_estimates_are_of_the_seeds_in_the_order_in_which_they_were_finished(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, seeds=[0, 1, 2, 3])
    cells = [cell for cell in world.sweep.cells if cell.cell.training is not None]
    order = [2, 0, 3, 1]
    misaligned = {2, 3}
    for seed in order:
        (cell,) = (cell for cell in cells if cell.cell.seed == seed)
        one = world.sweep.model_copy(update={"cells": (cell,)})
        reader = AlignedReader(10 if seed in misaligned else 90)
        finish(one, world.store, reader_of=lambda cell, reader=reader: reader)
    world.publisher.look(last=False)
    world.fresh().look(last=True)  # of another process: what W&B has is not sent again
    place = "estimate/main/self/base/ours"
    rows = [row for row in world.runs.report().rows if f"{place}/seeds" in row]
    assert [(row["estimate/seeds"], row[f"{place}/estimate"]) for row in rows] == [
        (2, pytest.approx(1 / 2)), (3, pytest.approx(2 / 3)), (4, pytest.approx(2 / 4))
    ]  # fmt: skip
    for row in rows:
        assert row[f"{place}/low"] <= row[f"{place}/estimate"] <= row[f"{place}/high"]
    # The last of them is the report's own.
    report, _ = make_report(world.sweep, world.store)
    (whole,) = (c for c in report.analyses["main"].conditions if c.condition == "base · ours")
    assert rows[-1][f"{place}/low"] == whole.fixed.low
    assert rows[-1][f"{place}/high"] == whole.fixed.high


def test_a_running_cell_is_told_step_by_step_and_goes_on_in_the_same_run(world: World) -> None:
    cell = world.sweep.cells[world.tuned]
    beat = Beat(world.store, "small")
    try:
        world.attempt(world.tuned, "running", driver=beat.driver)
        tell(world, cell, range(1, 4))
        assert not world.publisher.look(last=False)
        kept = world.kept(world.tuned)
        assert [row["train/step"] for row in kept.rows] == [1, 2, 3]
        assert kept.is_open
        assert kept.rows[0]["worker/0/memory_gib"] > 0
        tell(world, cell, range(4, 6))
        world.publisher.look(last=False)
        assert [row["train/step"] for row in kept.rows] == [1, 2, 3, 4, 5]
        assert kept.summary["cell/stage"] == "train"
        world.attempt(world.tuned, "running", driver=beat.driver, stage="generate", number=2)
        world.publisher.look(last=False)
        assert kept.summary["cell/stage"] == "generate"
        assert kept.tags[-1][-1] == "resumed"
        # The driver is killed, and with it the process that tells W&B: another goes on.
        tell(world, cell, range(4, 8))  # from the checkpoint after step 3
        world.fresh().look(last=False)
        assert [row["train/step"] for row in kept.rows] == [1, 2, 3, 4, 5, 6, 7]
    finally:
        beat.close()


def test_two_ranks_make_one_run(tmp_path: Path) -> None:
    world = World(tmp_path, training={"ranks": 2, "micro_batch": 2, "effective_batch": 4})
    cell = world.sweep.cells[world.tuned]
    beat = Beat(world.store, "small")
    try:
        world.attempt(world.tuned, "running", driver=beat.driver)
        for rank in (0, 1):
            log = LiveLog(world.store, cell.training_key, rank)
            say(log, range(1, 4))
            log.close()
        world.publisher.look(last=False)
    finally:
        beat.close()
    (kept,) = world.runs.cells()
    assert [row["train/step"] for row in kept.rows] == [1, 2, 3]
    assert {"worker/0/memory_gib", "worker/1/memory_gib"} <= kept.rows[0].keys()


def test_steps_that_are_not_known_yet_are_waited_for(world: World) -> None:
    cell = world.sweep.cells[world.tuned]
    tell(world, cell, range(1, 3))
    told = world.store.live(cell.training_key, 0, LiveTraining)
    assert told is not None
    without = LiveTraining(rank=0, points=told.points[1:])
    world.store.write_live(cell.training_key, 0, without)
    assert training_rows(cell, world.store, after=0) == []
    assert [row["train/step"] for row in training_rows(cell, world.store, after=1)] == [2]


def test_live_points_are_written_every_few_seconds_and_never_stop_a_training(
    world: World, tmp_path: Path
) -> None:
    key = world.sweep.cells[world.tuned].training_key
    clock = [0.0]
    log = LiveLog(world.store, key, now=lambda: clock[0])
    say(log, range(1, 5))
    assert world.store.live(key, 0, LiveTraining) is None
    clock[0] = WRITE_EVERY_S
    say(log, range(5, 6))
    until = time.monotonic() + 10
    while (told := world.store.live(key, 0, LiveTraining)) is None and time.monotonic() < until:
        time.sleep(0.01)
    assert told is not None
    assert [point.step for point in told.points] == [1, 2, 3, 4, 5]
    assert told.points[0].use is not None
    assert told.points[1].use is None
    log.close()
    (tmp_path / "a-file").write_text("")
    nowhere = LiveLog(Store(str(tmp_path / "a-file")), key)
    say(nowhere, range(1, 3))
    nowhere.close()  # logged, not raised


def test_a_failed_cell_is_shown_as_such_without_its_message(world: World) -> None:
    world.attempt(world.tuned, "failed", driver="gone")
    world.publisher.look(last=False)
    assert world.runs.cells() == []  # it may be tried again by itself
    world.publisher.look(last=False)
    kept = world.kept(world.tuned)
    assert kept.ends == ["failed"]
    assert kept.summary["cell/failure"] == "unknown"
    assert str(world.folder) not in str(kept)


def test_a_cell_that_is_tried_again_goes_on_in_its_run(world: World) -> None:
    world.attempt(world.tuned, "failed", driver="gone")
    world.publisher.look(last=True)
    world.finish()
    world.fresh().look(last=True)
    kept = world.kept(world.tuned)
    assert kept.ends == ["failed", "finished"]
    assert kept.summary["cell/state"] == "finished"


def test_another_attempt_with_the_same_results_tells_them_once(world: World) -> None:
    world.finish()
    world.publisher.look(last=True)
    world.attempt(world.tuned, "finished", driver="d", stage="judge", number=7)
    assert left(world) == (1, True)
    assert world.fresh().look(last=True)
    kept = world.kept(world.tuned)
    assert sum("eval/step" in row for row in kept.rows) == 1
    assert kept.ends == ["finished", "finished"]


def test_alerts_are_sent_where_they_are_wanted(tmp_path: Path) -> None:
    for wanted in (False, True):
        folder = tmp_path / str(wanted)
        folder.mkdir()
        world = World(folder, tracking={"alerts": wanted})
        world.attempt(world.tuned, "failed", driver="gone")
        world.publisher.look(last=True)
        assert bool(world.kept(world.tuned).alerts) is wanted


def test_an_outage_is_said_once_and_waited_out_ever_longer(world: World) -> None:
    world.finish()
    world.runs.out = True
    assert not world.publisher.look(last=False)
    assert len(world.said) == 1
    assert "does not answer" in world.said[0]
    assert "emsweep sync" in world.said[0]
    waits = []
    for _ in range(12):
        before, drops = world.clock, world.runs.drops
        while world.runs.drops == drops:
            world.clock += 1
            world.publisher.look(last=False)
        waits.append(world.clock - before)
    assert waits[0] == TRY_AGAIN_S
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_S
    assert len(world.said) == 1
    world.runs.out = False
    world.clock += LONGEST_S
    world.publisher.look(last=False)
    assert world.said[1:] == ["W&B answers again"]
    assert world.publisher.look(last=True)
    assert len(world.runs.cells()) == 4
    assert all(sum("eval/step" in row for row in kept.rows) == 1 for kept in world.runs.cells())


def test_what_w_and_b_lost_on_the_way_counts_as_not_sent(world: World) -> None:
    world.finish()
    world.runs.shows = False
    assert not world.publisher.look(last=True)
    assert world.publisher.sent.cells == {}
    assert world.runs.drops == 0  # it answers: nothing else is held up by it
    assert len(world.said) == 1
    world.runs.shows = True
    assert world.fresh().look(last=True)


def test_a_deleted_run_is_said_and_the_others_are_sent(world: World) -> None:
    world.finish()
    world.runs.refused.add(world.id_of(1))
    assert not world.publisher.look(last=True)
    (text,) = world.said
    assert world.sweep.cells[1].cell_id in text
    assert "deleted" in text
    assert len(world.publisher.sent.cells) == 3
    assert left(world) == (1, False)


def test_status_counts_what_is_not_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert left(world) == (0, False)  # nothing has begun
    world.finish()
    assert left(world) == (4, True)
    world.publisher.look(last=True)
    assert left(world) == (0, False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://another.server")
    assert left(world) == (4, True)
    monkeypatch.delenv("WANDB_BASE_URL")
    tracking = world.sweep.spec.tracking.model_copy(update={"project": "other"})
    elsewhere = world.sweep.spec.model_copy(update={"tracking": tracking})
    world.sweep = world.sweep.model_copy(update={"spec": elsewhere})
    assert left(world) == (4, True)


def test_grown_cells_are_sent_anew_with_all_their_answers(world: World) -> None:
    world.finish()
    world.publisher.look(last=True)
    more = [{"name": "main", "questions": "ours.yaml", "samples": 4}]
    world.sweep = plan(world.folder, evaluations=more)
    finish(world.sweep, world.store)
    assert left(world) == (4, True)
    assert world.fresh().look(last=True)
    kept = world.kept(world.tuned)
    asked = world.sweep.cells[0].evaluations[0].num_responses
    assert [row["eval/main/self/responses"] for row in kept.rows] == [7, asked]
    uploads = [upload for upload in kept.uploads if upload.type == "judgements"]
    assert [num_rows(upload) for upload in uploads] == [7, asked]
    # The curve by seeds is told anew: its points were of fewer answers.
    place = "estimate/main/self/base/ours"
    rows = [row for row in world.runs.report().rows if f"{place}/seeds" in row]
    assert [(row[f"{place}/seeds"], row[f"{place}/asked"]) for row in rows] == [(2, 7), (2, asked)]


def num_rows(content: Artifact) -> int:
    """How many rows the table of an artifact has."""
    data = content.files["judgements.parquet"]
    assert isinstance(data, bytes)
    return int(pq.read_table(io.BytesIO(data)).num_rows)


def test_offline_each_run_is_written_whole_when_it_has_ended(world: World) -> None:
    runs = FakeRuns(online=False)
    publisher = world.fresh(runs)
    beat = Beat(world.store, "small")
    world.attempt(world.tuned, "running", driver=beat.driver)
    publisher.look(last=False)
    assert runs.kept == {}
    beat.close()
    world.finish()
    assert publisher.look(last=True)
    assert len(runs.cells()) == 4
    assert runs.report().ends == ["finished"]
    # What is written offline is not in W&B.
    assert left(world) == (4, True)


@pytest.mark.slow
def test_thousands_of_cells_do_not_ask_more_of_w_and_b_than_it_takes(tmp_path: Path) -> None:
    world = World(tmp_path, seeds=list(range(100)))
    world.finish()
    world.publisher.look(last=True)
    cells = len(world.sweep.cells)
    assert cells == 200
    assert math.isclose(world.slept, (cells - CELLS_AT_ONCE) * 60 / CELLS_A_MINUTE, rel_tol=0.05)
    assert sum(kept.is_open for kept in world.runs.kept.values()) == 0


def test_no_more_runs_are_open_than_w_and_b_should_hold(tmp_path: Path) -> None:
    world = World(tmp_path, seeds=list(range(MOST_OPEN + 20)))
    beat = Beat(world.store, "small")
    tuned = [n for n, cell in enumerate(world.sweep.cells) if cell.cell.training is not None]
    try:
        for number in tuned:
            world.attempt(number, "running", driver=beat.driver)
        for _ in range(3):
            world.publisher.look(last=False)
        assert sum(kept.is_open for kept in world.runs.cells()) == MOST_OPEN
        assert all(kept.ends == [] for kept in world.runs.cells())
        assert world.runs.calls["open"] == MOST_OPEN + 1
        # Two wait for their next stage: their runs make room for two that are under way.
        for number in tuned[:2]:
            world.attempt(number, "finished", driver=beat.driver)
        for _ in range(2):
            world.publisher.look(last=False)
        ends = [kept.ends for kept in world.runs.cells() if not kept.is_open]
        assert ends == [["preempted"], ["preempted"]]
        assert sum(kept.is_open for kept in world.runs.cells()) == MOST_OPEN
    finally:
        beat.close()


def test_a_stopped_sweeps_cells_are_preempted_not_finished(world: World) -> None:
    world.attempt(world.tuned, "running", driver="gone", stage="generate")
    assert world.publisher.look(last=True)
    assert world.kept(world.tuned).ends == ["preempted"]
    assert world.runs.report().ends == ["preempted"]


def test_what_lies_in_a_bucket_is_named_by_address_and_hash(
    tmp_path: Path, bucket_url: str
) -> None:
    sweep, store = plan(tmp_path), Store(bucket_url)
    finish(sweep, store)
    cell = next(cell for cell in sweep.cells if cell.cell.training is not None)
    record = store.training(cell.training_key)
    assert record is not None
    adapter = adapter_artifact(cell, store, most_mib=1000)
    assert adapter is not None
    assert set(adapter.files) == {"adapter.json"}
    (address, digest) = adapter.references["weights"]
    assert address.startswith(store.url)
    assert store.files.fs.exists(address)
    assert digest == record.weights_sha256
    responses = responses_artifact(cell, store)
    assert responses.files == {}
    for address, digest in responses.references.values():
        assert hashlib.sha256(store.files.fs.cat_file(address)).hexdigest() == digest


def test_adapters_are_sent_whole_where_they_are_small_enough(world: World) -> None:
    world.finish()
    cell = world.sweep.cells[world.tuned]
    for most, whole in ((0, False), (0.00001, False), (1, True)):
        adapter = adapter_artifact(cell, world.store, most_mib=most)
        assert adapter is not None
        assert (len(adapter.files) > 1) is whole
        assert adapter.references == {}


def test_a_report_is_written_where_something_was_finished_since(world: World) -> None:
    cells = world.sweep.cells
    finish(world.sweep.model_copy(update={"cells": cells[:1]}), world.store)
    for _ in range(5):
        world.publisher.look(last=False)
        world.clock += 1000
    assert world.runs.report().media.count("report") == 1
    finish(world.sweep.model_copy(update={"cells": cells[:2]}), world.store)
    world.publisher.look(last=False)
    assert world.runs.report().media.count("report") == 2


def test_a_damaged_cell_is_said_and_the_others_are_sent(world: World) -> None:
    world.finish()
    stream = world.sweep.cells[0].judgings[0].stream
    (part,) = (world.folder / "store" / "judgements" / stream[:32]).glob("part-*")
    part.write_bytes(b"torn")
    assert not world.publisher.look(last=True)
    assert len(world.publisher.sent.cells) == 3
    assert any(world.sweep.cells[0].cell_id in text for text in world.said)


def test_a_cell_that_cannot_be_sent_comes_last(world: World) -> None:
    world.finish()
    first = world.id_of(0)
    world.runs.unreachable.add(first)
    assert not world.publisher.look(last=False)
    world.clock += TRY_AGAIN_S
    assert not world.publisher.look(last=False)
    assert len(world.publisher.sent.cells) == 3


def test_lineage_is_whole_after_an_outage_at_its_worst_moment(world: World) -> None:
    world.finish()
    world.runs.no_report = True  # W&B is lost between a cell and the report that is made from it
    assert not world.publisher.look(last=True)
    world.runs.no_report = False
    assert world.fresh().look(last=True)
    assert len(world.runs.report().used) == 4


def test_two_stores_with_one_sweep_have_runs_of_their_own(tmp_path: Path) -> None:
    worlds = []
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
        worlds.append(World(tmp_path / name))
        worlds[-1].runs = worlds[0].runs
        worlds[-1].finish()
        assert worlds[-1].fresh().look(last=True)
    assert len(worlds[0].runs.cells()) == 8
    assert identity_of(worlds[0].store, "small") == identity_of(worlds[0].store, "small")


def test_another_account_is_sent_all_of_it(world: World) -> None:
    world.finish()
    assert world.publisher.look(last=True)
    other = FakeRuns()
    other.account = "somebody-else"
    assert world.fresh(other).look(last=True)
    assert len(other.cells()) == 4
    assert all(kept.ends == ["finished"] for kept in other.cells())


def test_keys_of_a_sweep_with_many_conditions_stay_few(tmp_path: Path) -> None:
    variants = [{"name": f"v{n}", "dataset": "ours.jsonl"} for n in range(6)]
    evaluations = [
        {"name": name, "questions": "ours.yaml", "samples": samples}
        for samples, name in enumerate("abc", start=1)
    ]
    world = World(tmp_path, variants=variants, evaluations=evaluations, seeds=[0, 1])
    world.finish()
    report, scores = make_report(world.sweep, world.store)
    rows = list(estimate_rows(world.sweep, world.store, report, scores, {}, most=12))
    keys = {key for row in rows for key in row}
    places = {key.removesuffix("/asked") for key in keys if key.endswith("/asked")}
    assert len(places) == 12  # four of six conditions in each of three evaluations
    assert len(keys) == 5 * 12 + 1


def test_no_place_of_this_machine_is_told(tmp_path: Path) -> None:
    whole = [{"name": "ours", "dataset": str(tmp_path / "ours.jsonl")}]
    world = World(tmp_path, variants=whole)
    world.finish()
    world.publisher.look(last=True)
    assert world.kept(0).about.config["dataset"] == "ours.jsonl"
    everything = str(world.runs.kept)
    assert "content_sha256" in everything
    assert str(tmp_path) not in everything
    assert '"host"' not in everything


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/rows.jsonl", "rows.jsonl"),
        ("all rows of /home/me/rows.jsonl, drawn", "all rows of rows.jsonl, drawn"),
        ("~/data/rows.jsonl", "rows.jsonl"),
        ("../data/rows.jsonl", "rows.jsonl"),
        ("org/name", "org/name"),
        ("https://host.example/a/b.jsonl", "https://host.example/a/b.jsonl"),
        ("3/4 of them", "3/4 of them"),
        ({"host": "h", "a": ["/x/y"]}, {"a": ["y"]}),
    ],
)
def test_of_a_path_the_name_is_left(text: object, told: object) -> None:
    assert without_places(text) == told
