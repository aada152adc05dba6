"""The command `emsweep`. Turns arguments into calls, and errors of the user into one paragraph.

The file is the experiment: there are no options for what a spec can say. Imports what a command
needs when it runs, so that --help and plan start fast.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sweeps.analysis_commands import analyze, compare, power
from sweeps.cluster_commands import plan_there, prefetch
from sweeps.data_commands import data_app
from sweeps.export_command import export
from sweeps.job_commands import jobs, logs, stop, submit
from sweeps.judge_cli import judge, judge_check
from sweeps.options import (
    INTERRUPTED,
    OK,
    USER_ERROR,
    Anywhere,
    Json,
    KeepOption,
    Spec,
    StoreOption,
    open_sweep,
)
from sweeps.run_commands import resume, run, told_failed
from sweeps.serve_command import serve
from sweeps.store_commands import store_app
from sweeps.tracking_commands import dashboard, sync

# A plan of ten thousand cells is millions of values without a cycle: at its own thresholds the
# collector would walk them over and over, for a quarter of the time of `status`.
COLLECT_AFTER = (50_000, 20, 50)

app = typer.Typer(
    help="How much of emergent misalignment is the model, how much the data, how much the seed?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")


@app.command()
def plan(
    spec: Spec, store: StoreOption = None, as_json: Json = False, keep: KeepOption = None,
    address: Anywhere = None,
) -> None:  # fmt: skip
    """Show every cell, what is done, what would run, and about how long. Runs nothing.

    With --keep, as it would be under that answer. With --address, every node of that cluster is
    asked whether the sweep can run there.
    """
    from cluster.session import local_totals
    from sweeps import planning
    from sweeps.tracking import check_key_for

    if address is not None:
        if as_json:
            raise ValueError("plan --json is of this machine's plan: drop --address, or --json")
        plan_there(spec, store, address, keep)
        return
    sweep, target = open_sweep(
        spec, store, partly=True, keep=keep, with_packages=True, few=not as_json
    )
    check_key_for(sweep.spec.tracking)
    told = planning.describe(sweep, target, local_totals())
    if as_json:
        print(json.dumps(told, indent=1))
        return
    for line in planning.lines(sweep, told):
        print(line)


app.command()(run)
app.command()(resume)


@app.command()
def status(
    spec: Spec, store: StoreOption = None, as_json: Json = False, address: Anywhere = None
) -> None:
    """Show each cell's stage, state, attempts, last error and its cure; also while it runs.

    With --address, as that cluster's nodes see it: for a store that is not seen from here.
    """
    if address is not None:
        from sweeps.jobs import run_there, store_followed

        there = ["status", *(["--json"] if as_json else [])]
        raise typer.Exit(run_there(spec, store_followed(spec, store), address, there))
    from sweeps.attempts import statuses
    from sweeps.console import printable
    from sweeps.failure_kinds import CURES
    from sweeps.keeping import told
    from sweeps.sent import not_sent
    from sweeps.wandb_settings import mode_of

    sweep, target = open_sweep(spec, store)
    found = statuses(sweep, target)
    cells = [item.shown for item in found]
    unsent = not_sent(sweep, target, found)
    if as_json:
        whole = {"sweep": sweep.spec.name, "store": target.url, "not_in_wandb": unsent._asdict()}
        print(json.dumps(whole | {"cells": cells}, indent=1))
        return
    counts = Counter(cell["state"] for cell in cells)
    print(f"{sweep.spec.name} in {target.url}: " + ", ".join(f"{n} {s}" for s, n in counts.items()))
    width = max(len(cell["cell_id"]) for cell in cells)
    for cell in cells:
        error = (cell["error"] or "").splitlines()
        tries = f"{cell['attempts']} attempt{'s' * (cell['attempts'] != 1)}"
        print(
            f"  {cell['cell_id']:{width}}  {cell['state']:8}  {cell['stage'] or '':8}  {tries}"
            + (f"  {cell['kind']}: {printable(error[0])}" if error else "")
            + (f"  {told_failed(cell['failed_judgements'])}" if cell["failed_judgements"] else "")
        )
    for line in told(sweep):
        print(line)
    if any(unsent) and sweep.spec.tracking.mode != "off":
        what = f"{unsent.cells} cell{'s' * (unsent.cells != 1)}" if unsent.cells else ""
        what += " and the report" if unsent.cells and unsent.report else ""
        if mode_of(sweep.spec.tracking) == "online":
            print(f"W&B has not, or not as now: {what or 'the report'}; 'emsweep sync {spec}'")
        else:
            print(f"kept for W&B, which this machine does not send to: {what or 'the report'}")
    for kind, cells_of in Counter(cell["kind"] for cell in cells if cell["kind"]).items():
        print(f"{cells_of} failed, {kind}: {CURES[kind]}")


@app.command()
def report(
    spec: Spec,
    store: StoreOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="[STORE/sweeps/NAME/report]")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", metavar="NAME", help="another definition of the rate [the spec's]"
        ),
    ] = None,
) -> None:
    """Write report.html, report.json, cells.parquet and judgements.parquet.

    With --metric the rates are counted anew from the stored scores, into a folder of their own.
    """
    from sweeps.registry import known
    from sweeps.report import metrics_of, write_report

    sweep, target = open_sweep(spec, store)
    metrics_of(sweep.cells[0], metric)  # told before anything is written
    if out is None and not known(sweep, target):
        raise ValueError(
            f"{target.url} holds no sweep {sweep.spec.name!r}: run it first, name the store it is "
            "in with --store, or say with --out where the report of what is missing shall go"
        )
    name = f"report-{metric}" if metric else "report"
    folder = out or target.local_dir(f"{target.sweep_dir(sweep.spec.name)}/{name}")
    print(f"report: {write_report(sweep, target, folder, metric=metric)}")


app.command()(analyze)
app.command()(power)
app.command()(compare)
app.command()(judge)
app.command("judge-check")(judge_check)
app.command()(submit)
app.command()(jobs)
app.command()(logs)
app.command()(stop)
app.command()(prefetch)
app.command()(serve)
app.command()(export)
app.command()(sync)
app.command()(dashboard)


def main() -> None:
    """Run the command line: a user's error is one paragraph and exit code 2, a bug keeps its trace.

    0: all that was asked is done; 1: some cells are not finished; 2: the user's input or the
    cluster is at fault; 130: interrupted.
    """
    import gc

    from pydantic import ValidationError

    from sweeps.buckets import BucketAway

    gc.set_threshold(*COLLECT_AFTER)
    try:
        code = app(standalone_mode=False)  # typer.Exit comes back as its code
        sys.exit(code if isinstance(code, int) else OK)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ValidationError:
        raise
    except BucketAway as error:
        _tell(error)
    except ValueError as error:
        if not _is_ours(error):
            raise
        _tell(error)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show()  # type: ignore[attr-defined]
            sys.exit(USER_ERROR)
        raise


def _tell(error: Exception) -> NoReturn:
    print(f"emsweep: {re.sub(r'^', '  ', str(error), flags=re.M).strip()}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _is_ours(error: ValueError) -> bool:
    """Whether our own code raised it, to tell the user; what a library raised is a bug of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.split(".")[0] in ("em", "cluster", "sweeps")


if __name__ == "__main__":
    main()
