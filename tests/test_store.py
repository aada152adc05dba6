import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from em.record import Record
from em.training import TrainingResult
from sweeps.artefacts import Attempt, DriverBeat, Part, Provenance, StreamRecord, TrainingRecord
from sweeps.files import StoreError
from sweeps.leases import LeaseLost
from sweeps.store import Store
from sweeps.weights import weights_sha256

KEY, OTHER = "a" * 64, "a" * 32 + "b" * 32  # one folder name, two keys
WORK = Provenance(commit=None, versions={}, host="h", started=1, seconds=2, device="d")


class Item(Record):
    key: str
    value: float | None = None
    words: tuple[str, ...] = ()


class Place:
    """A root on one back end, and its raw files, for damage that no method does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)

    def store(self) -> Store:
        return Store(self.url)

    def files(self, under: str = "") -> list[str]:
        found = self.fs.find(f"{self.root}/{under}".rstrip("/"))
        return sorted(path.removeprefix(f"{self.root}/") for path in found)

    def write(self, path: str, data: bytes) -> None:
        target = f"{self.root}/{path}"
        if self.store().files.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.fs.pipe_file(target, data)

    def read(self, path: str) -> bytes:
        return bytes(self.fs.cat_file(f"{self.root}/{path}"))


@pytest.fixture
def place(any_url: str) -> Iterator[Place]:
    """One suite for every back end: a folder, and object stores."""
    found = Place(any_url)
    yield found
    with contextlib.suppress(FileNotFoundError):
        found.fs.rm(found.root, recursive=True)


def items(*names: str) -> list[Item]:
    return [Item(key=name, value=float(n), words=("x",)) for n, name in enumerate(names)]


def finish(store: Store, parts: list[Part], covers: dict[str, list[int]], key: str = KEY) -> None:
    store.finish_stream("responses", key, {"a": 1}, parts=parts, covers=covers, provenance=WORK)


# The root ------------------------------------------------------------------------------------


def test_a_new_root_is_made_a_store_once(place: Place) -> None:
    place.store().check()
    assert place.files() == []  # looking writes nothing
    place.store().create()
    place.store().create()
    place.store().check()
    assert place.files() == ["store.json"]
    assert json.loads(place.read("store.json")) == {"format": 2}
    again = Store(place.store().url)  # what tasks are told
    again.check()
    assert again.url == place.store().url


def test_a_root_with_other_things_is_refused(place: Place) -> None:
    place.write("thesis.tex", b"x")
    for do in (place.store().check, place.store().create):
        with pytest.raises(StoreError, match=r"not an em-sweeps store.*thesis\.tex.*--store"):
            do()
    assert place.files() == ["thesis.tex"]


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        (b'{"format": 1}', "store format is 1, this program writes 2"),
        (b"{", "damaged: not a JSON object"),
        (b"[1]", "damaged: not a JSON object"),
    ],
)
def test_a_store_of_another_format_is_refused(place: Place, marker: bytes, says: str) -> None:
    place.write("store.json", marker)
    with pytest.raises(StoreError, match=says):
        place.store().create()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store(str(tmp_path / "file")).create()


# Training ------------------------------------------------------------------------------------


def trained(key: str = KEY, weights: str = "w") -> TrainingRecord:
    result = TrainingResult(
        steps=1, losses=(), num_rows=1, num_tokens=1, num_trained_tokens=1, num_cut_rows=0,
        seconds=1,
    )  # fmt: skip
    return TrainingRecord(
        key=key, identity={}, weights_sha256=weights, kind="adapter", result=result, provenance=WORK
    )


def output(store: Store, text: str) -> Path:
    folder = store.attempt_dir(KEY, "driver") / "output"
    folder.mkdir()
    (folder / "weights.safetensors").write_text(text)
    (store.attempt_dir(KEY, "driver") / "checkpoints").mkdir(exist_ok=True)
    return folder


def test_a_training_is_there_when_its_record_is(place: Place) -> None:
    store = place.store()
    assert store.training(KEY) is None
    folder = output(store, "one")
    assert store.training(KEY) is None
    assert place.store().attempt_dir(KEY, "driver") == folder.parent  # kept for the next attempt
    record = trained(weights=weights_sha256(folder))
    store.finish_training(record, folder)
    assert place.store().training(KEY) == record
    assert (place.store().adapter_dir(record) / "weights.safetensors").read_text() == "one"
    assert not folder.parent.exists()
    stem = f"training/{KEY[:32]}"
    assert place.files("training") == [f"{stem}/adapter/weights.safetensors", f"{stem}/record.json"]


def test_a_record_is_written_last(place: Place) -> None:
    store = place.store()
    with pytest.raises(OSError):
        store.finish_training(trained(), store.attempt_dir(KEY, "driver") / "nothing-was-written")
    assert store.training(KEY) is None
    folder = output(store, "x")
    store.finish_training(trained(), folder)  # the same attempt goes on
    assert store.training(KEY) == trained()


def test_weights_without_a_record_are_replaced(place: Place) -> None:
    """A driver died between the weights and their record."""
    store = place.store()
    store.finish_training(trained(), output(store, "old"))
    store.files.fs.rm(f"{store.files.root}/training/{KEY[:32]}/record.json")
    assert store.training(KEY) is None
    store.finish_training(trained(), output(store, "new"))
    assert b"new" in place.read(f"training/{KEY[:32]}/adapter/weights.safetensors")


def test_a_late_owner_leaves_a_training_that_is_there(place: Place) -> None:
    store = place.store()
    store.finish_training(trained(), output(store, "first"))
    late = output(store, "late")
    assert store.finish_training(trained(), late) == trained()
    gone = store.attempt_dir(KEY, "driver") / "moved-away"
    assert store.finish_training(trained(), gone) == trained()
    assert b"first" in place.read(f"training/{KEY[:32]}/adapter/weights.safetensors")


def test_a_lease_lost_while_weights_go_to_the_disk_ends_it(place: Place) -> None:
    store = place.store()

    def lost() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        store.finish_training(trained(), output(store, "x"), check_lease=lost)
    assert (
        place.files("training")
        == [f"training/{KEY[:32]}/attempt-driver/output/weights.safetensors"]
        or store.training(KEY) is None
    )


def test_another_training_under_the_name_is_refused(place: Place) -> None:
    store = place.store()
    store.finish_training(trained(), output(store, "x"))
    with pytest.raises(StoreError, match=f"another thing under this name: key {KEY}, expected"):
        store.training(OTHER)


@pytest.mark.parametrize("data", [b"", b"{", b'{"key": 1}'])
def test_a_damaged_record_is_told(place: Place, data: bytes) -> None:
    place.write(f"training/{KEY[:32]}/record.json", data)
    with pytest.raises(StoreError, match=r"record\.json is damaged"):
        place.store().training(KEY)


# Streams -------------------------------------------------------------------------------------


def test_a_stream_is_what_its_record_lists(place: Place) -> None:
    store = place.store()
    part = store.write_part("responses", KEY, items("a", "b"))
    assert (part.rows, part.name) == (2, f"part-{part.sha256[:16]}.parquet")
    assert store.stream("responses", KEY) is None
    assert store.read_stream("responses", KEY, Item) == []
    assert store.missing("responses", KEY, {"g": 2}) == {"g": [0, 1]}
    finish(store, [part], {"g": [0, 1]})
    again = place.store()
    assert again.read_stream("responses", KEY, Item) == items("a", "b")
    assert again.missing("responses", KEY, {"g": 2}) == {}
    assert again.missing("judgements", KEY, {"g": 2}) == {"g": [0, 1]}  # another kind


def test_what_is_covered_grows(place: Place) -> None:
    store = place.store()
    first = store.write_part("responses", KEY, items("a"))
    finish(store, [first], {"g": [0, 1], "h": [4]})
    assert store.missing("responses", KEY, {"g": 4, "h": 5, "i": 1, "j": 0}) == {
        "g": [2, 3],
        "h": [0, 1, 2, 3],
        "i": [0],
    }
    second = store.write_part("responses", KEY, items("b"))
    finish(store, [second], {"g": [3, 2], "h": [0, 2]})
    record = store.stream("responses", KEY)
    assert isinstance(record, StreamRecord)
    assert record.covers == {"g": [(0, 4)], "h": [(0, 1), (2, 3), (4, 5)]}
    assert record.parts == [first, second]
    assert len(record.provenance) == 2
    assert store.missing("responses", KEY, {"g": 4, "h": 5}) == {"h": [1, 3]}
    assert store.missing("responses", KEY, {"g": 1}) == {}  # fewer are wanted: nothing to do
    assert [item.key for item in store.read_stream("responses", KEY, Item)] == ["a", "b"]


def test_every_key_is_counted_once(place: Place) -> None:
    store = place.store()
    parts = [store.write_part("responses", KEY, items(*names)) for names in ("ab", "cb")]
    finish(store, parts, {"g": [0, 1, 2]})
    read = store.read_stream("responses", KEY, Item)
    assert [item.key for item in read] == ["a", "b", "c"]
    assert len({part.name for part in parts}) == 2


def test_whole_parts_of_an_attempt_that_ended_are_found_and_torn_ones_not(place: Place) -> None:
    store = place.store()
    listed, whole, torn = (store.write_part("responses", KEY, items(n)) for n in ("a", "b", "c"))
    finish(store, [listed], {"g": [0]})
    stem = f"responses/{KEY[:32]}"
    place.write(f"{stem}/{torn.name}", place.read(f"{stem}/{torn.name}")[:-7])
    place.write(f"{stem}/part-0123456789abcdef.parquet.1234.tmp", b"half")
    place.write(f"{stem}/notes.txt", b"x")
    assert store.unrecorded_parts("responses", KEY) == [whole]
    assert store.read_part("responses", KEY, whole, Item) == items("b")
    assert store.unrecorded_parts("judgements", KEY) == []


def test_a_damaged_or_missing_part_is_told(place: Place) -> None:
    store = place.store()
    part = store.write_part("responses", KEY, items("a"))
    finish(store, [part], {"g": [0]})
    path = f"responses/{KEY[:32]}/{part.name}"
    place.write(path, place.read(path) + b"x")
    with pytest.raises(StoreError, match=r"is damaged: its sha256.*made again"):
        store.read_stream("responses", KEY, Item)
    store.files.fs.rm(f"{store.files.root}/{path}")
    with pytest.raises(StoreError, match="is recorded but cannot be read"):
        store.read_stream("responses", KEY, Item)


def test_another_stream_under_the_name_is_refused(place: Place) -> None:
    store = place.store()
    finish(store, [], {"g": [0]})
    for do in (
        lambda: store.stream("responses", OTHER),
        lambda: store.missing("responses", OTHER, {"g": 1}),
        lambda: finish(store, [], {"g": [1]}, OTHER),
    ):
        with pytest.raises(StoreError, match="another thing under this name"):
            do()


def test_what_was_written_is_read_back_as_it_was(place: Place) -> None:
    odd = [
        Item(key="none"),
        Item(key="text", value=-0.1, words=("", "é☃😀", "a\nb", "\x00")),
        Item(key="big", value=1e300),
    ]
    store = place.store()
    for some in (odd, odd[:1], odd[1:]):
        part = store.write_part("judgements", KEY, some)
        assert store.read_part("judgements", KEY, part, Item) == some


# Sweeps --------------------------------------------------------------------------------------


def attempt(number: int, **changes: object) -> Attempt:
    known = {"attempt": number, "stage": "train", "state": "running", "updated": 1.5, "driver": "r"}
    return Attempt.model_validate(known | changes)


def test_attempts_are_kept_in_order_and_replaced_by_number(place: Place) -> None:
    store = place.store()
    assert store.attempts("s", "cell-1") == []
    for number in (2, 1, 11):
        store.write_attempt("s", "cell-1", attempt(number))
    failed = attempt(2, state="failed", error="boom", error_class="ValueError")
    store.write_attempt("s", "cell-1", failed)
    store.write_attempt("s", "cell-2", attempt(1, driver="other"))
    assert place.store().attempts("s", "cell-1") == [attempt(1), failed, attempt(11)]
    assert store.attempts("t", "cell-1") == []


def test_runs_are_oldest_first(place: Place) -> None:
    store = place.store()
    assert store.drivers("s") == []
    beats = [
        DriverBeat(driver=name, host="h", pid=1, started=started, updated=9.0)
        for name, started in (("b", 2.0), ("a", 3.0), ("c", 1.0))
    ]
    for beat in beats:
        store.write_record(f"{store.sweep_dir('s')}/drivers/{beat.driver}.json", beat)
    assert [beat.driver for beat in store.drivers("s")] == ["c", "b", "a"]


def test_a_local_folder_for_other_programs(place: Place) -> None:
    folder = place.store().local_dir("logs")
    assert folder.is_dir()
    assert folder == place.store().local_dir("logs")
    if place.store().files.is_local:
        assert folder == Path(place.root, "logs")


def test_nothing_half_written_is_left_in_a_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create()
    finish(store, [store.write_part("responses", KEY, items("a"))], {"g": [0]})
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {".json", ".parquet"}


def test_a_store_is_one_wherever_it_is_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    same = {Store(url).url for url in ("../s", "~/s", str(tmp_path / "s"), f"file://{tmp_path}/s")}
    assert same == {str(tmp_path / "s")}
