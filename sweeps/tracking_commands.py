"""The command that sends to W&B what it has not. Turns arguments into calls.

Knows nothing of what is sent.
"""

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
    beat = Beat(target, sweep.spec.name)
    noise = log_path(target, sweep.spec.name)
    try:
        with noise_to(noise) as out:
            everything = _send(sweep, target, beat, out)
    finally:
        beat.close()
    left = not_sent(sweep, target, statuses(sweep, target))
    print(f"sent {before - left} of {before} cells that W&B had not; libraries' output: {noise}")
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
    from sweeps.tracking import OFFLINE_INSTEAD, has_key

    if sweep.spec.tracking.mode == "off":
        raise ValueError("tracking: mode is off in this spec, so that nothing is ever sent to W&B")
    if not is_known:
        raise ValueError(f"{store.url} holds no sweep {sweep.spec.name!r}: run it first")
    if not has_key():
        raise ValueError(
            "there is no key for W&B: set WANDB_API_KEY, or run 'wandb login' "
            f"({OFFLINE_INSTEAD.partition(',')[0].removeprefix('or ')})"
        )


def _send(sweep: Any, store: Any, beat: Any, out: Any) -> bool:
    """Send it, and return whether that was all. Raises ValueError where W&B refuses."""
    from sweeps.leases import HeldElsewhere, holding
    from sweeps.progress import Counted
    from sweeps.publisher import Publisher
    from sweeps.tracking import NOT_INSTALLED, lease_key
    from sweeps.wandb_runs import Refused, Unreachable, WandbRuns

    counted = Counted(out, "cells looked at", len(sweep.cells))
    try:
        runs = WandbRuns(sweep.spec.tracking, sweep.spec.name, store.local_dir("."), online=True)
    except ImportError as error:
        raise ValueError(NOT_INSTALLED) from error
    publisher = Publisher(
        sweep, store, runs, say=lambda text: print(text, file=out), step=counted.step
    )
    try:
        with holding(store, [lease_key(sweep.spec.name)], beat.holder):
            return publisher.look(last=True)
    except HeldElsewhere as error:
        raise ValueError(f"{error}, and sends to W&B itself: wait until it has ended") from error
    except Refused as error:
        raise ValueError(f"W&B does not take this sweep: {error}") from error
    except Unreachable as error:
        raise ValueError(f"W&B does not answer: {error}") from error
    finally:
        runs.drop()
