"""vLLM's own OpenAI-compatible server around one of our engines, on a socket that is bound already.

So what is served has the settings of a sweep's engines, and no line of HTTP is ours but the token.
Imports vLLM only where it serves. Knows nothing of cells, or of who asks.
"""

import hmac
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cluster.engine import Engine
from cluster.requests import Weights

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TokenOnEveryPath:
    """An ASGI application in front of another: 401 for whatever does not bring the token.

    vLLM's own check leaves paths such as /invocations and /tokenize open.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; a lifespan event is no request."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        text = json.dumps({"error": {"message": "missing or wrong token", "code": 401}}).encode()
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": text})


async def serve(
    engine: Engine,
    weights: Weights | None,
    *,
    name: str,
    base_name: str,
    sock: socket.socket,
    token: str,
) -> None:
    """Answer on the bound socket `sock` until SIGTERM or SIGINT; the engine has ended then.

    The model is called `name`; adapters are served beside their base, which is called `base_name`.
    Raises ValueError for weights that do not fit the base.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.launchers.launcher import serve_http
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    beside = weights if weights is not None and engine.mode == "lora" else None
    llm = await engine.lent(None if beside else weights)
    host, port = sock.getsockname()[:2]
    given = ["--model", llm.model_config.model, "--host", host, "--port", str(port)]
    given += ["--served-model-name", base_name if beside else name, "--disable-fastapi-docs"]
    if beside:
        given += ["--lora-modules", json.dumps({"name": name, "path": beside.path})]
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(given)
    # A request without a temperature has the API's own default and not one of the model's files:
    # what a sweep asks is always said, too. Which tokens end an answer was read before this.
    llm.model_config.generation_config = "vllm"
    tasks = await llm.get_supported_tasks()
    app = build_app(arguments, tasks, llm.model_config)
    inner = app.middleware_stack or app.build_middleware_stack()
    app.middleware_stack = TokenOnEveryPath(inner, token)
    await init_app_state(llm, app.state, arguments, tasks)
    ending = await serve_http(
        app, sock=sock, host=host, port=port, log_level="warning", access_log=False
    )
    await ending
