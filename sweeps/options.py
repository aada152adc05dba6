"""What the commands have in common: their arguments, exit codes, and the sweep that they open.

Knows nothing of what a command does.
"""

import enum
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps.keep import Keep

DEFAULT_STORE = "emsweep-store"
STORE_ENV = "EMSWEEP_STORE"
OK, SOME_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
TRIED_AGAIN = "failed cells are tried again by"  # said at the end of a run that has some

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
    str | None,
    typer.Option(
        "--address", metavar="URL", help="the cluster's dashboard, http://host:8265 [the last one]"
    ),
]
LastAddress = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="[where it was last submitted from here]"),
]
Anywhere = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="of a Ray cluster: its dashboard's (http://host:8265), or host:port from a node of it",
    ),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="go on until the job ends")]
Rayjob = Annotated[
    bool, typer.Option("--rayjob", help="print a KubeRay RayJob in place of sending")
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="CELL", help="a cell's id, the start of one, or a pattern; repeatable"
    ),
]
KeepOption = Annotated[
    Keep | None,
    typer.Option("--keep", help="where data, a model or a package changed since: which counts"),
]


class StageName(enum.StrEnum):
    """A stage of a cell, as the command line takes it: artefacts.Stage, without its imports."""

    TRAIN = "train"
    GENERATE = "generate"
    JUDGE = "judge"


FailedStage = Annotated[
    StageName | None, typer.Option("--stage", help="only what failed in this stage")
]
JudgeName = Annotated[str, typer.Option("--judge", metavar="NAME", help="one of the spec's judges")]


def open_sweep(
    spec: Path,
    store: str | None,
    *,
    partly: bool = False,
    keep: Keep | None = None,
    with_packages: bool = False,
    few: bool = False,
) -> tuple[Any, Any]:
    """Return the resolved sweep (`partly` as in make_plan) and its store; nothing is written.

    `keep` answers what drifted; `with_packages` looks at installed versions for it, too, and raises
    ValueError where what is to be made cannot be: of a training's steps that were not kept. With
    `few`, a very large sweep has the cells of a few seeds where those stand for all (sweeps.few).
    """
    from sweeps.few import with_few_seeds
    from sweeps.keeping import settle
    from sweeps.kept_steps import check_steps_kept
    from sweeps.planner import explained, plan_of
    from sweeps.provenance import versions
    from sweeps.registry import check_same
    from sweeps.spec import load_spec
    from sweeps.store import open_store

    read = load_spec(spec)
    target = open_store(store or os.environ.get(STORE_ENV) or read.store or DEFAULT_STORE)
    loaded = plan_of(with_few_seeds(read, target) if few else read, spec, partly=partly)
    loaded = loaded.model_copy(update={"spec": read})
    check_same(loaded, target)
    installed = versions() if with_packages else None
    settled = settle(loaded, target, installed=installed, keep=keep)
    if with_packages:
        with explained(spec):
            check_steps_kept(settled, target)
    return settled, target


def open_to_run(spec: Path, store: str | None, command: str, keep: Keep | None) -> tuple[Any, Any]:
    """Return the same for a command that makes something, which needs an answer to drift.

    Raises ValueError where something drifted and neither `keep` nor an earlier answer holds for it.
    """
    from sweeps.keeping import check_answered

    sweep, target = open_sweep(spec, store, keep=keep, with_packages=True)
    check_answered(sweep, command=f"emsweep {command} {spec}")
    return sweep, target


def log_path(store: Any, sweep: str) -> Path:
    """Return a new file for the libraries' output, under the store's logs/."""
    folder: Path = store.local_dir("logs")
    return folder / f"{sweep}-{time.strftime('%Y%m%d-%H%M%S')}.log"
