"""A plan with a look at the cluster that it shall run on. Starts nothing there."""

import tempfile
from pathlib import Path

import typer

from cluster.session import session
from cluster.submit import is_dashboard
from sweeps import planning
from sweeps.attempts import statuses
from sweeps.console import QUIET, noise_to
from sweeps.jobs import run_there
from sweeps.keep import Keep
from sweeps.options import open_sweep
from sweeps.preflight import PASSED, check_passed, lines, preflight
from sweeps.selection import to_do


def plan_there(path: Path, store: str | None, address: str, keep: Keep | None) -> None:
    """Print the plan, and what every node of the cluster at `address` has of what it needs.

    Raises ClusterError where the cluster does not answer, or lacks something.
    """
    if is_dashboard(address):
        words = ["plan", "--address", "auto", *(["--keep", keep.value] if keep else [])]
        raise typer.Exit(run_there(path, store, address, words))
    sweep, target = open_sweep(path, store, partly=True, keep=keep, with_packages=True)
    told = statuses(sweep, target)
    todo = [cell for cell, status in zip(sweep.cells, told, strict=True) if to_do(status)]
    for line in planning.lines(sweep, planning.describe(sweep, target)):
        print(line)
    with tempfile.NamedTemporaryFile(prefix="emsweep-plan-", suffix=".log", delete=False) as log:
        noise = Path(log.name)
    print(f"\nasking every node of {address}; libraries' output: {noise}", flush=True)
    with noise_to(noise) as out:
        with session(address, environment=QUIET) as totals:
            checks = preflight(sweep, target, todo, totals, joined=True)
        print(*lines(checks, colour=out.isatty()), sep="\n", file=out)
    check_passed(checks)
    print(PASSED)
