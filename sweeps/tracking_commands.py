"""The command that sends to W&B what it has not. Turns arguments into calls.

Knows nothing of what is sent.
"""

import time
from collections.abc import Callable
from typing import Any

import typer

from sweeps.console import noise_to
from sweeps.options import SOME_FAILED, Spec, StoreOption, log_path, open_sweep


def sync(spec: Spec, store: StoreOption = None) -> None:
    """Send to W&B what it has not of a sweep, from the store. Safe to interrupt, and to repeat."""
    from sweeps.attempts import Beat, statuses
    from sweeps.registry import known
    from sweeps.sent import not_sent

    sweep, target = open_sweep(spec, store)
    _check(sweep, target, known(sweep, target))
    before = not_sent(sweep, target, statuses(sweep, target))
    # Not a driver of the sweep, which others would make room for.
    beat = Beat(target, f"{sweep.spec.name}~sync")
    noise = log_path(target, sweep.spec.name)
    try:
        with noise_to(noise) as out:
            everything = _send(sweep, target, beat, out)
    finally:
        beat.close()
    left = not_sent(sweep, target, statuses(sweep, target))
    report = " and the report" if before.report and not left.report else ""
    print(
        f"sent {before.cells - left.cells} of {before.cells} cells that W&B had not{report}; "
        f"libraries' output: {noise}"
    )
    if not everything:
        print(f"not all was sent; 'emsweep sync {spec}' goes on")
        raise typer.Exit(SOME_FAILED)


def dashboard(spec: Spec, store: StoreOption = None) -> None:
    """Make or replace a sweep's dashboard in W&B: a saved view of its runs, and a report."""
    from sweeps.dashboard import save_dashboard

    sweep, target = open_sweep(spec, store)
    _check(sweep, target, is_known=True)
    with noise_to(log_path(target, sweep.spec.name)):
        saved = save_dashboard(sweep)
    for name, address in saved.items():
        print(f"{name}: {address}")


def _check(sweep: Any, store: Any, is_known: bool) -> None:
    from sweeps.wandb_settings import has_key

    if sweep.spec.tracking.mode == "off":
        raise ValueError("tracking: mode is off in this spec, so that nothing is ever sent to W&B")
    if not is_known:
        raise ValueError(f"{store.url} holds no sweep {sweep.spec.name!r}: run it first")
    if not has_key():
        raise ValueError(
            "there is no key for W&B: set WANDB_API_KEY, or run 'wandb login'. Until then nothing "
            "is lost: all of it is in the store"
        )


def _send(sweep: Any, store: Any, beat: Any, out: Any) -> bool:
    """Send it, and return whether that was all. Raises ValueError where another process sends."""
    from sweeps.leases import LeaseLost
    from sweeps.progress import Counted
    from sweeps.publisher import Publisher
    from sweeps.tracking import NOT_INSTALLED, alone
    from sweeps.wandb_runs import WandbRuns

    counted = Counted(out, "cells looked at", len(sweep.cells))
    try:
        runs = WandbRuns(sweep.spec.tracking, sweep.spec.name, store.local_dir("."), online=True)
    except ImportError as error:
        raise ValueError(NOT_INSTALLED) from error
    try:
        with alone(store, sweep.spec.name, beat.holder, _waiting()) as check:

            def step() -> None:
                check()
                counted.step()

            publisher = Publisher(
                sweep, store, runs, say=lambda text: print(text, file=out), step=step
            )
            return publisher.look(last=True)
    except LeaseLost as error:
        raise ValueError("another process took over, and sends to W&B itself") from error
    finally:
        runs.close()


def _waiting() -> Callable[[Any], None]:
    """Return what waits for whoever sends to W&B, as long as it takes to know it dead."""
    from sweeps.leases import LOOK_S, LOST_AFTER_S

    until = time.monotonic() + LOST_AFTER_S + 10 * LOOK_S

    def wait(error: Any) -> None:
        if time.monotonic() > until:
            raise ValueError(
                f"{error}, and sends to W&B itself: wait until it has ended"
            ) from error
        time.sleep(LOOK_S)

    return wait
