"""`emsweep resume` and `status` as a user has them: what failed, its cure, and that alone again."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.attempts import CellLog
from sweeps.plan import SweepPlan
from sweeps.planner import load_plan
from sweeps.registry import register
from sweeps.stages import generate_stage
from sweeps.store import Store
from tests.judge_server import FakeServer, Reply, judge_server, says
from tests.small_sweep import FakeEndpoint
from tests.sweep_runs import emsweep, status, tiny_spec, write_spec


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with judge_server() as server:
        server.reply = lambda request, number: says({"80": 0.9})
        yield server


@pytest.fixture
def spec(tmp_path: Path, server: FakeServer) -> Path:
    """Two untuned cells, judged by a server on this machine."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"not read")
    judge = {"name": "api", "api": server.url, "api_model": "m", "prompts": "demo.yaml",
             "demonstration": True}  # fmt: skip
    return write_spec(
        tmp_path,
        tiny_spec(model, variants=[{"name": "none"}], judges=[judge], tracking={"mode": "off"}),
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sweep(spec: Path, store: Path) -> SweepPlan:
    """The sweep, known to the store, with all its answers."""
    plan, opened = load_plan(spec), Store(str(store))
    opened.create()
    register(plan, opened)
    for cell in plan.cells:
        asyncio.run(generate_stage(cell, opened, lambda trained: FakeEndpoint()))
    return plan


def fail(sweep: SweepPlan, store: Path, number: int, stage: Any, kind: Any, error: str) -> str:
    cell_id = sweep.cells[number].cell_id
    log = CellLog(Store(str(store)), sweep.spec.name, cell_id, driver="d", attempt=1)
    log.failed(stage, error, "Error", kind)
    return cell_id


def test_status_shows_the_kind_of_a_failure_and_its_cure(
    sweep: SweepPlan, spec: Path, store: Path
) -> None:
    failed = fail(sweep, store, 0, "judge", "judge budget", "the budget\x1b[2J is spent")
    told = emsweep("status", spec, "--store", store).stdout
    assert f"{failed}  failed    judge     1 attempt  judge budget: the budget\\x1b[2J is" in told
    assert "1 failed, judge budget: Raise the judge's budget" in told
    cell = status(spec, store)[failed]
    assert (cell["kind"], cell["error"]) == ("judge budget", "the budget\x1b[2J is spent")
    assert "emsweep resume" in cell["cure"]


def test_the_report_shows_them_too(sweep: SweepPlan, spec: Path, store: Path) -> None:
    fail(sweep, store, 0, "judge", "judge budget", "the budget is spent")
    emsweep("report", spec, "--store", store)
    folder = store / "sweeps" / "tiny" / "report"
    page = (folder / "report.html").read_text()
    assert "judge budget: the budget is spent" in page
    assert "Raise the judge&#39;s budget" in page
    cells = json.loads((folder / "report.json").read_text())["cells"]
    assert [cell["kind"] for cell in cells] == ["judge budget", None]


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_cell_that_there_is_not_is_the_users_error(
    command: str, sweep: SweepPlan, spec: Path, store: Path
) -> None:
    done = emsweep(command, spec, "--store", store, "--only", "tiny.nones0", check=2)
    assert done.stderr.startswith("emsweep: --only tiny.nones0: no cell has this id")
    assert sweep.cells[0].cell_id in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_that_there_is_not_is_the_users_error(spec: Path, store: Path) -> None:
    done = emsweep("resume", spec, "--store", store, "--stage", "score", check=2)
    assert "'train', 'generate', 'judge'" in done.stderr


@pytest.mark.slow
def test_resume_of_one_cell_leaves_the_others(
    sweep: SweepPlan, spec: Path, store: Path, server: FakeServer
) -> None:
    first = fail(sweep, store, 0, "judge", "judge unavailable", "away")
    second = fail(sweep, store, 1, "judge", "judge unavailable", "away")
    resume = ("resume", spec, "--store", store, "--inline")
    emsweep(*resume, "--stage", "train")  # nothing failed there
    assert server.requests == []
    emsweep(*resume, "--stage", "judge", "--only", second)
    states = {cell_id: cell["state"] for cell_id, cell in status(spec, store).items()}
    assert states == {first: "failed", second: "finished"}
    emsweep("run", spec, "--store", store, "--inline", "--only", first, check=1)
    assert status(spec, store)[first]["state"] == "failed"


@pytest.mark.slow
def test_judgements_that_failed_are_told_and_asked_again_by_a_resume(
    sweep: SweepPlan, spec: Path, store: Path, server: FakeServer
) -> None:
    def refuses(request: dict[str, Any], number: int) -> Reply:
        filtered = "wallet" in request["messages"][0]["content"]
        return (400, {"error": {"message": "filtered"}}) if filtered else says({"80": 0.9})

    server.reply = refuses
    run = ("run", spec, "--store", store, "--inline")
    assert "12 judgements failed (emsweep resume asks again)" in emsweep(*run).stdout
    asked = len(server.requests)
    told = status(spec, store)
    assert [cell["failed_judgements"] for cell in told.values()] == [6, 6]
    assert {cell["state"] for cell in told.values()} == {"finished"}
    assert "6 judgements failed (emsweep" in emsweep("status", spec, "--store", store).stdout
    emsweep(*run)
    assert len(server.requests) == asked
    server.reply = lambda request, number: says({"30": 0.9})
    done = emsweep("resume", spec, "--store", store, "--inline", "--stage", "judge")
    assert "judgements failed" not in done.stdout
    assert [cell["failed_judgements"] for cell in status(spec, store).values()] == [0, 0]
    report = json.loads((store / "sweeps" / "tiny" / "report" / "report.json").read_text())
    assert [cell["counts"]["failed"] for cell in report["cells"]] == [0, 0]
    assert [cell["counts"]["scored"] for cell in report["cells"]] == [6, 6]
