"""A whole small sweep comes to the same in a bucket as in a folder, and is reported from there."""

import json
from pathlib import Path

import pytest
import yaml
from finished_store import finish, table
from small_sweep import SPEC

from sweeps.plan import SweepPlan, stages_to_run
from sweeps.store import Store
from sweeps.store_check import check_store
from sweeps.store_gc import leftovers
from sweeps.store_targets import everything
from tests.sweep_runs import emsweep


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
def test_a_report_of_a_bucket_lies_on_this_machine(
    sweep: SweepPlan, bucket_url: str, tmp_path: Path, own_cache: Path
) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    finish(sweep, Store(bucket_url))
    said = emsweep("report", spec, "--store", bucket_url).stdout
    page = Path(said.removeprefix("report: ").strip())
    assert page.is_file() and page.is_relative_to(own_cache)
    told = json.loads(page.with_name("report.json").read_text())
    assert [cell["state"] for cell in told["cells"]] == ["finished"] * 4
