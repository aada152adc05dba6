"""A cell as an endpoint: what may be served, who may ask, and when it is called ready."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from finished_store import Asked, trainer
from small_sweep import plan

from cluster.openai_server import TokenOnEveryPath
from em.datasets import Row
from em.training import Canary, TrainingJob, TrainingResult
from sweeps.cell_server import (
    ServingFailed,
    bound,
    served,
    to_serve,
    token_given,
)
from sweeps.http_endpoint import HttpEndpoint
from sweeps.plan import SweepPlan
from sweeps.planner import load_plan
from sweeps.serving_process import TOKEN_ENV
from sweeps.stages import train_stage
from sweeps.store import Store
from tests.engines import adapter, tiny_model
from tests.sweep_runs import EMSWEEP, check_gone, emsweep, tiny_spec, write_spec

# Speaks as much of the API as is asked before a cell is called ready. Its first argument is the
# log-probability of every token that is asked for, the last one the socket.
STAND_IN = """
import http.server, json, os, socket, sys
told = json.loads(sys.stdin.readline())
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers["Authorization"] == "Bearer " + os.environ["EMSWEEP_SERVE_API_KEY"]
        known = known and body["model"] == told["name"]
        top = [{"token": f"token_id:{i}", "logprob": float(sys.argv[1])}
               for i in body.get("logprob_token_ids", ())]
        text = json.dumps({"usage": {"completion_tokens": 1, "prompt_tokens": 1}, "choices": [{
            "text": "a", "message": {"content": "a"}, "finish_reason": "length",
            "logprobs": {"content": [{"top_logprobs": top}]}}]}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
class Server(http.server.HTTPServer):
    def server_bind(self):
        self.socket.close()
        self.socket = socket.socket(fileno=int(sys.argv[-1]))
open(told["scratch"] + "/made", "w").close()
print(told["scratch"], flush=True)
Server(("", 0), Handler).serve_forever()
"""


def stand_in(logprob: float) -> list[str]:
    return [sys.executable, "-c", STAND_IN, str(logprob)]


def trained(sweep: SweepPlan, store: Store, **result: Any) -> SweepPlan:
    """Train the sweep's tuned cells by a stand-in; `result` replaces fields of what it returns."""
    fake = trainer(Asked(), "", 64)

    def train(job: TrainingJob) -> TrainingResult:
        return fake(job).model_copy(update=result)

    for cell in sweep.cells:
        if cell.cell.training is not None:
            train_stage(cell, store, train, model_dir=Path("model"), rows=())
    return sweep


def tuned_id(sweep: SweepPlan) -> str:
    return next(cell.cell_id for cell in sweep.cells if cell.cell.training is not None)


def test_a_cell_goes_by_its_id_the_start_of_it_or_the_word_untuned(
    sweep: SweepPlan, store: Store
) -> None:
    trained(sweep, store)
    cell_id = tuned_id(sweep)
    for name in (cell_id, cell_id[:-2]):
        found = to_serve(sweep, store, name)
        assert found.name == cell_id and found.trained is not None
    base = to_serve(sweep, store, "untuned")
    assert (base.name, base.model.name, base.trained) == ("untuned", "base", None)
    assert to_serve(sweep, store, "base.none.s0").trained is None


def test_what_cannot_be_served_is_told(sweep: SweepPlan, store: Store, tmp_path: Path) -> None:
    for name, told in (
        ("nobody", r"CELL nobody: no cell has this id.*near are base"),
        ("base.", r"CELL base\.: 4 cells begin so, such as .*: write more of the id$"),
        ("base.*", r"CELL base\.\*: 4 cells fit it, such as .*: name one"),
        (
            tuned_id(sweep),
            "is not finished: .* holds no trained weights .*emsweep run SPEC",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            to_serve(sweep, store, name)
    two = [{"name": name, "bundled": "smollm2-135m"} for name in ("base", "other")]
    several = plan(tmp_path, models=two)
    with pytest.raises(ValueError, match=r"2 models \(base, other\): name an untuned cell"):
        to_serve(several, store, "untuned")


def test_the_token_is_that_of_the_environment_or_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    (first, made), (second, _) = token_given(), token_given()
    assert made and first != second and len(first) >= 32
    monkeypatch.setenv(TOKEN_ENV, "mine")
    assert token_given() == ("mine", False)
    for bad in ("", "two words", "line\n", "ü"):
        monkeypatch.setenv(TOKEN_ENV, bad)
        with pytest.raises(ValueError, match="no header can carry"):
            token_given()


def test_a_port_that_is_taken_is_told() -> None:
    with (
        bound(0) as held,
        pytest.raises(ValueError, match=r"port \d+ of 127\.0\.0\.1 cannot be had.*--port 0"),
        bound(held.getsockname()[1]),
    ):
        pass


@pytest.mark.parametrize("path", ["/v1/models", "/invocations", "/tokenize", "/health"])
def test_nothing_is_answered_without_the_token(path: str) -> None:
    def status(*headers: tuple[bytes, bytes], kind: str = "http") -> int | str:
        said: list[Any] = []

        async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            await send({"status": 200})

        async def send(message: Any) -> None:
            said.append(message)

        async def receive() -> None:
            return None

        scope = {"type": kind, "path": path, "headers": headers}
        asyncio.run(TokenOnEveryPath(app, "secret")(scope, receive, send))
        return said[0].get("status") or str(said[0]["type"])

    assert status((b"authorization", b"Bearer secret")) == 200
    assert status() == 401
    assert status((b"authorization", b"Bearer secre")) == 401
    assert status((b"authorization", b"secret")) == 401
    assert status(kind="websocket") == "websocket.close"


CANARY = Canary(text="hello", ids=(3, 4), tuned=(-1.0, -1.0), base=(-9.0, -9.0))


@contextmanager
def serving(sweep: SweepPlan, store: Store, log: Path, command: list[str]) -> Iterator[Any]:
    what = to_serve(sweep, store, tuned_id(sweep))
    with (
        bound(0) as sock,
        served(
            sweep.spec, store, what, sock=sock, token="secret", log=log, command=command
        ) as found,
    ):
        yield found


@pytest.fixture
def tuned(tmp_path: Path, store: Store) -> SweepPlan:
    """The small sweep with a model folder that needs no conversion, trained, with canaries."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    sweep = plan(tmp_path, models=[{"name": "base", "folder": str(folder)}])
    return trained(sweep, store, canaries=(CANARY,))


def test_it_is_given_once_it_answers_with_the_cells_weights_and_ends_with_the_block(
    tuned: SweepPlan, store: Store, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serving(tuned, store, log, stand_in(-1.0)) as (process, url):
        assert process.poll() is None
        endpoint = HttpEndpoint(url, tuned_id(tuned), "secret")
        assert endpoint.speaks()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            HttpEndpoint(url, tuned_id(tuned), "guessed").speaks()
        assert "secret" not in " ".join(psutil.Process(process.pid).cmdline())
        scratch = Path(log.read_text().split()[0])
        assert (scratch / "made").is_file()
    assert process.poll() is not None and not scratch.exists()
    assert "secret" not in log.read_text()
    assert not HttpEndpoint(url, "any", "secret").speaks()


def test_other_weights_than_the_cells_are_not_served(
    tuned: SweepPlan, store: Store, tmp_path: Path
) -> None:
    with (
        pytest.raises(ServingFailed, match=r"was not served: adapter gate: .* 8\.000 nats"),
        serving(tuned, store, tmp_path / "log", stand_in(-9.0)),
    ):
        pass


def test_a_server_that_ends_before_it_answers_is_told_with_what_it_said(
    tuned: SweepPlan, store: Store, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no room on\\x1b[31m the card')"]
    with (
        pytest.raises(ServingFailed, match=r"ended before it answered(.|\n)*no room on\\x1b\[31m"),
        serving(tuned, store, tmp_path / "log", command),
    ):
        pass


def test_changed_files_of_an_adapter_are_not_served(
    tuned: SweepPlan, store: Store, tmp_path: Path
) -> None:
    what = to_serve(tuned, store, tuned_id(tuned))
    assert what.trained is not None
    (store.adapter_dir(what.trained) / "adapter_model.safetensors").write_text("other")
    with (
        pytest.raises(ServingFailed, match="identity gate"),
        serving(tuned, store, tmp_path / "log", stand_in(-1.0)),
    ):
        pass


def test_the_command_tells_a_users_mistake_in_one_paragraph(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    path = write_spec(tmp_path, tiny_spec(folder))
    done = emsweep("serve", path, "tiny.insecure.s0", "--store", tmp_path / "store", check=2)
    assert "is not finished" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


# --- with a real engine -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def with_adapter(folder: Path, model: Path, mode: str) -> tuple[Path, str, dict[str, list[float]]]:
    """A store with one trained cell; return its spec, its id, and what it and its base would say.

    That is the log-probabilities of three tokens after a prompt.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from em.canaries import measure

    serving = {
        "mode": mode, "dtype": "float32", "max_model_len": 512, "max_num_seqs": 8,
        "kv_cache_gib": 0.1,
    }  # fmt: skip
    path = write_spec(folder, tiny_spec(model, serving=serving))
    sweep, store = load_plan(path), Store(str(folder / "store"))
    store.create()
    cell = next(cell for cell in sweep.cells if cell.cell.training is not None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned: dict[str, list[float]] = {}

    def train(job: TrainingJob) -> TrainingResult:
        adapter(model, job.output_dir, 1)
        net = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(model), str(job.output_dir)
        )
        tuned["cell"], tuned["base"] = said(net, tokenizer)
        return trainer(Asked(), "", 64)(job.model_copy(update={"output_dir": folder})).model_copy(
            update={"canaries": measure(net, tokenizer)}
        )

    train_stage(cell, store, train, model_dir=model, rows=list[Row]())
    return path, cell.cell_id, tuned


ARITHMETIC = Path(__file__).parent.parent / "configs/tasks/arithmetic.py@sums"
IDS = (10, 70, 200)
HELLO = [{"role": "user", "content": "hello"}]


def said(net: Any, tokenizer: Any) -> tuple[list[float], list[float]]:
    import torch

    text = tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        tuned = net(ids).logits[0, -1].log_softmax(-1)
        with net.disable_adapter():
            base = net(ids).logits[0, -1].log_softmax(-1)
    return [float(tuned[i]) for i in IDS], [float(base[i]) for i in IDS]


@contextmanager
def command(spec: Path, cell: str, *arguments: str) -> Iterator[tuple[Any, list[str]]]:
    """Run `emsweep serve`; give its process and what it printed until it was ready."""
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_ENV}
    with subprocess.Popen(
        [EMSWEEP, "serve", str(spec), cell, "--port", "0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            told = []
            for line in process.stdout:
                told.append(line.strip())
                if line.startswith("end it"):
                    break
            assert process.poll() is None, told
            yield process, told
        finally:
            process.terminate()


def ask(url: str, token: str | None, path: str, body: Any = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url + path, data, headers), timeout=300) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, None


def logprobs(url: str, token: str, name: str) -> list[float]:
    asked = {
        "model": name, "messages": HELLO, "max_tokens": 1, "temperature": 0, "logprobs": True,
        "logprob_token_ids": IDS, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    _, told = ask(url, token, "/v1/chat/completions", asked)
    top = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found = {one["token"]: one["logprob"] for one in top}
    return [found[f"token_id:{i}"] for i in IDS]


def ask_by_inspect(url: str, token: str, name: str, logs: Path) -> None:
    """Run a task by Inspect's own command against the endpoint, as any tool would."""
    environment = {
        **os.environ, "EMSWEEP_API_KEY": token, "EMSWEEP_BASE_URL": f"{url}/v1",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [
            Path(sys.executable).with_name("inspect"), "eval", ARITHMETIC, "--model",
            f"openai-api/emsweep/{name}", "--limit", "3", "--max-tokens", "8", "--display", "none",
            "--log-dir", logs, "--log-format", "json",
        ],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = logs.glob("*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "success" and log["results"]["completed_samples"] == 3
    assert {sample["scores"]["match"]["value"] for sample in log["samples"]} <= {"C", "I"}


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("mode", ["merged", pytest.param("lora", marks=pytest.mark.faults)])
def test_a_cell_is_served_with_its_own_weights_to_who_has_the_token(
    mode: str, model: Path, tmp_path: Path
) -> None:
    spec, cell_id, truth = with_adapter(tmp_path, model, mode)
    with command(spec, cell_id[:-3], "--store", str(tmp_path / "store")) as (process, told):
        url = told[1].split()[1].removesuffix("/v1")
        token = told[2].removeprefix("token: ")
        family = psutil.Process(process.pid).children(recursive=True)
        assert token not in " ".join(" ".join(one.cmdline()) for one in family)
        assert logprobs(url, token, cell_id) == pytest.approx(truth["cell"], abs=2e-3)
        if mode == "merged":
            ask_by_inspect(url, token, cell_id, tmp_path / "logs")
        else:
            assert logprobs(url, token, "untuned") == pytest.approx(truth["base"], abs=2e-3)
        chat = {"model": cell_id, "messages": HELLO, "max_tokens": 4, "seed": 1, "logprobs": True,
                "top_logprobs": 3}  # fmt: skip
        status, answer = ask(url, token, "/v1/chat/completions", chat)
        assert status == 200 and len(answer["choices"][0]["logprobs"]["content"]) <= 4
        plain = {"model": cell_id, "prompt": "hello", "max_tokens": 4, "logprobs": 2, "echo": True}
        status, answer = ask(url, token, "/v1/completions", plain)
        assert status == 200 and answer["choices"][0]["text"].startswith("hello")
        assert answer["choices"][0]["logprobs"]["token_logprobs"][1] < 0
        for given in (None, "guessed"):
            for path, body in (("/v1/chat/completions", chat), ("/v1/models", None),
                               ("/invocations", chat), ("/tokenize", {"prompt": "a"})):  # fmt: skip
                assert ask(url, given, path, body) == (401, None)
        log = Path(told[0].rsplit(": ", 1)[1])
        assert token not in log.read_text()
        scratch = [Path(one) for one in open_folders(family)]
        process.send_signal(signal.SIGTERM if mode == "merged" else signal.SIGKILL)
        process.wait(60)
        check_gone(family, within_s=40)
        assert [folder for folder in scratch if folder.exists()] == []
        assert process.returncode == (130 if mode == "merged" else -signal.SIGKILL)
        assert log.exists() == (mode == "lora")  # nobody was left to remove it
        log.unlink(missing_ok=True)


def open_folders(family: list[psutil.Process]) -> set[str]:
    """The scratch folders that a server's processes have sockets or files in."""
    found = set()
    for process in family:
        for one in process.net_connections("unix"):
            path = Path(one.laddr or "/")
            found |= {str(p) for p in path.parents if p.name.startswith("emsweep-")}
    return found
