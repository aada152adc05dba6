"""On what the benchmark runs: the machine, and whether the code is that of an earlier result.

Knows nothing of rows.
"""

import os
import platform
import subprocess
from pathlib import Path

import psutil

from cluster.session import local_totals

# What bears on a figure. Words about the project do not, nor do the results themselves.
BEARING = ("em", "cluster", "sweeps", "configs", "tests/benchmarks", "pyproject.toml")
NOT_BEARING = (":(exclude)tests/benchmarks/*.json", ":(exclude)tests/benchmarks/*.txt")
CHANGES = "+changes"


class Code:
    """The code of a checkout."""

    def __init__(self, root: Path) -> None:
        """Ask git about `root`; outside git there is no commit."""
        self._root = root
        head = self._git("rev-parse", "HEAD").strip()
        changed = head and self._git("status", "--porcelain", "--", *BEARING, *NOT_BEARING)
        self.commit = head + (CHANGES if changed else "") or None

    def is_that_of(self, commit: str | None) -> bool:
        """Whether nothing that bears on a figure has changed since `commit`."""
        if commit is None or self.commit is None:
            return False
        if commit.endswith(CHANGES) or self.commit.endswith(CHANGES):
            return False
        done = self._run("diff", "--quiet", commit, "HEAD", "--", *BEARING, *NOT_BEARING)
        return done is not None and done.returncode == 0

    def _git(self, *arguments: str) -> str:
        done = self._run(*arguments)
        return done.stdout if done is not None and done.returncode == 0 else ""

    def _run(self, *arguments: str) -> "subprocess.CompletedProcess[str] | None":
        command = ["git", "-C", str(self._root), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except OSError:
            return None


def machine() -> str:
    """Return processor, cores, memory and GPUs of this machine in words."""
    gib = psutil.virtual_memory().total / 2**30
    gpus = local_totals().nodes[0][1]
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {gib:.0f} GiB, "
        f"{f'{gpus:g} GPU(s)' if gpus else 'no GPU'}"
    )


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return names[0] if names else platform.machine()
