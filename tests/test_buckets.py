"""A store in a bucket: what S3 refuses, says or does in its own way, and who is told what."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from s3_server import S3Server
from small_sweep import SPEC, plan

from em.record import Record
from sweeps.buckets import BucketAway, told
from sweeps.files import Files, StoreError
from sweeps.store import Store, open_store
from tests.sweep_runs import EMSWEEP

pytestmark = pytest.mark.slow
# As a user may set it; here, for tests to be short.
FEW_TRIES = json.dumps(
    {"config_kwargs": {"retries": {"total_max_attempts": 2}, "read_timeout": 0.5}}
)


class Note(Record):
    text: str


@pytest.fixture
def files(s3: S3Server, request: pytest.FixtureRequest) -> Files:
    return Files(f"s3://stores/{request.node.name}")


def always(status: int, code: str, method: str = "") -> Callable[[dict[str, Any]], Any]:
    def quirk(environ: dict[str, Any]) -> tuple[int, str] | None:
        return (status, code) if environ["REQUEST_METHOD"].startswith(method) else None

    return quirk


# Conditional writes ---------------------------------------------------------------------------


def test_a_file_is_created_once_and_keeps_what_it_was(files: Files) -> None:
    assert files.create_record("x.json", Note(text="first"))
    assert not files.create_record("x.json", Note(text="second"))
    assert files.read_record("x.json", Note) == Note(text="first")
    files.remove("x.json")
    assert files.create_record("x.json", Note(text="third"))


def test_a_file_that_goes_up_in_parts_is_created_once_too(files: Files) -> None:
    big = Note(text="x" * 101 * 2**20)  # s3fs sends 100 MiB and more in parts
    assert files.create_record("big.json", big)
    assert not files.create_record("big.json", big)
    assert files.sizes("") == {"big.json": (len(big.text) + len('{\n "text": ""\n}\n'), None)}


def test_a_service_that_names_no_condition_in_its_refusal_is_understood(s3: S3Server) -> None:
    """Only Amazon says which condition failed."""
    files = Files(s3.make_bucket("unnamed"))
    assert files.create_record("x.json", Note(text="first"))
    s3.quirks["unnamed"] = always(412, "PreconditionFailed", "PUT")
    assert not files.create_record("x.json", Note(text="second"))


def test_a_conflict_of_two_at_once_is_tried_again(s3: S3Server) -> None:
    left = [2]

    def conflict(environ: dict[str, Any]) -> tuple[int, str] | None:
        if environ["REQUEST_METHOD"] == "PUT" and left[0]:
            left[0] -= 1
            return 409, "ConditionalRequestConflict"
        return None

    files = Files(s3.make_bucket("conflicts", conflict))
    assert files.create_record("x.json", Note(text="first"))
    left[0] = 1
    assert not files.create_record("x.json", Note(text="second"))
    left[0] = 10**6
    with pytest.raises(BucketAway, match="ConditionalRequestConflict"):
        files.create_record("y.json", Note(text="first"))


def test_a_service_without_conditions_is_used_with_a_warning(
    s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(environ: dict[str, Any]) -> tuple[int, str] | None:
        return (501, "NotImplemented") if "HTTP_IF_NONE_MATCH" in environ else None

    files = Files(s3.make_bucket("unconditional", unknown))
    with caplog.at_level(logging.WARNING):
        assert files.create_record("x.json", Note(text="first"))
        assert not files.create_record("x.json", Note(text="second"))
    assert [r.message for r in caplog.records if "no conditional writes" in r.message] != []
    assert files.read_record("x.json", Note) == Note(text="first")


def test_a_service_that_ignores_conditions_is_told_as_a_store_is_made(
    s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    def ignore(environ: dict[str, Any]) -> None:
        environ.pop("HTTP_IF_NONE_MATCH", None)

    with caplog.at_level(logging.WARNING):
        Store("s3://stores/honest").create()
        assert caplog.records == []
        Store(s3.make_bucket("ignores", ignore)).create()
    assert ["two writers" in record.message for record in caplog.records] == [True]


# What a bucket has otherwise than a folder ----------------------------------------------------


def test_a_folder_made_by_hand_is_an_empty_place(s3: S3Server) -> None:
    fs = fsspec.filesystem("s3")
    fs.call_s3("put_object", Bucket="stores", Key="by-hand/", Body=b"")
    store = Store("s3://stores/by-hand")
    assert store.files.names("") == []
    store.create()
    assert store.files.names("") == ["store.json"]


def test_what_may_not_be_removed_is_told(s3: S3Server) -> None:
    files = Files(s3.make_bucket("locked"))
    files.write("a/b", b"x")
    files.write("a/c", b"x")
    # Both ways of removing: each by its own request, or many by one, whose answer lists refusals.
    s3.quirks["locked"] = lambda e: (
        (403, "AccessDenied")
        if e["REQUEST_METHOD"] == "DELETE" or "delete" in e["QUERY_STRING"]
        else None
    )
    with pytest.raises(
        StoreError, match=r"cannot write s3://locked/a: access was refused.*may list"
    ):
        files.remove("a")
    assert sorted(files.sizes("a")) == ["a/b", "a/c"]


def test_a_bucket_itself_can_be_a_store(s3: S3Server) -> None:
    url = s3.make_bucket("whole")
    open_store(f"{url}/").create()
    assert open_store(url).files.names("") == ["store.json"]
    assert open_store("s3a://whole").url == url


# Errors ---------------------------------------------------------------------------------------


def test_a_bucket_that_throttles_is_asked_again_and_then_left_to_another_try(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2]

    def busy(environ: dict[str, Any]) -> tuple[int, str] | None:
        left[0] -= 1
        return (503, "SlowDown") if left[0] >= 0 else None

    files = Files(s3.make_bucket("busy"))
    s3.quirks["busy"] = busy
    files.write("x", b"1")
    assert files.read("x") == b"1"
    monkeypatch.setitem(fsspec.config.conf, "s3", json.loads(FEW_TRIES))
    left[0] = 10**6
    before = len(s3.requests)
    with pytest.raises(ConnectionError, match="SlowDown"):
        Files("s3://busy").write("x", b"2")
    assert len(s3.requests) - before == 2


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_what_is_refused_is_not_tried_again(s3: S3Server, code: str) -> None:
    files = Files(s3.make_bucket(f"refuses-{code.lower()}", always(403, code)) + "/x")
    before = len(s3.requests)
    for do in (
        lambda: files.write("x", b"1"),
        lambda: files.create_record("x", Note(text="x")),
        lambda: files.read("x"),
        lambda: files.names(""),
        lambda: files.sizes(""),
        lambda: files.remove("x"),
        lambda: files.move("x", "y"),
    ):
        with pytest.raises(StoreError, match=r"access was refused.*What to do: .*credentials"):
            do()
    assert len(s3.requests) - before < 20


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    plan(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def refused(spec: Path, url: str, *command: str, **environment: str | None) -> str:
    """Run a command, which must end by one paragraph and exit code 2; return the paragraph."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [EMSWEEP, *(command or ("status",)), str(spec), "--store", url],
        capture_output=True, text=True, timeout=300, check=False,
        env={name: value for name, value in variables.items() if value is not None},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert "key-of-the-test" not in said and "id-of-the-test" not in said
    assert said.count("emsweep: ") == 1
    return " ".join(done.stderr.split())


