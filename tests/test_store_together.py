"""Several processes and threads on one store: one of many creates, one of many fetches."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from beside import SPAWN, WAIT_S, Note, create, fetch, run_beside
from places import place_url
from s3_server import S3Server
from test_store import KEY, output, trained

from sweeps.artefacts import TrainingRecord
from sweeps.fetched import UNUSED_AFTER_S, remove_unused
from sweeps.files import Files, StoreError
from sweeps.store import Store
from sweeps.weights import weights_sha256

WEIGHTS = f"training/{KEY[:32]}/adapter/weights.safetensors"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path, own_cache: Path) -> str:
    """A root that several processes see."""
    return place_url(request.param, request, tmp_path)


# Creating -------------------------------------------------------------------------------------


def test_of_many_threads_one_creates_a_file(shared_url: str) -> None:
    files = Files(shared_url)
    with ThreadPoolExecutor(8) as threads:
        for turn in range(10):
            path = f"turn/{turn}.json"
            made = list(threads.map(lambda n, p=path: files.create_record(p, Note(by=n)), range(8)))
            assert made.count(True) == 1
            assert files.read_record(path, Note) == Note(by=made.index(True))
    assert files.names("turn") == sorted(f"{turn}.json" for turn in range(10))


def test_of_many_processes_one_creates_a_file(shared_url: str) -> None:
    ready, made = SPAWN.Barrier(3), SPAWN.Queue()
    assert run_beside(create, [(shared_url, n, 10, ready, made) for n in range(3)]) == [0] * 3
    by = dict(made.get(timeout=WAIT_S) for _ in range(3))
    files = Files(shared_url)
    for n in range(10):
        (winner,) = (name for name, turns in by.items() if turns[n])
        assert files.read_record(f"{n}.json", Note) == Note(by=winner)


# Fetching -------------------------------------------------------------------------------------


@pytest.fixture
def record(bucket_url: str) -> TrainingRecord:
    """A finished training of a store in a bucket."""
    store = Store(bucket_url)
    folder = output(store, "the weights")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocabulary.json").write_text("{}")
    return store.finish_training(trained(weights=weights_sha256(folder)), folder)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


WHOLE = {"weights.safetensors": "the weights", "tokenizer/vocabulary.json": "{}"}


def test_an_adapter_is_fetched_whole_and_once(
    bucket_url: str, record: TrainingRecord, own_cache: Path
) -> None:
    folder = Store(bucket_url).adapter_dir(record)
    assert folder.is_relative_to(own_cache)
    assert tree(folder) == WHOLE
    Store(bucket_url).files.remove(WEIGHTS)  # it is not asked for again
    assert Store(bucket_url).adapter_dir(record) == folder


def test_what_nobody_asked_for_in_a_long_time_is_removed_when_more_is_fetched(
    bucket_url: str, record: TrainingRecord, own_cache: Path
) -> None:
    kept = own_cache / "adapters"
    unused, used = kept / ("1" * 64), kept / ("2" * 64)
    for folder, age_s in ((unused, UNUSED_AFTER_S + 60), (used, UNUSED_AFTER_S - 60)):
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_text("of another cell")
        os.utime(folder, (time.time() - age_s,) * 2)
    folder = Store(bucket_url).adapter_dir(record)
    assert {path for path in kept.iterdir() if path.is_dir()} == {used, folder}
    os.utime(folder, (0, 0))
    assert Store(bucket_url).adapter_dir(record) == folder  # asked for: in use again
    remove_unused(kept, UNUSED_AFTER_S)
    assert tree(folder) == WHOLE


def test_an_adapter_with_other_bytes_than_recorded_is_not_taken(
    bucket_url: str, record: TrainingRecord, own_cache: Path
) -> None:
    store = Store(bucket_url)
    store.files.write(WEIGHTS, b"other")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"weights with the hash .* store check --repair"):
            store.adapter_dir(record)
    store.files.remove(f"training/{KEY[:32]}/adapter")
    with pytest.raises(StoreError, match=r"cannot read|weights with the hash"):
        store.adapter_dir(record)
    assert list((own_cache / "adapters").glob("*/*")) == []
    store.files.write(WEIGHTS, b"the weights")
    assert (store.adapter_dir(record) / "weights.safetensors").read_bytes() == b"the weights"


def fetched_by(url: str, record: TrainingRecord, *, killed: list[bool]) -> list[int | None]:
    """Have as many processes fetch the adapter at once; return their exit codes."""
    ready = SPAWN.Barrier(len(killed))
    return run_beside(fetch, [(url, record, one, ready) for one in killed])


@pytest.mark.slow
@pytest.mark.parametrize("bucket_url", ["s3"], indirect=True)
def test_of_many_processes_one_fetches_and_a_killed_one_leaves_nothing(
    s3: S3Server, bucket_url: str, record: TrainingRecord, own_cache: Path
) -> None:
    assert fetched_by(bucket_url, record, killed=[True]) == [-signal.SIGKILL]
    kept = own_cache / "adapters" / record.weights_sha256
    assert not kept.exists()
    assert fetched_by(bucket_url, record, killed=[False] * 3) == [0] * 3
    assert tree(kept) == WHOLE
    assert [p.name for p in kept.parent.iterdir() if p.is_dir()] == [kept.name]
    weights = f"{bucket_url.removeprefix('s3:/')}/{WEIGHTS}"
    assert s3.requests.count(("GET", weights)) == 1
