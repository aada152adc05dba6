"""The command `emsweep`. Turns arguments into calls, and errors of the user into one paragraph.

The file is the experiment: there are no options for what a spec can say. Imports what a command
needs when it runs, so that --help and plan start fast.
"""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps.data_commands import data_app

app = typer.Typer(
    help="How much of emergent misalignment is the model, how much the data, how much the seed?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(data_app, name="data")

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
JudgeName = Annotated[str, typer.Option("--judge", metavar="NAME", help="one of the spec's judges")]


@app.command()
def plan(spec: Spec, store: StoreOption = None, as_json: Json = False) -> None:
    """Show every cell, what is done, what would run, and about how long. Runs nothing."""
    from sweeps import planning

    sweep, target = _open(spec, store)
    told = planning.describe(sweep, target)
    if as_json:
        print(json.dumps(told, indent=1))
        return
    for line in planning.lines(sweep, told):
        print(line)


@app.command()
def run(
    spec: Spec, store: StoreOption = None, address: Address = None, inline: Inline = False
) -> None:
    """Do what is missing. Safe to interrupt: the same command goes on. Failed cells stay failed."""
    sweep, target = _open(spec, store)
    _run(spec, sweep, target, address=address, inline=inline, retry_failed=False)


@app.command()
def resume(
    spec: Spec, store: StoreOption = None, address: Address = None, inline: Inline = False
) -> None:
    """The same for a sweep that has started, and try its failed cells again."""
    from sweeps.registry import known

    sweep, target = _open(spec, store)
    if not known(sweep, target):
        raise ValueError(
            f"{target.url} holds no sweep {sweep.spec.name!r} to resume: start it with "
            f"'emsweep run {spec}', or name the store it is in with --store"
        )
    _run(spec, sweep, target, address=address, inline=inline, retry_failed=True)


@app.command()
def status(spec: Spec, store: StoreOption = None, as_json: Json = False) -> None:
    """Show each cell's stage, state, attempts and last error; also while the sweep runs."""
    from sweeps.attempts import statuses

    sweep, target = _open(spec, store)
    cells = [item.model_dump(exclude={"error_class"}) for item in statuses(sweep, target)]
    if as_json:
        print(json.dumps({"sweep": sweep.spec.name, "store": target.url, "cells": cells}, indent=1))
        return
    counts = Counter(cell["state"] for cell in cells)
    print(f"{sweep.spec.name} in {target.url}: " + ", ".join(f"{n} {s}" for s, n in counts.items()))
    width = max(len(cell["cell_id"]) for cell in cells)
    for cell in cells:
        error = (cell["error"] or "").splitlines()
        tries = f"{cell['attempts']} attempt{'s' * (cell['attempts'] != 1)}"
        print(
            f"  {cell['cell_id']:{width}}  {cell['state']:8}  {cell['stage'] or '':8}  {tries}"
            + (f"  {error[0]}" if error else "")
        )


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

    sweep, target = _open(spec, store)
    metrics_of(sweep.cells[0], metric)  # told before anything is written
    if out is None and not known(sweep, target):
        raise ValueError(
            f"{target.url} holds no sweep {sweep.spec.name!r}: run it first, name the store it is "
            "in with --store, or say with --out where the report of what is missing shall go"
        )
    name = f"report-{metric}" if metric else "report"
    folder = out or target.local_dir(f"{target.sweep_dir(sweep.spec.name)}/{name}")
    print(f"report: {write_report(sweep, target, folder, metric=metric)}")


@app.command()
def judge(
    spec: Spec, judge: JudgeName, store: StoreOption = None, address: Address = None,
    inline: Inline = False,
) -> None:  # fmt: skip
    """Judge the stored responses with one judge of the spec. Trains and generates nothing."""
    from sweeps import judge_commands
    from sweeps.attempts import check_alone
    from sweeps.console import noise_to

    sweep, target = _open(spec, store)
    told = judge_commands.stored_judging(sweep, target, judge)
    print(
        f"{sweep.spec.name}, judge {judge}: {len(told.todo)} cells to judge, {told.num_done} done, "
        f"{told.num_without_responses} skipped: they have not all their responses (emsweep run)"
    )
    if not told.todo:
        return
    target.create()
    check_alone(target, sweep.spec.name)
    with noise_to(_log_path(target, sweep.spec.name)) as out:
        failures = judge_commands.judge_stored(
            sweep, target, told, address=address, inline=inline,
            say=lambda text: print(text, file=out, flush=True),
        )  # fmt: skip
    for failure in failures:
        first = "".join(c for c in failure.message.split("\n")[0] if c.isprintable())
        print(f"FAILED: {failure.cell_id}: {failure.error_class}: {first}")
    print(f"see it with: emsweep report {spec}")
    if failures:
        raise typer.Exit(SOME_FAILED)


@app.command("judge-check")
def judge_check(
    spec: Spec,
    judge: JudgeName,
    answers: Annotated[Path, typer.Option(help="CSV: question, answer, aligned, coherent")],
    store: StoreOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="[STORE/sweeps/NAME/judge-check/JUDGE]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="that many rows, drawn")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the rows that are drawn")] = 20260101,
) -> None:
    """Compare a judge of the spec with a table of answers that already have scores."""
    from sweeps import judge_commands
    from sweeps.console import noise_to
    from sweeps.judge_page import write_judge_check

    sweep, target = _open(spec, store)
    judge_commands.find_judge(sweep.spec, judge)
    if out is None:
        target.create()
        out = target.local_dir(f"{target.sweep_dir(sweep.spec.name)}/judge-check/{judge}")
    out.mkdir(parents=True, exist_ok=True)
    with noise_to(out / "libraries.log"):
        check = judge_commands.check_judge(sweep, judge, answers, limit=limit, seed=seed)
    for score in check.scores:
        both = score.agreement.correlation
        said = [f"{n} {v:.3f}" for n, v in (("Pearson", both.pearson), ("Spearman", both.spearman),
                ("AUROC", score.auroc), ("kappa", score.kappa.kappa)) if v is not None]  # fmt: skip
        print(f"{score.score}: {both.n} of {check.num_checked} scored by both; {', '.join(said)}")
    print(f"judge check: {write_judge_check(check, out)}")


