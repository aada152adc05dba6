"""A whole small sweep comes to the same in a bucket as in a folder, and its commands work there."""

import json
from pathlib import Path

import pytest
import yaml
from finished_store import finish
from small_sweep import SPEC

from sweeps.plan import SweepPlan, stages_to_run
from sweeps.results import scored_responses
from sweeps.store import Store
from sweeps.store_check import check_store
from sweeps.store_gc import leftovers
from sweeps.store_targets import everything
from tests.sweep_runs import emsweep


def table(sweep: SweepPlan, store: Store) -> list[object]:
    """Every counted response with its scores: what a report is made of."""
    return [
        row.model_dump()
        for cell in sweep.cells
        for judging in cell.judgings
        for row in scored_responses(cell, judging, store)
    ]


def test_a_sweep_comes_to_the_same_in_a_bucket(
    sweep: SweepPlan, store: Store, bucket_url: str
) -> None:
    finish(sweep, store)
    remote = Store(bucket_url)
    done = finish(sweep, remote)
    assert (done.trainings, done.answers) == (2, 4 * 7)
    assert table(sweep, remote) == table(sweep, store)
    assert [stages_to_run(cell, remote) for cell in sweep.cells] == [[]] * 4
    again = finish(sweep, Store(bucket_url))
    assert (again.trainings, again.answers, again.scores) == (0, 0, 0)
    assert check_store(remote, everything(remote)).damages == ()
    assert leftovers(remote, now=0.0) == []


@pytest.mark.slow
@pytest.mark.parametrize("bucket_url", ["s3"], indirect=True)
def test_the_commands_work_on_a_bucket(
    sweep: SweepPlan, bucket_url: str, tmp_path: Path, own_cache: Path
) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    store = Store(bucket_url)
    finish(sweep, store)
    told = json.loads(emsweep("status", spec, "--store", bucket_url, "--json").stdout)
    assert told["store"] == bucket_url
    assert [cell["state"] for cell in told["cells"]] == ["finished"] * 4
    said = emsweep("report", spec, "--store", bucket_url).stdout
    page = Path(said.removeprefix("report: ").strip())
    assert page.is_file() and page.is_relative_to(own_cache)
    part = next(path for path in store.files.sizes("judgements") if path.endswith(".parquet"))
    store.files.write(part, b"torn")
    left = store.files.sizes("training")
    store.files.write("training/" + "b" * 32 + "/adapter/w.safetensors", b"123")
    said = emsweep("store", "check", "--store", bucket_url, check=1).stdout
    assert f"DAMAGED {part}" in said
    emsweep("store", "check", "--repair", "--store", bucket_url)
    emsweep("store", "gc", "--yes", "--store", bucket_url)
    assert store.files.sizes("training") == left
    assert [p.rpartition("/")[2] for p in store.files.sizes("damaged")] == [
        part.rpartition("/")[2], "record.json",
    ]  # fmt: skip
    emsweep("store", "check", "--store", bucket_url)
