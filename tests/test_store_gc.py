"""`emsweep store gc`: what no record counts or no sweep refers to, shown and then removed."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from finished_store import finish, tree
from small_sweep import SPEC, plan

from em.generation import Response
from sweeps.attempts import Beat
from sweeps.files import StoreError
from sweeps.leases import holding
from sweeps.plan import SweepPlan
from sweeps.store import Store
from sweeps.store_gc import (
    Leftover,
    all_plans,
    check_quiet,
    check_still_quiet,
    leftovers,
    remove,
    unreferenced,
    without_nested,
)
from sweeps.stream_parts import whole_part
from tests.sweep_runs import emsweep

DAY_S = 24 * 3600.0
NOW = time.time()


@pytest.fixture
def store(sweep: SweepPlan, store: Store) -> Store:
    finish(sweep, store)
    return store


def left(store: Store, now: float = NOW) -> dict[str, Leftover]:
    return {one.path: one for one in leftovers(store, now=now)}


def half_written(store: Store, path: str, *, days: float) -> str:
    target = Path(store.url, f"{path}.0a1b2c3d.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("half")
    os.utime(target, (NOW - days * DAY_S,) * 2)
    return str(target.relative_to(store.url))


def attempt(store: Store, key: str) -> str:
    folder = store.attempt_dir(key, "d")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-1").write_text("12345")
    return str(folder.relative_to(store.url))


def uncounted(store: Store, sweep: SweepPlan) -> str:
    stream = sweep.cells[0].evaluations[0].stream
    some = store.read_stream("responses", stream, Response)[:1]
    part = store.write_part("responses", stream, some)
    return f"responses/{stream[:32]}/{part.name}"


def test_a_finished_store_has_no_leftovers(store: Store) -> None:
    assert left(store) == {}


def test_what_no_record_counts_is_found_with_its_size_and_removed(
    store: Store, sweep: SweepPlan
) -> None:
    whole = tree(store)
    new = attempt(store, "a" * 64)
    half = half_written(store, "training/" + "a" * 32 + "/attempt-d/result", days=3)
    beside = attempt(store, next(c.training_key for c in sweep.cells if c.cell.training))
    part = uncounted(store, sweep)
    old = half_written(store, "sweeps/small/cells/c/attempt-0001-d.json", days=2)
    fresh = half_written(store, "sweeps/small/cells/c/attempt-0002-d.json", days=0.5)
    weights = Path(store.url, "training", "b" * 32, "adapter", "w.safetensors")
    weights.parent.mkdir(parents=True)
    weights.write_text("123")
    found = left(store)
    assert set(found) == {new, beside, part, old, "training/" + "b" * 32 + "/adapter"}
    assert found[new].num_bytes == 5 + 4
    assert "from its last checkpoint" in found[new].why
    assert found[beside].why == "left by a finished training"
    assert half not in found  # it goes with its attempt
    remove(store, found.values())
    assert tree(store) == whole | {fresh: b"half"}
    assert left(store) == {}


def test_no_part_is_called_uncounted_where_the_record_cannot_be_read(
    store: Store, sweep: SweepPlan
) -> None:
    place = Path(store.url, "responses", sweep.cells[0].evaluations[0].stream[:32])
    other = Path(store.url, "responses", sweep.cells[1].evaluations[0].stream[:32])
    shutil.copyfile(other / "record.json", place / "record.json")
    with pytest.raises(StoreError, match="record of another key"):
        left(store)
    (place / "record.json").write_text("{")
    with pytest.raises(StoreError, match=r"record\.json is damaged"):
        left(store)


def test_nothing_is_done_while_a_driver_is_at_work(store: Store) -> None:
    check_quiet(store)
    beat = Beat(store, "small")
    try:
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* at work .* 'small'"):
            check_quiet(store)
    finally:
        beat.close()
    check_quiet(store)


def test_what_a_driver_that_began_meanwhile_took_up_is_kept(store: Store, sweep: SweepPlan) -> None:
    before = check_quiet(store)
    part, work = uncounted(store, sweep), attempt(store, "a" * 64)
    found = left(store)
    assert set(found) == {part, work}
    record = store.stream("responses", sweep.cells[0].evaluations[0].stream)
    assert record is not None
    kind, folder, name = part.split("/")
    taken = whole_part(name, store.files.read(part) or b"")
    assert taken is not None
    more = record.model_copy(update={"parts": [*record.parts, taken]})
    store.write_record(f"{kind}/{folder}/record.json", more)
    beat = Beat(store, "small")
    try:
        with pytest.raises(ValueError, match="a driver began on the sweep 'small'"):
            check_still_quiet(store, before)
        with holding(store, ["a" * 64], beat.holder):
            kept = remove(store, found.values())
    finally:
        beat.close()
    assert {one.path for one in kept} == {part, work}
    assert store.files.read(part) is not None and Path(store.url, work).is_dir()
    assert [one.path for one in remove(store, left(store).values())] == []
    assert not Path(store.url, work).exists()
    assert ".gc" not in store.files.names("sweeps")


def test_what_no_sweep_refers_to(store: Store, sweep: SweepPlan, tmp_path: Path) -> None:
    few = plan(tmp_path, seeds=[0])
    assert unreferenced(store, [sweep]) == []
    found = unreferenced(store, [few])
    assert [one.path.split("/")[0] for one in found] == (
        ["training"] + ["responses"] * 2 + ["judgements"] * 2
    )
    assert all(one.num_bytes > 100 for one in found)
    # A sweep that the store knows keeps its own, whatever specs are given.
    given = [(tmp_path / "few.yaml", few)]
    assert unreferenced(store, all_plans(store, given)) == []
    remove(store, found)
    assert unreferenced(store, [few]) == []
    done = finish(few, store)
    assert (done.trainings, done.answers, done.scores) == (0, 0, 0)
    assert finish(sweep, store).trainings == 1


def test_a_sweep_whose_data_are_not_to_be_found_stops_it(
    store: Store, sweep: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"'small' refers to cannot be told.*Name its SPEC"):
        all_plans(store, [])
    assert len(all_plans(store, [(tmp_path / "small.yaml", sweep)])) == 2
    monkeypatch.chdir(tmp_path)
    assert len(all_plans(store, [])) == 1


@pytest.mark.parametrize("data", [b"", b'{"name": "sm', None])
def test_a_sweep_whose_spec_is_torn_or_gone_stops_it(
    store: Store, tmp_path: Path, data: bytes | None
) -> None:
    spec = Path(store.url, "sweeps/small/spec.json")
    (spec.parent / "cells" / "c").mkdir(parents=True)
    spec.write_bytes(data) if data is not None else spec.unlink()
    with pytest.raises(ValueError, match="nothing can be called unreferenced"):
        all_plans(store, [])


def test_what_is_inside_another_is_named_once() -> None:
    found = [Leftover(path=path, num_bytes=1, why="w") for path in ("a/b/c", "a/b", "a/bc", "a/b")]
    assert [one.path for one in without_nested(found)] == ["a/b", "a/bc"]


def test_a_bucket_has_no_half_written_files_but_uncounted_parts(
    store: Store, sweep: SweepPlan, bucket_url: str
) -> None:
    part = uncounted(store, sweep)
    remote = Store(bucket_url)
    remote.files.fs.put(f"{store.url}/", f"{remote.files.root}/", recursive=True)
    found = left(remote)
    assert set(found) == {part}
    remove(remote, found.values())
    assert left(remote) == {}


# The command -------------------------------------------------------------------------------------


def test_the_command_shows_first_and_removes_when_told(
    store: Store, sweep: SweepPlan, tmp_path: Path
) -> None:
    spec = tmp_path / "few.yaml"
    spec.write_text(yaml.safe_dump(SPEC | {"name": "few"}))
    folder = attempt(store, "a" * 64)
    before = tree(store)
    shown = emsweep("store", "gc", "--store", store.url).stdout
    assert f"5 B  {folder}  an unfinished training" in shown
    assert "1 leftovers, 5 B" in shown
    assert "--yes removes" in shown
    assert tree(store) == before
    shutil.rmtree(Path(store.url, "sweeps", "small"))  # unknown from now on: only SPEC keeps it
    told = emsweep("store", "gc", spec, "--unreferenced", "--json", "--store", store.url).stdout
    assert [one["path"] for one in json.loads(told)["leftovers"]] == ["training/" + "a" * 32]
    emsweep("store", "gc", "--unreferenced", "--yes", "--store", store.url)
    assert [path for path in tree(store) if not path.startswith("store.json")] == []


def test_the_command_removes_nothing_while_a_driver_is_at_work(store: Store) -> None:
    folder = attempt(store, "a" * 64)
    beat = Beat(store, "small")
    try:
        said = emsweep("store", "gc", "--yes", "--store", store.url, check=2)
    finally:
        beat.close()
    assert "nothing is removed" in said.stderr
    assert Path(store.url, folder).is_dir()
