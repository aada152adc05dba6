"""Running one part of a row in a process of its own, so that none inherits memory or warm caches.

    python -m tests.benchmarks.parts MODULE FUNCTION ARGUMENTS RESULT

is such a process. Knows nothing of rows.
"""

import contextlib
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.session import end

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 3600.0  # a part that hangs fails its row; the longest should take a third of it
LAST_LINES = 15
OFFLINE = {"HF_HUB_OFFLINE": "1"}


class PartFailed(RuntimeError):
    """A part ended without a result; the message has the end of what it printed."""


class Parts:
    """Runs parts, one at a time; what a part has said is not asked again in this run."""

    def __init__(self, folder: Path) -> None:
        """Keep logs in `folder`, which every part is told as the place for its files."""
        self._folder = folder
        self._said: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count()
        self.asked: dict[str, Any] = {}  # since `begin`

    def begin(self) -> None:
        """Begin a row: `asked` then holds what this row's parts said."""
        self.asked = {}

    def forget(self) -> None:
        """Ask anew what was asked before: the files that it was about have changed."""
        self._said = {}

    def __call__(self, function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
        """Return what `function(folder, **arguments)` returns in a process of its own.

        Raises PartFailed where it ends otherwise, or takes longer than LIMIT_S.
        """
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        label = f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
        known = json.dumps([function.__module__, function.__name__, arguments], sort_keys=True)
        if known not in self._said:
            self._said[known] = self._run(function, arguments, next(self._numbers))
        self.asked[label] = self._said[known]
        return self._said[known]

    def _run(
        self, function: Callable[..., dict[str, Any]], arguments: dict[str, Any], number: int
    ) -> dict[str, Any]:
        self._folder.mkdir(parents=True, exist_ok=True)
        log, result = self._folder / f"{number}.log", self._folder / f"{number}.json"
        given = json.dumps({"folder": str(self._folder)} | arguments)
        command = [sys.executable, "-m", "tests.benchmarks.parts"]
        command += [function.__module__, function.__name__, given, str(result)]
        with log.open("wb") as out:
            child = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=out, stderr=out)
            try:
                code = child.wait(LIMIT_S)
            except BaseException as error:
                _end_family(child)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise PartFailed(
                        f"{function.__name__} took longer than {LIMIT_S:g} s"
                    ) from None
                raise
        if code or not result.is_file():
            last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise PartFailed(f"{function.__name__} ended with {code}:\n" + "\n".join(last))
        said: dict[str, Any] = json.loads(result.read_text())
        return said


def environment() -> dict[str, str]:
    """Return the environment of a part: this tree's code, no network, nothing sent to W&B."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "WANDB_MODE": "offline"}
    return {name: v for name, v in os.environ.items() if name != "EMSWEEP_STORE"} | ours | OFFLINE


def since_start() -> float:
    """Return the seconds since this process was started, its interpreter's own start included."""
    return time.time() - psutil.Process().create_time()


def _end_family(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(child.pid)
        end([process, *process.children(recursive=True)])
    child.wait()


def main(arguments: list[str]) -> None:
    """Be the process of one part."""
    module, function, given, result = arguments
    said = getattr(importlib.import_module(module), function)(**json.loads(given))
    partial = Path(result).with_suffix(".tmp")
    partial.write_text(json.dumps(said))
    partial.replace(result)


if __name__ == "__main__":
    main(sys.argv[1:])
