"""A stand-in for an OpenAI-compatible judge that is slow and allows so many calls a second.

    python -m tests.benchmarks.stand_in

prints its base address, and when its standard input ends, how many calls it answered and refused.
A bucket of BURST calls fills at ALLOWED_A_SECOND; a call that finds it empty is refused at once
with 429, and told after how many milliseconds one call is allowed again. An answered call takes
LATENCY_S. It runs in a process of its own, so that it does not slow down whom it serves. Knows
nothing of who asks.
"""

import asyncio
import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.judge_server import says

ROOT = Path(__file__).resolve().parents[2]
ALLOWED_A_SECOND = 40.0
BURST = 20
LATENCY_S = 0.2
BACKLOG = 4096  # of connections: all may be opened at once, and none is to wait for that alone
_, ANSWER = says({"72": 0.9, "70": 0.06, "80": 0.04})


class Bucket:
    """How many calls are allowed at this moment."""

    def __init__(self) -> None:
        """Start full."""
        self._full = float(BURST)
        self._at: float | None = None

    def wait_s(self, now: float) -> float:
        """Take one call and return 0, or return the seconds until there is one."""
        if self._at is not None:
            self._full = min(BURST, self._full + (now - self._at) * ALLOWED_A_SECOND)
        self._at = now
        if self._full >= 1:
            self._full -= 1
            return 0.0
        return (1 - self._full) / ALLOWED_A_SECOND


async def _serve() -> dict[str, int]:
    bucket, counts = Bucket(), {"answered": 0, "refused": 0}

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_length(head))
                wait_s = bucket.wait_s(asyncio.get_running_loop().time())
                if wait_s:
                    counts["refused"] += 1
                    writer.write(_reply(429, {"error": {"message": "too many"}}, wait_s))
                else:
                    await asyncio.sleep(LATENCY_S)
                    counts["answered"] += 1
                    writer.write(_reply(200, ANSWER))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=BACKLOG)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    return counts


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _reply(status: int, body: dict[str, Any], wait_s: float = 0.0) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    if wait_s:
        head += f"Retry-After-Ms: {math.ceil(wait_s * 1000)}\r\n"
    return f"{head}\r\n".encode() + data


class StandIn:
    """A running stand-in; `counts` are there once it has ended."""

    def __init__(self, url: str) -> None:
        """Know its base address."""
        self.url = url
        self.counts: dict[str, int] = {}


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """Run one until the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.stand_in"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stdin is not None
    try:
        running = StandIn(child.stdout.readline().strip())
        yield running
        child.stdin.close()
        running.counts = json.loads(child.stdout.readline())
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_serve())) + "\n")
    sys.stdout.flush()
