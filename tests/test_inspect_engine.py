"""A task of Inspect asked of a real engine, by the command: from the spec to the report."""

from pathlib import Path

import pytest
import yaml

from tests.engines import tiny_model
from tests.sweep_runs import artefacts, emsweep, report, tiny_spec, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.vllm]


def test_a_task_runs_on_a_cell_to_a_report_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    evaluation = {
        "name": "sums", "inspect": "arithmetic.py@sums", "limit": 4, "samples": 2,
        "sampling": {"max_tokens": 8},
    }  # fmt: skip
    spec = tiny_spec(tiny_model(tmp_path / "model"), evaluations=[evaluation])
    spec |= {"variants": [{"name": "none"}], "tracking": {"mode": "off"}}
    del spec["judges"]
    path, store = write_spec(tmp_path, spec), tmp_path / "store"
    emsweep("run", path, "--store", store, "--inline")
    cells = report(store)["cells"]
    assert [cell["metric"] for cell in cells] == ["correct_share"] * 2
    for cell in cells:
        assert cell["state"] == "finished" and cell["judge"] == "scorer"
        assert cell["counts"]["responses"] == cell["counts"]["scored"] == 8
        assert len(cell["questions"]) == 4 and cell["em_rate"] is not None
    before = artefacts(store)
    assert len(before) >= 4
    emsweep("run", path, "--store", store, "--inline")
    assert artefacts(store) == before
    path.write_text(yaml.safe_dump(spec | {"evaluations": [evaluation | {"limit": 6}]}))
    grown = emsweep("plan", path, "--store", store).stdout
    assert "16 of 24" in grown, grown
    assert "task arithmetic.py@sums (sums): 12 answers of a cell" in grown
    path.write_text(yaml.safe_dump(spec | {"evaluations": [evaluation | {"limit": 20}]}))
    refused = emsweep("plan", path, "--store", store, check=2).stderr
    assert "limit: 20 samples are asked for, but the task has 12" in refused
