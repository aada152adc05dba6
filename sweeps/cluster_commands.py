"""The commands that look at a cluster or prepare it: `plan --address` and `prefetch`.

Turn arguments into calls; what is looked at is in sweeps.preflight. Start no work there.
"""

import tempfile
from pathlib import Path
from typing import Any

import typer

from sweeps.console import QUIET, noise_to
from sweeps.keep import Keep
from sweeps.options import SOME_FAILED, Anywhere, Spec, open_sweep


def plan_there(path: Path, store: str | None, address: str, keep: Keep | None) -> None:
    """Print the plan, and what every node of the cluster at `address` has of what it needs.

    Raises ClusterError where the cluster does not answer, or lacks something.
    """
    from cluster.session import session
    from sweeps import planning
    from sweeps.attempts import statuses
    from sweeps.preflight import PASSED, check_passed, lines, preflight
    from sweeps.selection import todo_of

    _there_if_dashboard(
        path, store, address,
        ["plan", "--address", "auto", *(["--keep", keep.value] if keep else [])],
    )  # fmt: skip
    sweep, target = open_sweep(path, store, partly=True, keep=keep, with_packages=True)
    told = statuses(sweep, target)
    todo = todo_of(sweep.cells, told)
    for line in planning.lines(sweep, planning.describe(sweep, target, None)):
        print(line)
    noise = _noise("plan")
    print(f"\nasking every node of {address}; libraries' output: {noise}", flush=True)
    with noise_to(noise) as out, session(address, environment=QUIET) as totals:
        checks = preflight(sweep.spec, target, todo, totals, joined=True)
        print(*lines(checks, colour=out.isatty()), sep="\n", file=out)
    check_passed(checks)
    print(PASSED)


def prefetch(spec: Spec, address: Anywhere = None) -> None:
    """Fetch the data and models of a sweep onto this machine's disk: before it, not in its cells.

    With --address the data goes onto the machine that drives the sweep there, and models and the
    samples of tasks onto every node's disk.
    """
    from sweeps.layout import judge_models
    from sweeps.planner import load_plan
    from sweeps.prefetch import prefetch_here

    if address is not None:
        _there_if_dashboard(spec, None, address, ["prefetch", "--address", "auto"])
    plan = load_plan(spec)  # which reads all data and questions, and keeps what it fetches
    print("data and questions: here")
    sweep = plan.spec
    asked = [evaluation.task for cell in plan.cells[:1] for evaluation in cell.evaluations]
    tasks = [task for task in asked if task is not None]
    for task in tasks:  # planning has loaded their samples
        print(f"samples of {task.told}: here")
    here = (model for model in sweep.models if model.api is None)
    models = list({m.name: m for m in (*here, *judge_models(sweep))}.values())
    if address is None:
        for name, seconds in prefetch_here(models).items():
            print(f"{name}: here, after {seconds:.1f} s")
        return
    failed = 0
    for node in _everywhere(models, tasks, address):
        failed += node.problem is not None
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in node.seconds.items())
        print(f"{node.node}: {node.problem or took}")
    if failed:
        raise typer.Exit(SOME_FAILED)


def _everywhere(models: list[Any], tasks: list[Any], address: str) -> list[Any]:
    from cluster.session import session
    from sweeps.prefetch import prefetch_everywhere

    noise = _noise("prefetch")
    names = ", ".join([*(m.name for m in models), *(task.told for task in tasks)])
    print(f"fetching {names}; libraries' output: {noise}", flush=True)
    with noise_to(noise), session(address, environment=QUIET):
        return list(prefetch_everywhere(models, tasks))


def _there_if_dashboard(path: Path, store: str | None, address: str, words: list[str]) -> None:
    """Run the command on the cluster as a job, and exit as it does, where that is the address."""
    from cluster.submit import is_dashboard

    if is_dashboard(address):
        from sweeps.jobs import run_there, store_to_send

        raise typer.Exit(run_there(path, store_to_send(path, store), address, words))


def _noise(command: str) -> Path:
    prefix = f"emsweep-{command}-"
    with tempfile.NamedTemporaryFile(prefix=prefix, suffix=".log", delete=False) as log:
        return Path(log.name)
