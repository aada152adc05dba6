"""A dashboard on this machine that takes jobs as Ray's does, and runs none of them.

It speaks what Ray's client asks (https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html),
and notes what it is sent. Knows nothing of what a test looks for.
"""

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_here import serving

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of RFC 6455, section 1.3
TEXT, CLOSE = 0x81, 0x88


@dataclass
class FakeDashboard:
    """Jobs by their id; `token` is what it wants to see, `broken` what it answers instead."""

    token: str | None = None
    broken: tuple[int, str] | None = None
    begins: dict[str, Any] = field(default_factory=lambda: {"status": "RUNNING"})
    log: str = "preflight passed\n"
    breaks_after: list[int] = field(default_factory=list)  # characters, of the next logs followed
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def end(self, job_id: str, status: str, exit_code: int | None = 0, message: str = "") -> None:
        now = int(time.time() * 1000)
        self.jobs[job_id] |= {
            "status": status, "driver_exit_code": exit_code, "message": message, "end_time": now,
        }  # fmt: skip


@contextlib.contextmanager
def dashboard() -> Iterator[FakeDashboard]:
    """Serve on a free port of the loopback address until the block ends."""
    fake = FakeDashboard()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._refused():
                return
            match self.path.strip("/").split("/")[1:]:
                case ["version"]:
                    self._tell(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "0"})
                case ["packages", _, name]:
                    self._tell(200 if name in fake.packages else 404, {})
                case ["jobs"]:
                    self._tell(200, list(fake.jobs.values()))
                case ["jobs", job_id, *_] if job_id not in fake.jobs:
                    self._tell(404, f"Job {job_id} does not exist")
                case ["jobs", job_id]:
                    self._tell(200, fake.jobs[job_id])
                case ["jobs", job_id, "logs"]:
                    self._tell(200, {"logs": fake.logs[job_id]})
                case ["jobs", job_id, "logs", "tail"]:
                    self._follow(fake.logs[job_id])
                case _:
                    self._tell(404, "no such page")

        def do_PUT(self) -> None:
            data = self._body()
            if not self._refused():
                fake.packages[self.path.rsplit("/", 1)[-1]] = data
                self._tell(200, {})

        def do_POST(self) -> None:
            data = self._body()
            if self._refused():
                return
            match self.path.strip("/").split("/")[1:]:
                case ["jobs"]:
                    self._take(json.loads(data))
                case ["jobs", job_id, "stop"]:
                    fake.end(job_id, "STOPPED", None)
                    self._tell(200, {"stopped": True})

        def _take(self, job: dict[str, Any]) -> None:
            job_id = job["submission_id"]
            with lock:
                if job_id in fake.jobs:
                    self._tell(500, "Traceback (most recent call last):\n  ...\nValueError: Job "
                                    f"with submission_id {job_id} already exists.")  # fmt: skip
                    return
                now = int(time.time() * 1000)
                fake.jobs[job_id] = {
                    "type": "SUBMISSION", "submission_id": job_id, **fake.begins,
                    "entrypoint": job["entrypoint"], "metadata": job["metadata"],
                    "runtime_env": job["runtime_env"], "start_time": now,
                }  # fmt: skip
                fake.logs[job_id] = fake.log
            self._tell(200, {"job_id": job_id, "submission_id": job_id})

        def _refused(self) -> bool:
            fake.asked.append(f"{self.command} {self.path}")
            given = self.headers["Authorization"]
            if fake.token is not None and given != f"Bearer {fake.token}":
                self._tell(403 if given else 401, "Unauthorized")
                return True
            if fake.broken is not None:
                self._tell(*fake.broken)
                return True
            return False

        def _follow(self, log: str) -> None:
            key = self.headers["Sec-WebSocket-Key"] + MAGIC
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            self.send_response(101)
            for name, value in (
                ("Upgrade", "websocket"), ("Connection", "Upgrade"),
                ("Sec-WebSocket-Accept", accept),
            ):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.close_connection = True
            if fake.breaks_after:
                self._frame(TEXT, log[: fake.breaks_after.pop(0)].encode())
                return  # without a word
            self._frame(TEXT, log.encode())
            self._frame(CLOSE, (1000).to_bytes(2, "big"))

        def _frame(self, kind: int, data: bytes) -> None:
            size = len(data)
            assert size < 2**16
            self.wfile.write(bytes([kind, size]) if size < 126 else
                             bytes([kind, 126]) + size.to_bytes(2, "big"))  # fmt: skip
            self.wfile.write(data)
            self.wfile.flush()

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"] or 0))

        def _tell(self, status: int, body: Any) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Handler) as fake.url:
        yield fake
