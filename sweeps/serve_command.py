"""The command `emsweep serve`: a cell as an OpenAI-compatible endpoint on this machine.

What it does is in sweeps.cell_server.
"""

import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sweeps.options import INTERRUPTED, SOME_FAILED, Spec, StoreOption, open_sweep

PORT = 8000

Cell = Annotated[
    str, typer.Argument(metavar="CELL", help="a cell's id, the start of one, or 'untuned'")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one")]


def serve(spec: Spec, cell: Cell, store: StoreOption = None, port: Port = PORT) -> None:
    """Serve a trained cell on 127.0.0.1, as OpenAI's API is spoken, until Ctrl-C.

    Requests bring a token: that of EMSWEEP_SERVE_API_KEY, else one that is made and printed.
    """
    from sweeps.cell_server import bound, check_vllm, served, to_serve, token_given

    sweep, target = open_sweep(spec, store)
    what = to_serve(sweep, target, cell)
    check_vllm()
    token, made = token_given()
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.NamedTemporaryFile(prefix="emsweep-serve-", suffix=".log", delete=False) as file:
        log = Path(file.name)
    with bound(port) as sock:
        print(f"starting {what.name}, which may take minutes; the server's output: {log}")
        try:
            with served(sweep.spec, target, what, sock=sock, token=token, log=log) as (child, url):
                _tell_ready(what.name, url, token if made else None)
                child.wait()
        except KeyboardInterrupt:
            log.unlink(missing_ok=True)
            print("ended; nothing of it is left")
            raise typer.Exit(INTERRUPTED) from None
    print(f"the server ended by itself; its output: {log}")
    raise typer.Exit(SOME_FAILED)


def _tell_ready(name: str, url: str, token: str | None) -> None:
    from sweeps.serving_process import TOKEN_ENV

    print(f"ready: {url} answers as {name}")
    print(f"token: {token or f'as {TOKEN_ENV} has it'}")
    print("end it with Ctrl-C", flush=True)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
