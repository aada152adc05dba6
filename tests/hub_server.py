"""A model hub on loopback with one repository, which counts what it is asked for.

Knows nothing of who asks. The two addresses it answers are those that huggingface_hub asks:
https://huggingface.co/docs/huggingface_hub/package_reference/file_download.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.http_here import serving

REPO, REVISION = "ours/tiny", "a" * 40
SLOW_S = 0.5  # a file takes this long, so that others ask for it meanwhile


@dataclass
class HubServer:
    """Where it is, and how often each file's bytes were sent."""

    url: str = ""
    sent: Counter[str] = field(default_factory=Counter)


@contextmanager
def hub_server(
    files: Mapping[str, bytes], *, repo: str = REPO, revision: str = REVISION
) -> Iterator[HubServer]:
    """Serve `files` as the one revision of the one repository; `datasets/NAME` is one of data."""
    hub, lock = HubServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            name = path.removeprefix(f"/{repo}/resolve/{revision}/")
            if path.startswith("/api/"):
                body = _about(path, files, repo, revision)
                headers = {"Content-Type": "application/json"}
            elif name in files:
                body = files[name]
                etag = hashlib.sha256(body).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": revision}
                if with_body:
                    time.sleep(SLOW_S)
                    with lock:
                        hub.sent[name] += 1
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with serving(Handler) as hub.url:
        yield hub


def _about(path: str, files: Mapping[str, bytes], repo: str, revision: str) -> bytes:
    """What the API says of the repository: the list of its files, or all about it."""
    if "/tree/" in path:
        listed = [
            {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
            for name, body in files.items()
        ]
        return json.dumps(listed).encode()
    siblings = [{"rfilename": name} for name in files]
    return json.dumps(
        {"id": repo.removeprefix("datasets/"), "sha": revision, "siblings": siblings}
    ).encode()
