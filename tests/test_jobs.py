"""Submit, jobs, logs, stop: a sweep as a job, with a stand-in for the dashboard that takes it."""

import io
import json
import os
import shlex
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from finished_store import finish
from jobs_server import FakeDashboard, dashboard
from small_sweep import JUDGE_PROMPTS, QUESTIONS, SPEC
from typer.main import get_command

from cluster.submit import find_job, follow_job
from em.catalogue import CACHE_ENV
from sweeps.cli import app, main
from sweeps.jobs import SweepJobs
from sweeps.options import TRIED_AGAIN
from sweeps.planner import load_plan
from sweeps.store import Store

UNTUNED = SPEC | {"variants": [{"name": "none"}]}
Told = tuple[int, str, str]
Run = Callable[..., Told]


@pytest.fixture
def cluster() -> Iterator[FakeDashboard]:
    with dashboard() as fake:
        yield fake


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a spec of two untuned cells, and its questions."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "EMSWEEP_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "small.yaml").write_text(yaml.safe_dump(UNTUNED))
    (folder / "ours.yaml").write_text(QUESTIONS)
    (folder / "prompts.yaml").write_text(JUDGE_PROMPTS)
    return folder


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `emsweep`; return its exit code, what it printed, and what it said of errors."""

    def command(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["emsweep", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return command


def submitted(run: Run, cluster: FakeDashboard, *words: str) -> tuple[str, str]:
    """The id of the newest job after a submit that must succeed, and what was printed."""
    code, out, err = run("submit", "small.yaml", "--address", cluster.url, *words)
    assert code == 0, out + err
    return list(cluster.jobs)[-1], out


def posts(cluster: FakeDashboard) -> int:
    return cluster.asked.count("POST /api/jobs/")


# Sending ---------------------------------------------------------------------------------------


def test_a_job_is_called_after_sweep_and_store(run: Run, cluster: FakeDashboard) -> None:
    job_id, out = submitted(run, cluster)
    assert job_id.startswith("emsweep-small-") and job_id.endswith("-1")
    assert f"as {job_id}" in out and "emsweep logs small.yaml -f" in out
    assert cluster.log in out
    other = {SweepJobs(Path("small.yaml"), store).base for store in (None, "a", "s3://b/c")}
    assert len(other) == 3 and SweepJobs(Path("small.yaml"), None).base == job_id[:-2]


def test_what_is_sent_runs_the_sweep_and_holds_no_key(
    run: Run, cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-the-test")
    monkeypatch.setenv("WANDB_API_KEY", "another-key-of-the-test")
    job_id, _ = submitted(run, cluster, "--keep", "stored")
    job = cluster.jobs[job_id]
    store = str(Path("emsweep-store").resolve())
    assert shlex.split(job["entrypoint"]) == [
        "python", "-m", "sweeps.cli", "run", "spec/small.yaml", "--address", "auto",
        "--store", store, "--keep", "stored",
    ]  # fmt: skip
    assert job["metadata"]["sweep"] == "small" and job["metadata"]["store"] == store
    assert set(job["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S", "EMSWEEP_PROBE"}
    ((name, data),) = cluster.packages.items()
    assert job["runtime_env"]["working_dir"] == f"gcs://{name}"
    files = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert {"sweeps/cli.py", "spec/small.yaml", "spec/ours.yaml"} <= set(files)
    assert "key-of-the-test" not in json.dumps(job)


def test_of_the_file_left_for_the_cluster_nothing_stays(run: Run, cluster: FakeDashboard) -> None:
    job_id, _ = submitted(run, cluster)
    left = cluster.jobs[job_id]["runtime_env"]["env_vars"]["EMSWEEP_PROBE"]
    assert left.startswith("sweeps/small/preflight/")
    assert not (Path("emsweep-store") / left).exists()


def test_a_running_sweep_is_not_sent_again(run: Run, cluster: FakeDashboard) -> None:
    job_id, _ = submitted(run, cluster)
    again, out = submitted(run, cluster)
    assert (again, posts(cluster)) == (job_id, 1)
    assert f"runs this sweep already, as {job_id}" in out
    assert "another spec" not in out
    Path("small.yaml").write_text(yaml.safe_dump(UNTUNED | {"seeds": [0, 1, 2]}))
    _, out = submitted(run, cluster)
    assert posts(cluster) == 1 and "it was sent with another spec" in out


def test_a_sweep_that_is_finished_in_the_store_is_not_sent(
    run: Run, project: Path, cluster: FakeDashboard
) -> None:
    finish(load_plan(project / "small.yaml"), Store(str(project / "emsweep-store")))
    code, out, _ = run("submit", "small.yaml", "--address", cluster.url)
    assert code == 0 and "nothing is sent" in out
    assert cluster.asked == []


def test_a_job_that_succeeded_elsewhere_is_not_sent_again_until_the_spec_grows(
    run: Run, cluster: FakeDashboard
) -> None:
    far = ("--store", "/nowhere/on/this/machine")
    job_id, _ = submitted(run, cluster, *far)
    assert "EMSWEEP_PROBE" not in cluster.jobs[job_id]["runtime_env"]["env_vars"]
    cluster.end(job_id, "SUCCEEDED")
    _, out = submitted(run, cluster, *far)
    assert posts(cluster) == 1 and "nothing is sent" in out
    Path("small.yaml").write_text(yaml.safe_dump(UNTUNED | {"seeds": [0, 1, 2]}))
    grown, _ = submitted(run, cluster, *far)
    assert grown == job_id[:-1] + "2"


def test_what_was_taken_out_of_the_store_is_made_again(
    run: Run, project: Path, cluster: FakeDashboard
) -> None:
    job_id, _ = submitted(run, cluster)
    cluster.end(job_id, "SUCCEEDED")
    plan, store = load_plan(project / "small.yaml"), Store(str(project / "emsweep-store"))
    finish(plan, store)
    store.files.remove("judgements")
    assert submitted(run, cluster)[0] != job_id


@pytest.mark.parametrize(
    ("status", "exit_code", "log", "verb"),
    [
        ("FAILED", 1, f"small: 1 finished, 1 failed\n{TRIED_AGAIN}: emsweep resume\n", "resume"),
        ("FAILED", 1, "Traceback: no module named torch\n", "run"),
        ("FAILED", 2, "emsweep: the cluster is too small\n", "run"),
        ("FAILED", None, "", "run"),
        ("STOPPED", None, "preflight passed\n", "run"),
    ],
)
def test_after_a_job_that_did_not_finish_the_next_goes_on(
    status: str, exit_code: int | None, log: str, verb: str, run: Run, cluster: FakeDashboard
) -> None:
    first, _ = submitted(run, cluster)
    cluster.end(first, status, exit_code)
    cluster.logs[first] = log
    second, _ = submitted(run, cluster)
    assert second == first[:-1] + "2"
    assert shlex.split(cluster.jobs[second]["entrypoint"])[3] == verb


def test_two_who_send_at_once_send_one_job(project: Path, cluster: FakeDashboard) -> None:
    def send(_: int) -> tuple[str, bool]:
        sent = SweepJobs(project / "small.yaml", None).send(cluster.url, after=None)
        return sent.job_id, sent.is_ours

    with ThreadPoolExecutor(2) as both:
        sent = list(both.map(send, range(2)))
    assert {job_id for job_id, _ in sent} == set(cluster.jobs)
    assert sorted(is_ours for _, is_ours in sent) == [False, True]


@pytest.mark.parametrize(("exit_code", "code"), [(2, 2), (1, 1), (None, 1), (-9, 1)])
def test_checks_that_fail_there_are_told_here(
    exit_code: int | None, code: int, run: Run, cluster: FakeDashboard
) -> None:
    cluster.log = "store  failed  not shared\n"
    message = "the environment\ncould not be made"
    cluster.begins = {"status": "FAILED", "driver_exit_code": exit_code, "message": message}
    told, out, _ = run("submit", "small.yaml", "--address", cluster.url)
    assert told == code
    assert "not shared" in out and ": FAILED" in out and "under way" not in out
    assert ("the environment could not be made" in out) == (exit_code is None)
    assert run("logs", "small.yaml", "-f")[0] == code


# Following -------------------------------------------------------------------------------------


def test_other_commands_know_where_a_sweep_was_sent(run: Run, cluster: FakeDashboard) -> None:
    job_id, _ = submitted(run, cluster, "--store", "elsewhere")
    cluster.end(job_id, "SUCCEEDED")
    code, out, _ = run("logs", "small.yaml")
    assert code == 0 and out == f"{cluster.log}job {job_id}: SUCCEEDED\n"
    code, out, _ = run("jobs")
    assert code == 0 and job_id in out and str(Path("elsewhere").resolve()) in out
    code, out, _ = run("jobs", "--json")
    assert [job["job_id"] for job in json.loads(out)] == [job_id]
    code, out, _ = run("stop", "small.yaml")
    assert code == 0 and "ended already" in out


def test_one_who_attaches_knows_it_too(
    run: Run, cluster: FakeDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, _ = submitted(run, cluster)
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "of-another-machine"))
    assert run("logs", "small.yaml")[0] == 2
    submitted(run, cluster)
    code, out, _ = run("stop", "small.yaml")
    assert code == 0 and f"job {job_id}: STOPPED" in out
    assert "emsweep submit small.yaml" in out


def test_a_log_over_a_connection_that_breaks_is_told_once(run: Run, cluster: FakeDashboard) -> None:
    job_id, _ = submitted(run, cluster)
    cluster.logs[job_id] = "one\ntwo\nthree\nvier \N{SNOWMAN}\n"
    cluster.end(job_id, "RUNNING", None)
    cluster.breaks_after = [5, 2]
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if "vier" in text:
            cluster.end(job_id, "SUCCEEDED")

    assert follow_job(cluster.url, job_id, tell).status == "SUCCEEDED"
    assert "".join(told) == cluster.logs[job_id]


def test_a_follower_waits_for_a_line(run: Run, cluster: FakeDashboard) -> None:
    job_id, _ = submitted(run, cluster)
    cluster.logs[job_id] = "checking\npreflight passed\nmore\n"
    assert not follow_job(cluster.url, job_id, lambda _: None, until="passed").is_over


def test_who_reads_no_more_ends_the_following(run: Run, cluster: FakeDashboard) -> None:
    job_id, _ = submitted(run, cluster)

    def tell(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow_job(cluster.url, job_id, tell)


def test_another_command_runs_there_and_ends_as_it_does(run: Run, cluster: FakeDashboard) -> None:
    cluster.log, cluster.begins = "small: 2 missing\n", {"status": "FAILED"}
    code, out, _ = run("status", "small.yaml", "--json", "--address", cluster.url)
    assert (code, "small: 2 missing" in out) == (1, True)
    ((job_id, job),) = cluster.jobs.items()
    assert "-status-" in job_id
    words = shlex.split(job["entrypoint"])
    assert words[3:6] == ["status", "spec/small.yaml", "--json"]
    assert run("jobs", "--address", cluster.url)[1] == "no sweep was sent there\n"


def test_what_is_run_there_is_a_command_that_there_is(run: Run, cluster: FakeDashboard) -> None:
    cluster.begins = {"status": "SUCCEEDED", "driver_exit_code": 0}
    for words in (["plan"], ["status", "--json"], ["prefetch"]):
        assert run(words[0], "small.yaml", *words[1:], "--address", cluster.url)[0] == 0
        sent = shlex.split(list(cluster.jobs.values())[-1]["entrypoint"])[3:]
        known = next(c for c in get_command(app).commands.values() if c.name == sent[0])  # type: ignore[attr-defined]
        known.make_context(sent[0], sent[1:])  # refuses an option that it has not


def test_an_unknown_job_is_none(run: Run, cluster: FakeDashboard) -> None:
    assert find_job(cluster.url, "emsweep-none-1") is None
    code, _, err = run("logs", "small.yaml", "--address", cluster.url)
    assert code == 2 and "knows no job of the sweep 'small'" in err and "--store" in err


# Bad input -------------------------------------------------------------------------------------


def refused(told: Told) -> str:
    code, out, err = told
    assert code == 2 and "Traceback" not in out + err, out + err
    assert err.startswith("emsweep: ") and "\n\n" not in err
    return err


def test_an_address_where_nobody_answers(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        err = refused(run("submit", "small.yaml", "--address", address))
        assert f"no Ray dashboard answers at {address}" in err and "port-forward" in err


@pytest.mark.parametrize("address", ["ray://host:10001", "host:6379", "http://", "http://a b"])
def test_an_address_that_is_none(address: str, run: Run) -> None:
    err = refused(run("submit", "small.yaml", "--address", address))
    assert address in err and "http://host:8265" in err


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ((500, "Traceback (most recent call last):\n  ...\nOSError: no disk\n"), "500"),
        ((404, "not here"), "404"),
        ((200, "<html>a router</html>"), "no Ray dashboard answers"),
        ((200, "{}"), "no Ray dashboard answers"),
        ((200, "[]"), "no Ray dashboard answers"),
        ((502, "<html>" + "x" * 5000), "502"),
    ],
)
def test_another_server_is_told_in_a_paragraph(
    broken: tuple[int, str], said: str, run: Run, cluster: FakeDashboard
) -> None:
    cluster.broken = broken
    err = refused(run("submit", "small.yaml", "--address", cluster.url))
    assert said in err and len(err) < 1200 and cluster.jobs == {}


def test_the_address_given_counts_not_the_one_in_the_environment(
    run: Run, cluster: FakeDashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    job_id, _ = submitted(run, cluster)
    assert job_id in cluster.jobs and os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


def test_a_store_with_a_password_is_not_written_down(run: Run, cluster: FakeDashboard) -> None:
    store = "s3://me:" + "secret" + "@bucket/x"
    err = refused(run("submit", "small.yaml", "--address", cluster.url, "--store", store))
    assert "secret" not in err and cluster.asked == []


def test_without_an_address_nothing_is_guessed(run: Run) -> None:
    assert "--address http://host:8265" in refused(run("submit", "small.yaml"))
    assert "--address http://host:8265" in refused(run("jobs"))


SUBMIT = [sys.executable, "-m", "sweeps.cli", "submit", "small.yaml", "--address"]


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({}, 2),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}, 2),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/such/file"}, 2),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}, 0),
    ],
    ids=["none", "wrong", "missing-file", "right"],
)
def test_a_cluster_that_wants_a_token(
    environment: dict[str, str], code: int, project: Path, cluster: FakeDashboard
) -> None:
    """In processes of their own: Ray reads a token once."""
    cluster.token = "a" * 64
    done = subprocess.run(
        [*SUBMIT, cluster.url], env=dict(os.environ) | {"HOME": str(project)} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said and "a" * 64 not in said and "b" * 64 not in said
    assert (len(cluster.jobs) == 1) == (code == 0)
    if code:
        assert "RAY_AUTH_TOKEN" in said


def test_bad_data_that_are_here_are_told_before_anything_is_asked_or_sent(
    run: Run, cluster: FakeDashboard, project: Path
) -> None:
    (project / "rows").mkdir()
    rows = project / "rows" / "ours.jsonl"
    rows.write_text('{"messages": [{"role": "narrator", "content": "x"}]}\n')
    spec = SPEC | {"variants": [{"name": "ours", "dataset": str(rows)}]}
    (project / "small.yaml").write_text(yaml.safe_dump(spec))
    code, out, err = run("submit", "small.yaml", "--address", cluster.url)
    assert (code, out, cluster.asked) == (2, "", [])
    assert "ours.jsonl" in err and "narrator" in err and "Traceback" not in err
    rows.unlink()  # then it may be at its place on the cluster alone
    assert run("submit", "small.yaml", "--address", cluster.url)[0] == 0
    assert posts(cluster) == 1
