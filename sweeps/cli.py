"""The command `emsweep`. Turns arguments into calls, and errors of the user into one paragraph.

The file is the experiment: there are no options for what a spec can say. Imports what a command
needs when it runs, so that --help and plan start fast.
"""

import json
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps.analysis_commands import analyze, compare, power
from sweeps.data_commands import data_app
from sweeps.job_commands import logs, submit
from sweeps.judge_cli import judge, judge_check
from sweeps.keep import Keep
from sweeps.options import (
    INTERRUPTED,
    OK,
    SOME_FAILED,
    USER_ERROR,
    Address,
    FailedStage,
    Inline,
    Json,
    KeepOption,
    Only,
    Spec,
    StoreOption,
    log_path,
    open_sweep,
    open_to_run,
)
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
    spec: Spec, store: StoreOption = None, as_json: Json = False, keep: KeepOption = None
) -> None:
    """Show every cell, what is done, what would run, and about how long. Runs nothing.

    With --keep, as it would be under that answer.
    """
    from sweeps import planning
    from sweeps.tracking import check_key_for

    sweep, target = open_sweep(spec, store, partly=True, keep=keep, with_packages=True)
    check_key_for(sweep.spec.tracking)
    told = planning.describe(sweep, target)
    if as_json:
        print(json.dumps(told, indent=1))
        return
    for line in planning.lines(sweep, told):
        print(line)


@app.command()
def run(
    spec: Spec, store: StoreOption = None, address: Address = None, inline: Inline = False,
    only: Only = None, keep: KeepOption = None,
) -> None:  # fmt: skip
    """Do what is missing. Safe to interrupt: the same command goes on. Failed cells stay failed."""
    sweep, target = open_to_run(spec, store, "run", keep)
    _run(
        spec, sweep, target, address=address, inline=inline, keep=keep, retry_failed=False,
        only=only or [],
    )  # fmt: skip


@app.command()
def resume(
    spec: Spec, store: StoreOption = None, address: Address = None, inline: Inline = False,
    only: Only = None, stage: FailedStage = None, keep: KeepOption = None,
) -> None:  # fmt: skip
    """The same for a sweep that has started; try its failed cells and judgements again, too."""
    from sweeps.registry import known

    sweep, target = open_to_run(spec, store, "resume", keep)
    if not known(sweep, target):
        raise ValueError(
            f"{target.url} holds no sweep {sweep.spec.name!r} to resume: start it with "
            f"'emsweep run {spec}', or name the store it is in with --store"
        )
    _run(
        spec, sweep, target, address=address, inline=inline, keep=keep, retry_failed=True,
        only=only or [], stage=stage.value if stage else None,
    )  # fmt: skip


@app.command()
def status(spec: Spec, store: StoreOption = None, as_json: Json = False) -> None:
    """Show each cell's stage, state, attempts, last error and its cure; also while it runs."""
    from sweeps.attempts import statuses
    from sweeps.console import printable
    from sweeps.failure_kinds import CURES
    from sweeps.keeping import told
    from sweeps.sent import not_sent

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
        print(f"W&B has not, or not as it is now: {what or 'the report'}; 'emsweep sync {spec}'")
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
app.command()(logs)
app.command()(sync)
app.command()(dashboard)


def told_failed(judgements: int) -> str:
    """Return in words that some judgements of a finished cell failed."""
    return f"{judgements} judgement{'s' * (judgements != 1)} failed (emsweep resume asks again)"


def _run(
    spec: Path, sweep: Any, store: Any, *, address: str | None, inline: bool,
    keep: Keep | None, retry_failed: bool, only: list[str], stage: Any = None,
) -> None:  # fmt: skip
    from em.api_judge import check_key
    from sweeps.keeping import check_possible
    from sweeps.registry import known, register
    from sweeps.selection import cells_named, cells_to_do
    from sweeps.tracking import check_key_for

    todo = cells_to_do(sweep, store, retry_failed=retry_failed, only=only, stage=stage)
    check_possible(sweep, todo, store)
    if todo:
        check_key_for(sweep.spec.tracking)
    for asked in sweep.spec.judges if todo else ():  # before anything is written
        if asked.api is not None:
            check_key(asked.api, asked.api_key_env)
    # What `keep` answers holds from now on, also where nothing is left to do; and a sweep whose
    # cells other sweeps have made is known from now on.
    if keep is not None or not (todo or known(sweep, store)):
        store.create()
        register(sweep, store)
    if not todo:
        _send_rest(sweep, store)
    else:
        store.create()
        _carry_out(
            spec, sweep, store, todo, address=address, inline=inline, retry_failed=retry_failed
        )
    meant = todo if stage else cells_named(sweep, only)
    _end(spec, sweep, store, {cell.cell_id for cell in meant})