@pytest.mark.parametrize("command", ["status", "run"])
def test_a_bucket_that_is_not_there(s3: S3Server, spec: Path, command: str) -> None:
    said = refused(spec, "s3://no-such-bucket/x", command)
    assert "there is no bucket 'no-such-bucket'" in said
    assert "correct the name, or make the bucket" in said


def test_no_credentials(s3: S3Server, spec: Path) -> None:
    said = refused(spec, "s3://stores/x", AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    assert "no credentials are to be had" in said
    assert "AWS_ACCESS_KEY_ID" in said


def test_access_denied(s3: S3Server, spec: Path) -> None:
    url = s3.make_bucket("denied", always(403, "AccessDenied"))
    assert "access was refused" in refused(spec, f"{url}/x")


def test_a_bucket_that_may_be_read_and_not_written(s3: S3Server, spec: Path) -> None:
    url = s3.make_bucket("read-only", always(403, "AccessDenied", "PUT"))
    assert "cannot write s3://read-only/x/" in refused(spec, f"{url}/x", "run")


def test_an_address_that_never_answers(s3: S3Server, spec: Path, silent: str) -> None:
    said = refused(spec, "s3://stores/x", AWS_ENDPOINT_URL=silent, FSSPEC_S3=FEW_TRIES)
    assert "Read timeout" in said and "see that this machine reaches that address" in said


def test_an_address_where_nobody_listens(s3: S3Server, spec: Path, closed: str) -> None:
    said = refused(spec, "s3://stores/x", AWS_ENDPOINT_URL=closed, FSSPEC_S3=FEW_TRIES)
    assert "Could not connect" in said and closed in said
    assert "AWS_ENDPOINT_URL" in said


def test_what_a_client_says_is_told_without_credentials() -> None:
    key = "AKIA" + "B2" * 8
    said = told(OSError(f"no such user {key} at http://me:" + "secret@host/x?Signature=ab%2F&y\n"))
    assert said == "no such user *** at http://***host/x?Signature=***&y"


def test_a_url_that_can_be_no_store(s3: S3Server) -> None:
    with pytest.raises(StoreError, match="must not hold a name or password") as error:
        open_store("s3://me:" + "secret" + "@stores/x")
    assert "secret" not in str(error.value)
    for url in ("s3://", "gs://"):
        with pytest.raises(StoreError, match=r"names no bucket: expected s3://BUCKET/FOLDER|gcs"):
            open_store(url)
    with pytest.raises(StoreError, match=r"Invalid bucket name.*store's URL"):
        open_store("s3://Bad_Bucket!/x")


def test_the_package_that_is_not_installed(tmp_path: Path, spec: Path) -> None:
    (tmp_path / "s3fs.py").write_text("raise ImportError('No module named s3fs')")
    there = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    said = refused(spec, "s3://stores/x", PYTHONPATH=there)
    assert "pip install 'em-sweeps[s3]'" in said


def test_the_address_may_be_given_to_fsspec(s3: S3Server) -> None:
    """And what a user set for the client stays, beside how long it tries."""
    Store("s3://stores/by-fsspec").create()
    ask = (
        "from sweeps.store import open_store; s = open_store('s3://stores/by-fsspec'); "
        "print(s.files.names(''), s.files.fs.config_kwargs['s3'], "
        "s.files.fs.config_kwargs['read_timeout'], 'connect_timeout' in s.files.fs.config_kwargs)"
    )
    given = {"config_kwargs": {"s3": {"addressing_style": "path"}, "read_timeout": 7}}
    variables = {n: v for n, v in os.environ.items() if n != "AWS_ENDPOINT_URL"}
    variables |= {"FSSPEC_S3_ENDPOINT_URL": s3.url, "FSSPEC_S3": json.dumps(given)}
    said = subprocess.run(
        [sys.executable, "-c", ask], env=variables, capture_output=True, text=True, timeout=120,
        check=True,
    ).stdout  # fmt: skip
    assert said.split("\n")[0] == "['store.json'] {'addressing_style': 'path'} 7 True"
