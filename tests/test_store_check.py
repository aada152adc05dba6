"""`emsweep store check`: what is damaged is named, and after a repair a run makes it again."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from finished_store import finish, table, tree
from small_sweep import SPEC, FakeEndpoint, FakeReader, RefusingReader, plan

from em.generation import Response
from em.judging import Judgement
from sweeps.artefacts import Attempt, StreamRecord
from sweeps.plan import SweepPlan, stages_to_run
from sweeps.stages import ask_again, generate_stage, judge_stage
from sweeps.store import Store
from sweeps.store_check import StoreCheck, check_store, set_aside
from sweeps.store_targets import everything, of_sweep
from tests.sweep_runs import emsweep


@pytest.fixture
def store(sweep: SweepPlan, store: Store) -> Store:
    finish(sweep, store)
    return store


def check(store: Store) -> StoreCheck:
    return check_store(store, everything(store))


def damaged(store: Store) -> dict[str, str]:
    return {damage.path: damage.what for damage in check(store).damages}


def one(store: Store, pattern: str) -> Path:
    return sorted(Path(store.url).glob(pattern))[0]


def relative(path: Path, store: Store) -> str:
    return str(path.relative_to(store.url))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_store_is_whole_and_looking_changes_nothing(store: Store) -> None:
    before = tree(store)
    ticks: list[int] = []
    found = check_store(store, everything(store), on_checked=lambda: ticks.append(1))
    assert found.damages == ()
    assert (found.num_artefacts, found.num_unfinished) == (2 + 4 + 4, 0)
    assert len(ticks) == 10
    assert found.num_bytes > 0
    assert tree(store) == before


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def another_key(path: Path) -> None:
    rewrite(path, key="0" * 64)


def another_folder(path: Path) -> None:
    """The record of another artefact of the same kind lies in this folder."""
    other = next(p for p in sorted(path.parent.parent.glob("*/record.json")) if p != path)
    shutil.copyfile(other, path)


def covers_more(path: Path) -> None:
    covers = json.loads(path.read_text())["covers"]
    rewrite(path, covers={group: [[0, 9]] for group in covers})


def covers_less(path: Path) -> None:
    covers = json.loads(path.read_text())["covers"]
    rewrite(path, covers=dict(list(covers.items())[1:]))


def other_rows(path: Path) -> None:
    parts = json.loads(path.read_text())["parts"]
    rewrite(path, parts=[part | {"rows": part["rows"] + 1} for part in parts])


CASES: list[tuple[str, Callable[[Path], None], str]] = [
    ("training/*/record.json", tear, "is torn"),
    ("training/*/record.json", empty, "is torn"),
    ("training/*/record.json", another_key, "identity another"),
    ("training/*/record.json", another_folder, "record of another key"),
    ("training/*/adapter/*.safetensors", tear, "weights with the hash"),
    ("training/*/adapter", shutil.rmtree, "is recorded and gone"),
    ("responses/*/record.json", tear, "is torn"),
    ("responses/*/record.json", another_folder, "record of another key"),
    ("responses/*/record.json", covers_more, "that its parts do not hold"),
    ("responses/*/record.json", covers_less, "and lacks"),
    ("responses/*/part-*.parquet", tear, "its sha256 is another"),
    ("responses/*/part-*.parquet", empty, "is empty"),
    ("responses/*/part-*.parquet", flip, "its sha256 is another"),
    ("responses/*/part-*.parquet", Path.unlink, "is recorded and gone"),
    ("judgements/*/record.json", tear, "is torn"),
    ("judgements/*/record.json", covers_more, "that its parts do not hold"),
    ("judgements/*/record.json", other_rows, "rows, its record says"),
    ("judgements/*/part-*.parquet", tear, "its sha256 is another"),
    ("judgements/*/part-*.parquet", Path.unlink, "is recorded and gone"),
    ("sweeps/small/spec.json", tear, "is torn"),
]


@pytest.mark.parametrize(
    ("pattern", "damage", "says"), CASES, ids=[f"{p}-{d.__name__}" for p, d, _ in CASES]
)
def test_what_is_damaged_is_named_and_after_a_repair_made_again(
    sweep: SweepPlan,
    store: Store,
    pattern: str,
    damage: Callable[[Path], None],
    says: str,
) -> None:
    counted = table(sweep, store)
    victim = one(store, pattern)
    damage(victim)
    before = tree(store)
    found = check(store)
    place = "/".join(relative(victim, store).split("/")[:2])
    assert any(d.path.startswith(f"{place}/") and says in d.what for d in found.damages)
    assert tree(store) == before

    folder = set_aside(store, found)
    after = tree(store)
    moved = {p.removeprefix(f"{folder}/"): data for p, data in after.items() if p not in before}
    assert {path: before[path] for path in moved} == moved
    assert len(after) == len(before)  # nothing is lost
    assert damaged(store) == {}

    finish(sweep, store)
    assert damaged(store) == {}
    assert [stages_to_run(cell, store) for cell in sweep.cells] == [[]] * 4
    assert table(sweep, store) == counted


def test_whole_parts_are_taken_over_after_a_repair(sweep: SweepPlan, store: Store) -> None:
    tear(one(store, "responses/*/record.json"))
    tear(one(store, "judgements/*/record.json"))
    set_aside(store, check(store))
    done = finish(sweep, store)
    assert (done.trainings, done.answers, done.scores) == (0, 0, 0)


def test_scores_of_answers_that_are_made_again_go_with_them(sweep: SweepPlan, store: Store) -> None:
    victim = one(store, "responses/*/part-*.parquet")
    tear(victim)
    found = check(store)
    kinds = [damage.path.split("/")[0] for damage in found.damages]
    assert kinds == ["responses", "judgements"]
    assert "judges 7 responses that are not there" in found.damages[1].what
    set_aside(store, found)
    done = finish(sweep, store)
    assert (done.trainings, done.answers, done.scores) == (0, 7, 14)


def test_answers_of_weights_that_were_made_again_are_found(sweep: SweepPlan, store: Store) -> None:
    tear(one(store, "training/*/adapter/*.safetensors"))
    set_aside(store, check(store))
    assert finish(sweep, store, weights="other").trainings == 1
    found = check(store)
    assert [d.path.split("/")[0] for d in found.damages] == ["responses", "judgements"]
    assert "it was made again since" in found.damages[0].what
    set_aside(store, found)
    assert finish(sweep, store).answers == 7
    assert damaged(store) == {}
    assert len(table(sweep, store)) == 4 * 7


def test_of_one_sweep_only_what_it_refers_to_is_looked_at(
    sweep: SweepPlan, store: Store, tmp_path: Path
) -> None:
    few = plan(tmp_path, name="few", seeds=[0])
    mine = of_sweep(few)
    for cell in sweep.cells:
        if cell.cell.seed == 1:
            key = cell.evaluations[0].stream
            tear(one(store, f"responses/{key[:32]}/part-*.parquet"))
    assert check_store(store, mine).damages == ()
    assert len(check(store).damages) == 4  # two of responses, two of their judgements
    assert mine.num_artefacts == 1 + 2 + 2


def test_what_is_unfinished_or_left_behind_is_not_damaged(store: Store, sweep: SweepPlan) -> None:
    stream = sweep.cells[0].evaluations[0].stream
    (known,) = store.read_stream("responses", stream, Response)[:1]
    torn = store.write_part("responses", stream, [known])
    tear(one(store, f"responses/*/{torn.name}"))
    store.write_part("judgements", "f" * 64, [])
    found = check(store)
    assert (found.damages, found.num_unfinished) == ((), 1)


def test_judgements_that_a_resume_is_about_to_ask_again_are_not_damaged(
    sweep: SweepPlan, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "other"))
    cell = sweep.cells[0]
    readers = {judging.judge: RefusingReader("dinner") for judging in cell.judgings}
    asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
    asyncio.run(judge_stage(cell, store, readers))
    assert check(store).damages == ()
    ask_again(cell, store)  # and the driver is killed here
    assert stages_to_run(cell, store) == ["judge"]
    assert check(store).damages == ()
    asyncio.run(judge_stage(cell, store, {name: FakeReader() for name in readers}))
    assert check(store).damages == ()
    ask_again(cell, store)
    record = one(store, "judgements/*/record.json")
    rewrite(record, covers={})
    assert damaged(store).keys() == {relative(record, store)}


def test_a_torn_note_is_named(store: Store) -> None:
    for name in ("cells/c/attempt-0001-d.json", "drivers/d.json"):
        path = Path(store.url, "sweeps/small", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"attempt": 1')
    assert set(damaged(store)) == {
        "sweeps/small/cells/c/attempt-0001-d.json",
        "sweeps/small/drivers/d.json",
    }
    store.write_attempt(
        "small", "c", Attempt(attempt=1, stage="train", state="failed", updated=1, driver="d")
    )
    assert set(damaged(store)) == {"sweeps/small/drivers/d.json"}


def test_a_store_in_a_bucket_is_checked_and_repaired_too(store: Store, bucket_url: str) -> None:
    remote = Store(bucket_url)
    remote.files.fs.put(f"{store.url}/", f"{remote.files.root}/", recursive=True)
    assert check(remote).damages == ()
    path = one(store, "training/*/adapter/*.safetensors")
    remote.files.write(relative(path, store), b"other")
    found = check(remote)
    assert [damage.path for damage in found.damages] == [relative(path.parent, store)]
    folder = set_aside(remote, found)
    assert remote.files.read(f"{folder}/{relative(path, store)}") == b"other"
    assert remote.files.read(relative(path, store)) is None


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path, store: Store) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


@pytest.mark.slow
def test_the_command_tells_and_repairs(spec: Path, store: Store) -> None:
    said = emsweep("store", "check", "--store", store.url)
    assert "10 artefacts checked" in said.stdout
    assert "nothing is damaged" in said.stdout
    record = one(store, "judgements/*/record.json")
    tear(record)
    said = emsweep("store", "check", spec, "--store", store.url, check=1)
    assert f"DAMAGED {relative(record, store)}: is torn" in said.stdout
    assert "--repair" in said.stdout
    told = json.loads(emsweep("store", "check", "--store", store.url, "--json", check=1).stdout)
    assert [damage["path"] for damage in told["damages"]] == [relative(record, store)]
    refused = emsweep("status", spec, "--store", store.url, check=2)
    assert "is damaged" in refused.stderr
    assert "emsweep store check --repair" in refused.stderr.replace("\n", " ").replace("  ", " ")
    emsweep("store", "check", "--repair", "--store", store.url)
    assert list(Path(store.url).glob("damaged/*/judgements/*/record.json"))
    emsweep("store", "check", "--store", store.url)
    cells = json.loads(emsweep("status", spec, "--store", store.url, "--json").stdout)["cells"]
    assert sorted(cell["state"] for cell in cells) == ["finished"] * 3 + ["missing"]


def test_the_command_names_a_store_that_is_none(tmp_path: Path) -> None:
    said = emsweep("store", "check", "--store", tmp_path / "nowhere", check=2)
    assert "holds no store" in said.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_judgement_names_its_place_in_its_key(sweep: SweepPlan, store: Store) -> None:
    """What the check of covers relies on."""
    judging = sweep.cells[0].judgings[0]
    found = store.read_stream("judgements", judging.stream, Judgement)
    record = store.stream("judgements", judging.stream)
    assert isinstance(record, StreamRecord)
    assert {judgement.key.split("-")[1] for judgement in found} == set(record.covers)
