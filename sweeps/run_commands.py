"""The commands that carry a sweep out, `emsweep run` and `resume`, and how a run ends.

Turns arguments into calls; the work is in sweeps.runner.
"""

import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import typer

from sweeps.keep import Keep
from sweeps.options import (
    INTERRUPTED,
    SOME_FAILED,
    TRIED_AGAIN,
    Address,
    FailedStage,
    Inline,
    KeepOption,
    Only,
    Spec,
    StoreOption,
    log_path,
    open_to_run,
)


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


def told_failed(judgements: int) -> str:
    """Return in words that some judgements of a finished cell failed."""
    return f"{judgements} judgement{'s' * (judgements != 1)} failed (emsweep resume asks again)"


def _run(
    spec: Path, sweep: Any, store: Any, *, address: str | None, inline: bool,
    keep: Keep | None, retry_failed: bool, only: list[str], stage: Any = None,
) -> None:  # fmt: skip
    from em.api_client import check_key
    from sweeps.graders import check_grader_keys, graders_needed
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
    check_grader_keys(graders_needed(todo, store))
    for model in {cell.cell.model for cell in todo}:
        if model.api is not None:
            check_key(model.api.url, model.api.key_env, who="model", setting="key_env")
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
    from sweeps.plan import STAGES
    from sweeps.progress import SweepProgress
    from sweeps.todo import read_todo

    noise = log_path(store, sweep.spec.name)
    # A finished cell is among them where judgements of it failed and are to be asked again.
    work = read_todo(todo, store)
    to_do: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for cell in todo:
        for stage in work.left(cell) or ("judge",):
            to_do[stage].append(cell.cell_id)
    with contextlib.ExitStack() as stack:
        out = sys.stdout if inline else stack.enter_context(noise_to(noise))
        progress = SweepProgress(out, to_do)
        progress.say(f"{sweep.spec.name}: {len(todo)} cells to do; libraries' output: {noise}")
        stack.enter_context(progress)
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            runner.run_sweep(
                sweep, store, work,
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
        print(f"{TRIED_AGAIN}: emsweep resume {spec}")
        raise typer.Exit(SOME_FAILED)
