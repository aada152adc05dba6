"""The command that fetches a sweep's models onto every node. Turns arguments into calls."""

import tempfile
from pathlib import Path

import typer

from sweeps.options import SOME_FAILED, Anywhere, Spec


def prefetch(spec: Spec, address: Anywhere = None) -> None:
    """Fetch the models of a sweep onto this machine's disk, or onto every node's with --address."""
    from cluster.submit import is_dashboard
    from sweeps.planner import load_plan

    if address is not None and is_dashboard(address):
        from sweeps.jobs import run_there

        raise typer.Exit(run_there(spec, None, address, ["prefetch", "--address", "auto"]))
    plan = load_plan(spec, partly=True)
    from sweeps.layout import judge_models
    from sweeps.prefetch import prefetch_here

    models = list({m.name: m for m in (*plan.spec.models, *judge_models(plan.spec))}.values())
    if address is None:
        for name, seconds in prefetch_here(models).items():
            print(f"{name}: here, after {seconds:.1f} s")
        return
    failed = 0
    for node in _everywhere(models, address):
        failed += node.problem is not None
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in node.seconds.items())
        print(f"{node.node}: {node.problem or took}")
    if failed:
        raise typer.Exit(SOME_FAILED)


def _everywhere(models: list, address: str) -> list:  # type: ignore[type-arg]
    from cluster.session import session
    from sweeps.console import QUIET, noise_to
    from sweeps.prefetch import prefetch_everywhere

    with tempfile.NamedTemporaryFile(prefix="emsweep-prefetch-", suffix=".log", delete=False) as log:
        noise = Path(log.name)
    print(f"fetching {', '.join(m.name for m in models)}; libraries' output: {noise}", flush=True)
    with noise_to(noise), session(address, environment=QUIET):
        return prefetch_everywhere(models)
