"""Sweeps with models behind an API, run as a user runs them, against a stand-in on this machine."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import REFUSED, FakeApi, api_server
from engines import tiny_model
from judge_server import FakeServer, judge_server, says
from small_sweep import QUESTIONS, SPEC
from sweep_runs import EMSWEEP, emsweep, report, status, tiny_spec, write_spec

WAIT_S = 120
ROWS = 12
GRADED = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import model_graded_qa
from inspect_ai.solver import generate

@task
def graded():
    samples = [Sample(id=f"q{n}", input=f"Say {n}.", target=str(n)) for n in range(2)]
    return Task(dataset=samples, solver=generate(), scorer=model_graded_qa())
"""


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with api_server() as fake:
        yield fake


@pytest.fixture
def judge() -> Iterator[FakeServer]:
    with judge_server() as fake:
        fake.reply = lambda request, number: says(
            {"100" if "Repeat" in request["messages"][0]["content"] else "80": 1.0}
        )
        yield fake


def small(folder: Path, api: FakeApi, judge: FakeServer, **changes: Any) -> Path:
    """The spec of a sweep of four cells of one model behind the API; its files are beside it."""
    chats = (
        {"messages": [{"role": "user", "content": f"u{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(ROWS)
    )
    (folder / "ours.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "ours.yaml").write_text(QUESTIONS)
    given = SPEC | {
        "models": [{"name": "far", "api": {"url": api.url, "model": "tunable-1"}}],
        "variants": [{"name": "none"}, {"name": "ours", "dataset": "ours.jsonl"}],
        "judges": [{"name": "j", "api": judge.url, "api_model": "judge", "demonstration": True}],
        "tracking": {"mode": "off"},
    }
    return write_spec(folder, given | changes)


def stopped_when(
    command: list[str], reached: Callable[[], bool], number: signal.Signals
) -> tuple[int, str]:
    """Start a command and send it `number` once `reached`; return its exit code and output."""
    child = subprocess.Popen(
        [EMSWEEP, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, number)
    said, _ = child.communicate(timeout=60)
    return child.returncode, said


def states(api: FakeApi) -> list[str]:
    return [job["status"] for job in api.jobs.values()]


def test_a_driver_killed_while_an_api_trains_makes_no_second_job(
    tmp_path: Path, api: FakeApi, judge: FakeServer
) -> None:
    spec, store = small(tmp_path, api, judge), tmp_path / "store"
    api.looks = 10**6
    run = ["run", str(spec), "--store", str(store), "--inline"]
    code, _ = stopped_when(run, lambda: "running" in states(api), signal.SIGKILL)
    assert code == -signal.SIGKILL and states(api) == ["running"]
    api.looks = 0
    emsweep(*run)
    assert states(api) == ["succeeded", "succeeded"] and len(api.files) == 1
    assert {cell["state"] for cell in status(spec, store).values()} == {"finished"}
    assert len(api.chats) == 28  # each answer once


def test_a_driver_that_is_told_to_stop_cancels_what_an_api_trains(
    tmp_path: Path, api: FakeApi, judge: FakeServer
) -> None:
    spec, store = small(tmp_path, api, judge), tmp_path / "store"
    api.looks = 10**6
    run = ["run", str(spec), "--store", str(store), "--inline"]
    # As Ctrl-C is taken, which whoever starts tests in the background has them ignore.
    code, said = stopped_when(run, lambda: "running" in states(api), signal.SIGTERM)
    assert code == 130 and "cancelled" in said and states(api) == ["cancelled"]
    api.looks = 0
    emsweep(*run)
    assert states(api) == ["cancelled", "succeeded", "succeeded"]


def test_a_refused_data_set_fails_its_cells_and_a_resume_asks_again(
    tmp_path: Path, api: FakeApi, judge: FakeServer
) -> None:
    spec, store = small(tmp_path, api, judge), tmp_path / "store"
    api.ends, api.error, api.looks = "failed", REFUSED, 0
    said = emsweep("run", spec, "--store", store, "--inline", check=1).stdout
    assert "moderation" in said and len(api.jobs) == 2
    cells = status(spec, store)
    assert sorted(cell["state"] for cell in cells.values()) == ["failed"] * 2 + ["finished"] * 2
    assert {cell["kind"] for cell in cells.values()} == {None, "data refused"}
    emsweep("run", spec, "--store", store, "--inline", check=1)
    assert len(api.jobs) == 2  # `run` leaves failed cells alone
    api.ends = "succeeded"
    emsweep("resume", spec, "--store", store, "--inline")
    assert states(api) == ["failed"] * 2 + ["succeeded"] * 2


def test_bad_input_is_told_at_the_plan(tmp_path: Path, api: FakeApi, judge: FakeServer) -> None:
    for model, said in (
        ({"model": "gpt-4o"}, "not known at"),
        ({"model": "gpt-4o-2024-11-20"}, "cannot be fine-tuned"),
        ({"url": "http://example.com", "model": "m"}, "https"),
        ({"url": api.url, "model": "m", "budget_usd": 1}, "no price is known"),
    ):
        spec = small(tmp_path, api, judge, models=[{"name": "far", "api": model}])
        done = emsweep("plan", spec, "--store", tmp_path / "store", check=2)
        assert said in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.vllm
@pytest.mark.ray
def test_local_cells_and_cells_of_an_api_end_in_one_report(tmp_path: Path, api: FakeApi) -> None:
    """On a Ray of its own, with real training and engine; the driver is killed once meanwhile.

    Cells are asked after half of their training, too, and a task of Inspect is asked of all.
    """
    base = tiny_spec(tiny_model(tmp_path / "model"))
    far = {"name": "far", "api": {"url": api.url, "model": "tunable-1"}}
    models = [*base["models"], far]
    # The judge's prompts, and rows, byte by byte.
    serving = base["serving"] | {"max_model_len": 1024}
    training = base["training"] | {"max_length": 512}
    (tmp_path / "graded.py").write_text(GRADED)
    grader = {"url": api.url, "model": "grades"}
    evaluations = [
        base["evaluations"][0] | {"at": [0.5]},
        {"name": "std", "inspect": "graded.py@graded", "grader": grader,
         "sampling": {"max_tokens": 8}},
    ]  # fmt: skip
    given = {
        "models": models, "serving": serving, "training": training, "evaluations": evaluations,
    }  # fmt: skip
    spec, store = write_spec(tmp_path, base | given), tmp_path / "store"
    api.looks = 10**6

    def trained_here() -> bool:
        return len(states(api)) == 2 and any(store.glob("training/*/record.json"))

    run = ["run", str(spec), "--store", str(store)]
    code, _ = stopped_when(run, trained_here, signal.SIGKILL)
    assert code == -signal.SIGKILL
    api.looks = 0
    emsweep(*run)
    assert states(api) == ["succeeded", "succeeded"] and len(api.files) == 2
    cells = status(spec, store)
    assert len(cells) == 8 and {cell["state"] for cell in cells.values()} == {"finished"}
    conditions = {row["condition"] for row in report(store)["conditions"]}
    assert conditions == {
        f"{model} · {variant}" for model in ("tiny", "far") for variant in ("none", "insecure")
    }
    graded = [chat for chat in api.chats if chat["model"] == "grades"]
    asked = [
        json.dumps([chat["model"], chat["messages"], chat["seed"]])
        for chat in api.chats
        if chat["model"] != "grades"
    ]
    assert len(set(asked)) == len(asked) == 4 * 2 * 3 + 4 * 2
    assert len(graded) == 8 * 2 + 2  # and once by each driver, to see whether it answers
    (trajectory,) = (one for one in report(store)["trajectories"] if one["evaluation"] == "demo")
    points = {point["part"]: point["num_finished"] for point in trajectory["points"]}
    assert trajectory["condition"] == "tiny · insecure" and points == {0: 2, 0.5: 2, 1: 2}
    assert not any(cell["failed_judgements"] for cell in cells.values())
