"""A stand-in for W&B's server on this machine, as far as a run with history needs one.

It can stop answering, from the start or once a run is there. Knows nothing of what a test does.
"""

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Mood = Literal["well", "hangs", "500"]


@dataclass
class WandbServer:
    """What it does with a request: `first` until a run is there, `then` from then on."""

    first: Mood = "well"
    then: Mood = "well"
    url: str = ""
    runs: set[str] = field(default_factory=set)
    history: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def wandb_server(first: Mood = "well", then: Mood = "well") -> Iterator[WandbServer]:
    """Serve on a free port of the loopback address until the block ends."""
    fake = WandbServer(first, then)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            mood = fake.then if fake.runs else fake.first
            if mood == "hangs":
                fake.ended.wait()
                return
            answer: Any = {}
            if mood == "well" and self.path.endswith("/graphql"):
                answer = {"data": _graphql(fake, json.loads(body))}
            elif mood == "well" and self.path.endswith("/file_stream"):
                files = json.loads(body).get("files") or {}
                fake.history += files.get("wandb-history.jsonl", {}).get("content", [])
            data = json.dumps(answer).encode()
            self.send_response(200 if mood == "well" else 500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_POST

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield fake
    finally:
        fake.ended.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _graphql(fake: WandbServer, request: dict[str, Any]) -> dict[str, Any]:
    query, variables = request["query"], request.get("variables") or {}
    if "upsertBucket" in query:
        fake.runs.add(variables["name"])
        project = {"name": "p", "entity": {"name": "e"}}
        bucket = {"id": "1", "name": variables["name"], "displayName": "n", "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "viewer" in query:
        return {"viewer": {"id": "1", "entity": "e", "username": "u", "flags": "{}"}}
    if "serverInfo" in query:
        return {"serverInfo": {"features": []}}
    if "createRunFiles" in query:
        files = [{"name": n, "uploadUrl": f"{fake.url}/files/{n}"} for n in variables["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
    return {"model": None}
