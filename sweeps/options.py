"""What the commands have in common: their arguments, exit codes, and the sweep that they open.

Knows nothing of what a command does.
"""

import enum
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_STORE = "emsweep-store"
STORE_ENV = "EMSWEEP_STORE"
OK, SOME_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="the sweep's YAML file")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help=f"where artefacts live [{DEFAULT_STORE}/]"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="join this Ray cluster, start none"),
]
Inline = Annotated[
    bool, typer.Option("--inline", help="run the cells in this process, for a debugger")
]
JobAddress = Annotated[
    str, typer.Option("--address", metavar="URL", help="the cluster's dashboard, http://host:8265")
]
LastAddress = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="[where it was last submitted from here]"),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="CELL", help="a cell's id, the start of one, or a pattern; repeatable"
    ),
]


class StageName(enum.StrEnum):
    """A stage of a cell, as the command line takes it."""

    TRAIN = "train"
    GENERATE = "generate"
    JUDGE = "judge"


FailedStage = Annotated[
    StageName | None, typer.Option("--stage", help="only what failed in this stage")
]
JudgeName = Annotated[str, typer.Option("--judge", metavar="NAME", help="one of the spec's judges")]


def open_sweep(spec: Path, store: str | None, *, partly: bool = False) -> tuple[Any, Any]:
    """Return the resolved sweep (`partly` as in make_plan) and its store; nothing is written."""
    from sweeps.plan import load_plan
    from sweeps.registry import check_same
    from sweeps.store import open_store

    loaded = load_plan(spec, partly=partly)
    target = open_store(store or os.environ.get(STORE_ENV) or loaded.spec.store or DEFAULT_STORE)
    check_same(loaded, target)
    return loaded, target


def log_path(store: Any, sweep: str) -> Path:
    """Return a new file for the libraries' output, under the store's logs/."""
    folder: Path = store.local_dir("logs")
    return folder / f"{sweep}-{time.strftime('%Y%m%d-%H%M%S')}.log"
