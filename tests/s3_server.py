"""A real S3 API on loopback (moto's), and what real services do otherwise than moto's.

Knows nothing of stores, or of what a test looks for.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# What a bucket of that name answers to a request instead of moto, or None; it may change the
# request. A status and an error code: (503, "SlowDown").
Quirk = Callable[[dict[str, Any]], tuple[int, str] | None]

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "id-of-the-test",
    "AWS_SECRET_ACCESS_KEY": "key-of-the-test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/aws",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/aws",
    "NO_PROXY": "127.0.0.1",
}


class S3Server:
    """The server, as a WSGI application that answers one request at a time.

    Between its comparing and its writing moto lets another request in; S3 does not.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.quirks: dict[str, Quirk] = {}
        self.requests: list[tuple[str, str]] = []  # method and path
        self.url = ""
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.requests.append((method, path))
            quirk = self.quirks.get(path.split("/")[1])
            refusal = quirk(environ) if quirk else None
            if refusal is None:
                return list(self._app(environ, start_response))
            status, code = refusal
            start_response(f"{status} {code}", [("Content-Type", "application/xml")])
            text = ERROR.format(code=code, message=f"the test says {code}")
            return [text.encode()] if method != "HEAD" else []

    def make_bucket(self, name: str, quirk: Quirk | None = None) -> str:
        """Make a bucket, with a quirk, and return its URL."""
        import fsspec

        fsspec.filesystem("s3").mkdir(name)
        if quirk is not None:
            self.quirks[name] = quirk
        return f"s3://{name}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run the server on a free port of loopback."""
    from moto.server import MotoRequestHandler
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = S3Server()
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    app.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield app
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
