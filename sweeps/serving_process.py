"""The process that `emsweep serve` starts: one engine with a cell's weights, and its server.

Run as `python -m sweeps.serving_process FD`: the bound socket is the descriptor FD, the job is the
first line of standard input, the token is in the environment. It ends with whoever started it:
standard input is closed then. Knows nothing of stores or specs.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

from cluster.requests import EngineConfig, Weights

TOKEN_ENV = "EMSWEEP_SERVE_API_KEY"
ENDS_WITHIN_S = 20.0  # after it is told to; vLLM's own end of an engine takes about 4 s


@dataclass(frozen=True)
class ServingJob:
    """What is served; `scratch` is a folder for whatever is made meanwhile, removed at the end."""

    config: EngineConfig
    weights: Weights | None
    name: str
    base_name: str
    scratch: str

    def line(self) -> bytes:
        """Return the job as one line."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> "ServingJob":
        """Return the job that a line is."""
        told = json.loads(line)
        weights = Weights(**told["weights"]) if told["weights"] else None
        return cls(**told | {"config": EngineConfig(**told["config"]), "weights": weights})


def main() -> None:
    """Serve until SIGTERM, or until standard input is closed."""
    job = ServingJob.of(sys.stdin.buffer.readline())
    token = os.environ.pop(TOKEN_ENV)  # the engine's own processes have no use for it
    tempfile.tempdir = job.scratch
    threading.Thread(target=_end_with_starter, args=(job.scratch,), daemon=True).start()
    # Until vLLM's server has handlers of its own: folders are removed on the way out.
    signal.signal(signal.SIGTERM, _interrupt)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(job, sock, token))
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)


async def _serve(job: ServingJob, sock: socket.socket, token: str) -> None:
    from cluster.engine import Engine
    from cluster.openai_server import serve
    from sweeps.endpoints import merge

    engine = Engine(job.config, merge)
    try:
        await serve(
            engine, job.weights, name=job.name, base_name=job.base_name, sock=sock, token=token
        )
    finally:
        engine.close()


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end_with_starter(scratch: str) -> None:
    """Wait for the end of standard input, which is that of the process at its other end."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDS_WITHIN_S)
    shutil.rmtree(scratch, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