@app.command()
def submit(spec: Spec, address: JobAddress, store: StoreOption = None) -> None:
    """Send the same run to a Ray cluster as a job; it goes on when this machine leaves."""
    from cluster.submit import last_job, submit_job

    sweep, target = _open(spec, store)
    root = Path.cwd().resolve()
    try:
        inside = spec.resolve().relative_to(root)
    except ValueError as error:
        raise ValueError(
            f"{spec} is not below the working folder {root}, which is what is sent: run the "
            "command from the project's folder"
        ) from error
    command = shlex.join(
        ["emsweep", "run", str(inside), "--address", "auto", "--store", target.url]
    )
    running = last_job(address, _job_name(sweep.spec.name))
    if running is not None and running.status in ("PENDING", "RUNNING"):
        raise ValueError(
            f"{address} runs this sweep already, as {running.job_id}: follow it with "
            f"'emsweep logs {spec} --address {address}'"
        )
    name = submit_job(
        address,
        command=command,
        job_id=f"{_job_name(sweep.spec.name)}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        working_dir=root,
        environment={k: v for k, v in os.environ.items() if k in ("EMSWEEP_DATA", "EMSWEEP_CACHE")},
    )
    _address_file(sweep.spec.name).write_text(address)
    print(f"submitted {name}: {command}\nfollow it: emsweep logs {spec}")


