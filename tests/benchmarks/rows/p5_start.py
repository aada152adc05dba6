"""P5: how long `emsweep --help`, `plan` and `status` take, as whole processes.

The quickstart's spec; `plan` sees an empty store, `status` the recorded finished sweep. The
commands take turns, after one unmeasured turn; told is the least of NUM_TURNS, and the median in a
note. There is no peer: the note has an interpreter that does nothing, which is the limit.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.comparisons import Ask, Measured, Row, compared
from tests.benchmarks.parts import ROOT
from tests.benchmarks.rows.whole_quickstart import SPEC

MOST_S = {"--help": 0.3, "plan": 1.0, "status": 1.0}  # wanted

NUM_TURNS = 10


def timed(folder: str) -> dict[str, Any]:
    """Take turns; the seconds of each command, by its name."""
    finished = Path(folder) / "finished"
    shutil.copytree(ROOT / "tests" / "data" / "quickstart", finished)
    command = str(Path(sys.executable).with_name("emsweep"))
    commands = {
        "--help": [command, "--help"],
        "plan": [command, "plan", SPEC, "--store", str(Path(folder) / "empty")],
        "status": [command, "status", SPEC, "--store", str(finished)],
        "nothing": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(NUM_TURNS + 1):
        for name, arguments in commands.items():
            began = time.monotonic()
            subprocess.run(
                arguments, cwd=ROOT, env=os.environ, check=True, stdout=subprocess.DEVNULL
            )
            if turn:
                seconds[name].append(time.monotonic() - began)
    return {"seconds": seconds}


def measure(ask: Ask) -> Measured:
    """Measure the row."""
    seconds = ask(timed)["seconds"]
    nothing = min(seconds.pop("nothing"))
    return Measured(
        comparisons=[
            compared(
                f"emsweep {name}, least of {NUM_TURNS}", "s", min(found), most=MOST_S[name]
            )
            for name, found in seconds.items()
        ],
        notes=[
            "medians: "
            + ", ".join(f"{name} {statistics.median(s):.2f} s" for name, s in seconds.items())
            + f"; an interpreter that does nothing: {nothing:.3f} s"
        ],
    )  # fmt: skip


ROW = Row("P5", "Start-up of the command", measure)
