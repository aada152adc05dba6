"""The command `emsweep export`: what a sweep's store holds, in another tool's format.

How logs are made is in sweeps.inspect_logs.
"""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.options import Spec, StoreOption, open_sweep

Inspect = Annotated[bool, typer.Option("--inspect", help="as logs of Inspect, one a cell")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="[STORE/sweeps/NAME/inspect]")
]


def export(
    spec: Spec, inspect: Inspect = False, store: StoreOption = None, out: Out = None
) -> None:
    """Write what was answered and scored as logs of Inspect: `inspect view` opens the folder."""
    from sweeps.inspect_logs import check_inspect, write_logs
    from sweeps.outputs import make_output_dir
    from sweeps.registry import known

    if not inspect:
        raise ValueError("export: say as what: --inspect is the one format that there is")
    check_inspect()
    sweep, target = open_sweep(spec, store)
    if not known(sweep, target):
        raise ValueError(
            f"{target.url} holds no sweep {sweep.spec.name!r}: run it first, or name the store it "
            "is in with --store"
        )
    folder = out or target.local_dir(f"{target.sweep_dir(sweep.spec.name)}/inspect")
    make_output_dir(folder)
    written = list(write_logs(sweep, target, folder))
    wanted = sum(len(cell.evaluations) for cell in sweep.cells)
    print(f"{len(written)} of {wanted} logs, {sum(n for _, n in written)} answers: {folder}")
    if len(written) < wanted:
        print("of the others nothing is judged yet")