def _send_rest(sweep: Any, store: Any) -> None:
    """Send what an earlier run could not, where runs are online."""
    from sweeps.attempts import statuses
    from sweeps.console import noise_to
    from sweeps.sent import not_sent
    from sweeps.tracking import catch_up
    from sweeps.wandb_settings import mode_of

    online = mode_of(sweep.spec.tracking) == "online"
    if online and any(not_sent(sweep, store, statuses(sweep, store))):
        with noise_to(log_path(store, sweep.spec.name)) as out:
            catch_up(sweep, store, lambda text: print(text, file=out))


def _carry_out(
    spec: Path, sweep: Any, store: Any, todo: list[Any], *, address: str | None, inline: bool,
    retry_failed: bool,
) -> None:  # fmt: skip
    import contextlib

    from sweeps import runner
    from sweeps.console import noise_to
    from sweeps.plan import STAGES, stages_to_run
    from sweeps.progress import SweepProgress

    noise = log_path(store, sweep.spec.name)
    # A finished cell is among them where judgements of it failed and are to be asked again.
    totals = Counter[str](
        stage for cell in todo for stage in stages_to_run(cell, store) or ("judge",)
    )
    with contextlib.ExitStack() as stack:
        out = sys.stdout if inline else stack.enter_context(noise_to(noise))
        progress = SweepProgress(out, {stage: totals[stage] for stage in STAGES})
        progress.say(f"{sweep.spec.name}: {len(todo)} cells to do; libraries' output: {noise}")
        stack.enter_context(progress)
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            runner.run_sweep(
                sweep, store, todo,
                relative_to=spec.resolve().parent, address=address, inline=inline,
                progress=progress, again=retry_failed,
            )  # fmt: skip
        except KeyboardInterrupt:
            progress.say(f"interrupted; what is finished is kept. Go on: emsweep run {spec}")
            raise typer.Exit(INTERRUPTED) from None


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(spec: Path, sweep: Any, store: Any, asked: set[str]) -> None:
    """Write the report, and exit with SOME_FAILED where a cell of `asked` is not finished."""
    from sweeps.attempts import statuses
    from sweeps.report import write_report

    told = statuses(sweep, store)
    states = Counter(item.state for item in told)
    folder = store.local_dir(f"{store.sweep_dir(sweep.spec.name)}/report")
    path = write_report(sweep, store, folder)
    print(f"{sweep.spec.name}: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    print(f"report: {path}")
    if failed := sum(item.failed_judgements for item in told):
        print(told_failed(failed))
    if any(item.state != "finished" for item in told if item.cell_id in asked):
        print(f"failed cells are tried again by: emsweep resume {spec}")
        raise typer.Exit(SOME_FAILED)


def main() -> None:
    """Run the command line: a user's error is one paragraph and exit code 2, a bug keeps its trace.

    0: all that was asked is done; 1: some cells are not finished; 2: the user's input or the
    cluster is at fault; 130: interrupted.
    """
    import gc

    from pydantic import ValidationError

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
    except ValueError as error:
        if not _is_ours(error):
            raise
        print(f"emsweep: {re.sub(r'^', '  ', str(error), flags=re.M).strip()}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show()  # type: ignore[attr-defined]
            sys.exit(USER_ERROR)
        raise


def _is_ours(error: ValueError) -> bool:
    """Whether our own code raised it, to tell the user; what a library raised is a bug of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.split(".")[0] in ("em", "cluster", "sweeps")


if __name__ == "__main__":
    main()
