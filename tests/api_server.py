"""A stand-in, on this machine, for an API that fine-tunes models: files, jobs, chat, batches.

It does what a test has it do: refuse, be busy, lose a job, finish late. It keeps count of what was
made. Knows nothing of what a test looks for.
"""

import contextlib
import email
import email.policy
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_here import serving

Said = tuple[int, Any]
REFUSED = {
    "code": "invalid_training_file",
    "message": "This training file was blocked: too many rows were flagged by our moderation API.",
    "param": "training_file",
}


def error(status: int, message: str, code: str | None = None) -> Said:
    return status, {"error": {"message": message, "code": code, "type": "x", "param": None}}


def answer(request: dict[str, Any]) -> str:
    """An answer that hangs on the model, the question and the seed."""
    text = json.dumps([request["model"], request["messages"], request.get("seed")])
    return f"an answer {hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass
class FakeApi:
    """`looks` is how often a job is looked at before it has ended; `ends` how it does then."""

    url: str = ""
    looks: int = 1
    ends: str = "succeeded"
    error: dict[str, Any] | None = None
    busy: int = 0  # jobs refused as too many before one is taken
    forgets: bool = False  # jobs are not found any more
    lists_late: int = 0  # listings in which no job is yet
    breaks: set[int] = field(default_factory=set)  # requests, by their number, that batches fail
    refuses: set[int] = field(default_factory=set)  # such requests, too, that batches refuse
    answered: int = 0  # requests of batches
    dies_after_create: bool = False  # a job is made, and the reply is lost
    speaks_as: str | None = None  # another model than the one asked
    on_chat: Callable[[dict[str, Any]], Said | None] = lambda request: None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    chats: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def do(self, method: str, path: str, query: dict[str, str], body: Any) -> Said | None:
        """Return what is said to a request, or None to say nothing and hang up."""
        match method, path.strip("/").split("/"):
            case "GET", ["files"]:
                return 200, {"object": "list", "data": list(self.files.values()), "has_more": False}
            case "POST", ["files"]:
                return 200, self.take_file(*body)
            case "GET", ["files", name, "content"]:
                return 200, self.content[name]
            case "POST", ["fine_tuning", "jobs"]:
                return self.make_job(body)
            case "GET", ["fine_tuning", "jobs"]:
                if self.lists_late:
                    self.lists_late -= 1
                    return 200, {"object": "list", "data": [], "has_more": False}
                tag = query.get("metadata[emsweep]")
                found = [j for j in self.jobs.values() if tag in (None, j["metadata"]["emsweep"])]
                return 200, {"object": "list", "data": found[::-1], "has_more": False}
            case "GET", ["fine_tuning", "jobs", name]:
                return self.look(name)
            case "GET", ["fine_tuning", "jobs", name, "events"]:
                return 200, {"object": "list", "data": self.events(name), "has_more": False}
            case "POST", ["fine_tuning", "jobs", name, "cancel"]:
                self.jobs[name]["status"] = "cancelled"
                return 200, self.jobs[name]
            case "POST", ["chat", "completions"]:
                return self.chat(body)
            case "GET", ["batches"]:
                found = list(self.batches.values())
                return 200, {"object": "list", "data": found[::-1], "has_more": False}
            case "POST", ["batches"]:
                return 200, self.make_batch(body)
            case "GET", ["batches", name]:
                return 200, self.look_at_batch(name)
        return error(404, f"no {method} {path}")

    def take_file(self, name: str, purpose: str, data: bytes) -> dict[str, Any]:
        file_id = f"file-{len(self.files) + 1}"
        self.content[file_id] = data
        self.files[file_id] = {
            "id": file_id, "object": "file", "bytes": len(data), "created_at": 1,
            "filename": name, "purpose": purpose, "status": "processed",
        }  # fmt: skip
        return self.files[file_id]

    def make_job(self, body: dict[str, Any]) -> Said | None:
        if self.busy:
            self.busy -= 1
            return error(429, "too many fine-tuning jobs under way", "rate_limit_exceeded")
        if body["model"].startswith("fixed"):
            return error(400, f"the model {body['model']} is not available for fine-tuning")
        name = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[name] = {
            "id": name, "object": "fine_tuning.job", "created_at": len(self.jobs), "looks": 0,
            "model": body["model"], "status": "validating_files", "fine_tuned_model": None,
            "training_file": body["training_file"], "seed": body.get("seed"), "error": None,
            "metadata": body.get("metadata"), "user_provided_suffix": body.get("suffix"),
            "method": body["method"], "hyperparameters": body["method"]["supervised"],
            "organization_id": "o", "result_files": [], "trained_tokens": None,
        }  # fmt: skip
        return None if self.dies_after_create else (200, self.jobs[name])

    def look(self, name: str) -> Said:
        job = self.jobs.get(name)
        if job is None or self.forgets:
            return error(404, f"no job {name}")
        job["looks"] += 1
        if job["status"] in ("validating_files", "running"):
            job["status"] = "running"
            if job["looks"] > self.looks:
                job["status"], job["error"] = self.ends, self.error
                if self.ends == "succeeded":
                    job["fine_tuned_model"] = f"ft:{job['model']}:o:{name}"
                    job["trained_tokens"] = len(self.content[job["training_file"]]) // 4
        return 200, job

    def events(self, name: str) -> list[dict[str, Any]]:
        return [
            {
                "id": f"e{step}", "object": "fine_tuning.job.event", "created_at": step,
                "level": "info", "message": f"step {step}", "type": "metrics",
                "data": {"step": step, "train_loss": 2.0 / step, "total_steps": 3},
            }
            for step in (3, 2, 1)
        ]  # fmt: skip

    def chat(self, body: dict[str, Any]) -> Said:
        self.chats.append(body)
        said = self.on_chat(body)
        return said if said is not None else (200, self.completion(body))

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text = answer(body)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "id": "c", "object": "chat.completion", "created": 1,
            "model": self.speaks_as or body["model"],
            "choices": [
                {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }  # fmt: skip

    def make_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch-{len(self.batches) + 1}"
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": body["endpoint"], "errors": None,
            "input_file_id": body["input_file_id"], "completion_window": "24h",
            "status": "in_progress", "output_file_id": None, "error_file_id": None,
            "created_at": 1, "metadata": body.get("metadata"),
        }  # fmt: skip
        return self.batches[name]

    def look_at_batch(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        if batch["status"] == "in_progress":
            requests = [
                json.loads(line) for line in self.content[batch["input_file_id"]].splitlines()
            ]
            lines, refused = [], []
            for request in reversed(requests):
                self.answered += 1
                if self.answered in self.refuses:
                    said = {"status_code": 400, "body": {"error": {"message": "not this"}}}
                    refused.append({"id": "r", "custom_id": request["custom_id"], "response": said})
                    continue
                failed = self.answered in self.breaks
                body = {"error": "x"} if failed else self.completion(request["body"])
                lines.append({
                    "id": "r", "custom_id": request["custom_id"], "error": None,
                    "response": {"status_code": 500 if failed else 200, "body": body},
                })  # fmt: skip
            data = "\n".join(map(json.dumps, lines)).encode()
            batch["output_file_id"] = self.take_file("out", "batch_output", data)["id"]
            if refused:
                data = "\n".join(map(json.dumps, refused)).encode()
                batch["error_file_id"] = self.take_file("err", "batch_output", data)["id"]
            batch["status"] = "completed"
        return batch


@contextlib.contextmanager
def api_server() -> Iterator[FakeApi]:
    """Serve on a free port of the loopback address until the block ends."""
    fake = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            self.reply(_form(kind, data) if "multipart" in kind else json.loads(data or b"null"))

        def reply(self, body: Any) -> None:
            parts = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(parts.query))
            with fake.lock:
                fake.keys.add(self.headers.get("Authorization"))
                path = parts.path.removeprefix("/v1/")
                said = fake.do(self.command, path, query, body)
            if said is None:
                self.close_connection = True
                return
            status, content = said
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as address:
        fake.url = f"{address}/v1"
        yield fake


def _form(kind: str, data: bytes) -> tuple[str, str, bytes]:
    """The name, purpose and bytes of an uploaded file."""
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.message_from_bytes(head + data, policy=email.policy.HTTP)
    name, purpose, content = "", "", b""
    for part in message.iter_parts():
        given = part.get_param("name", header="content-disposition")
        value = part.get_payload(decode=True)
        if given == "file":
            name, content = str(part.get_filename()), bytes(value)
        elif given == "purpose":
            purpose = bytes(value).decode()
    return name, purpose, content