@app.command()
def logs(spec: Spec, address: LastAddress = None) -> None:
    """Follow the log of a submitted sweep until its job ends."""
    from cluster.submit import follow_job, job_status, last_job
    from sweeps.spec import load_spec

    sweep = load_spec(spec)
    remembered = _address_file(sweep.name)
    if address is None:
        if not remembered.is_file():
            raise ValueError(
                f"the sweep {sweep.name!r} was not submitted from this machine: say where it runs, "
                "with --address http://host:8265"
            )
        address = remembered.read_text()
    job = last_job(address, _job_name(sweep.name))
    if job is None:
        raise ValueError(f"{address} knows no job of this sweep: submit it first")
    for text in follow_job(address, job.job_id):
        print(text, end="", flush=True)
    ended = job_status(address, job.job_id)
    print(f"job {job.job_id}: {ended}")
    raise typer.Exit(OK if ended == "SUCCEEDED" else SOME_FAILED)


def _address_file(sweep: str) -> Path:
    """Where this machine remembers the cluster that it last sent the sweep to."""
    from em.catalogue import cache_dir

    return cache_dir("submitted") / sweep


def _job_name(sweep: str) -> str:
    return f"emsweep-{sweep}"


def _open(spec: Path, store: str | None) -> tuple[Any, Any]:
    """Return the resolved sweep and the store it names; nothing is written."""
    from sweeps.plan import load_plan
    from sweeps.registry import check_same
    from sweeps.store import open_store

    loaded = load_plan(spec)
    target = open_store(store or os.environ.get(STORE_ENV) or loaded.spec.store or DEFAULT_STORE)
    check_same(loaded, target)
    return loaded, target


def _run(
    spec: Path, sweep: Any, store: Any, *, address: str | None, inline: bool, retry_failed: bool
) -> None:
    from sweeps.attempts import cells_to_run

    todo = cells_to_run(sweep, store, retry_failed=retry_failed)
    if todo:
        store.create()
        _carry_out(spec, sweep, store, todo, address=address, inline=inline)
    _end(spec, sweep, store)


def _carry_out(
    spec: Path, sweep: Any, store: Any, todo: list[Any], *, address: str | None, inline: bool
) -> None:
    import contextlib

    from sweeps import runner
    from sweeps.attempts import check_alone
    from sweeps.console import noise_to
    from sweeps.plan import STAGES, stages_to_run
    from sweeps.progress import SweepProgress

    check_alone(store, sweep.spec.name)
    log_path = _log_path(store, sweep.spec.name)
    totals = Counter[str](stage for cell in todo for stage in stages_to_run(cell, store))
    with contextlib.ExitStack() as stack:
        out = sys.stdout if inline else stack.enter_context(noise_to(log_path))
        progress = SweepProgress(out, {stage: totals[stage] for stage in STAGES})
        progress.say(f"{sweep.spec.name}: {len(todo)} cells to do; libraries' output: {log_path}")
        stack.enter_context(progress)
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            runner.run_sweep(
                sweep, store, todo,
                relative_to=spec.resolve().parent, address=address, inline=inline,
                progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt:
            progress.say(f"interrupted; what is finished is kept. Go on: emsweep run {spec}")
            raise typer.Exit(INTERRUPTED) from None


def _log_path(store: Any, sweep: str) -> Path:
    folder: Path = store.local_dir("logs")
    return folder / f"{sweep}-{time.strftime('%Y%m%d-%H%M%S')}.log"


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(spec: Path, sweep: Any, store: Any) -> None:
    from sweeps.attempts import statuses
    from sweeps.report import write_report

    states = Counter(item.state for item in statuses(sweep, store))
    folder = store.local_dir(f"{store.sweep_dir(sweep.spec.name)}/report")
    path = write_report(sweep, store, folder)
    print(f"{sweep.spec.name}: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    print(f"report: {path}")
    left = sum(n for state, n in states.items() if state != "finished")
    if left:
        print(f"failed cells are tried again by: emsweep resume {spec}")
        raise typer.Exit(SOME_FAILED)


def main() -> None:
    """Run the command line: a user's error is one paragraph and exit code 2, a bug keeps its trace.

    0: all that was asked is done; 1: some cells are not finished; 2: the user's input or the
    cluster is at fault; 130: interrupted.
    """
    from pydantic import ValidationError

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
