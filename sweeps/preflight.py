"""Will the sweep run there: every node is asked what it has, before anything is started.

One table, a row for each thing that must hold: green, or with the cure. What is looked for on a
node is in sweeps.node_facts, how it is judged in sweeps.node_checks and, of memory, sweeps.fit.
"""

import io
import os
import uuid
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.nodes import Node, on_every_node
from cluster.resources import ClusterTooSmall, Demand, Totals
from cluster.session import ClusterError
from em.api_client import needs_key
from em.api_models import ApiChatConfig
from em.models import ModelConfig
from sweeps.artefacts import Probe
from sweeps.console import printable
from sweeps.fit import Memory, memory
from sweeps.layout import demands, feasible, pool_models
from sweeps.node_checks import Check, State, judged
from sweeps.node_facts import NodeFacts, Question, look
from sweeps.settings import JudgeConfig
from sweeps.spec import SweepSpec
from sweeps.store import Store
from sweeps.todo import Todo

PASSED = "preflight passed"
PROBE_ENV = "EMSWEEP_PROBE"  # set in a job by who sent it and sees the store
ANSWER_S = 180.0  # a node that installs an environment takes its time
WIDTH = 118
STATES: Mapping[str | None, State] = {
    "yes": "ok", "unsure": "warning", None: "warning", "no": "failed"
}  # fmt: skip
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def write_probe(store: Store, sweep: str, name: str) -> str:
    """Leave a file in the store for others to find; return its place there."""
    place = f"{store.sweep_dir(sweep)}/preflight/{name}.json"
    store.write_record(place, Probe(made_by=os.uname().nodename))
    return place


def preflight(
    spec: SweepSpec, store: Store, todo: Todo, totals: Totals, *, joined: bool
) -> list[Check]:
    """Return what holds and what does not, of the cluster that is joined or of this machine.

    Leaves nothing in the store. Starts nothing but a task on each node, which holds nothing.
    """
    store.create()
    probe = os.environ.get(PROBE_ENV) or write_probe(store, spec.name, uuid.uuid4().hex)
    answers = f"{probe.removesuffix('.json')}-answers"
    question = Question(
        store=store.url,
        probe=probe,
        answers=answers,
        keys=tuple(sorted(keys_needed(spec, todo))),
        models=tuple(models_needed(spec, todo)),
        apis=tuple(
            dict.fromkeys(
                [j.api for j in _api_judges(spec, todo) if j.api] + [api.url for api in _apis(todo)]
            )
        ),
    )
    try:
        if joined:
            told = on_every_node(_look, question, timeout_s=ANSWER_S)
        else:
            cpus, gpus = totals.nodes[0]
            told = [(Node("here", "this machine", cpus, gpus), look(question, "here"))]
        seen = set(store.files.names(answers))
    finally:
        store.files.remove(probe)
        store.files.remove(answers)
    return [
        *judged(told, seen, demanded(spec, todo), question.keys),
        placement(spec, todo, totals),
        *map(_fit, memory(spec, todo, [f for _, f in told if isinstance(f, NodeFacts)])),
    ]


def _look(question: Question) -> NodeFacts:
    import ray

    return look(question, ray.get_runtime_context().get_node_id())


def demanded(spec: SweepSpec, todo: Todo) -> list[Demand]:
    """Return what one training, and what one engine, holds of a node."""
    trains, engines = demands(spec, todo)
    return [*trains, *engines]


def models_needed(spec: SweepSpec, todo: Todo) -> list[ModelConfig]:
    """Return the models that are trained or served for the cells, each once."""
    lacking = (cell.cell.model for cell in todo.lacking("train"))
    trained = [model for model in lacking if model.api is None]
    both = [*trained, *pool_models(spec, todo)]
    return list({model.name: model for model in both}.values())


def keys_needed(spec: SweepSpec, todo: Todo) -> set[str]:
    """Return the environment variables that must hold a key wherever answers are judged."""
    judges = _api_judges(spec, todo)
    keys = {judge.api_key_env for judge in judges if judge.api and needs_key(judge.api)}
    return keys | {api.key_env for api in _apis(todo) if needs_key(api.url)}


def _apis(todo: Todo) -> list[ApiChatConfig]:
    """Return the models behind an API that are trained or asked, graders of tasks among them."""
    answered = todo.lacking("generate")
    models = [cell.cell.model.api for cell in (*todo.lacking("train"), *answered)]
    tasks = [evaluation.task for cell in answered for evaluation in cell.evaluations]
    graders = [task.grader for task in tasks if task is not None]
    return list({api: None for api in (*models, *graders) if api is not None})


def _api_judges(spec: SweepSpec, todo: Todo) -> list[JudgeConfig]:
    if not todo.lacking("judge"):
        return []
    return [judge for judge in spec.judges if judge.api is not None]


def placement(spec: SweepSpec, todo: Todo, totals: Totals) -> Check:
    """Return whether the work finds room, and how it is laid out."""
    try:
        return Check("room", "ok", str(feasible(spec, todo, totals)))
    except ClusterTooSmall as error:
        return Check("room", "failed", str(error))  # which says what to do


def _fit(found: Memory) -> Check:
    """A card that is too small is told before an hour of loading shows it."""
    return Check(found.what, STATES[found.fits], str(found), found.cure)


def lines(checks: Sequence[Check], *, colour: bool = False) -> list[str]:
    """Return the checks as one table, in lines; in a terminal's colours where wanted."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for check in checks:
        said = Text(printable(check.told))
        if check.cure:
            said.append(f"\n-> {check.cure}")
        table.add_row(Text(check.state, COLOURS[check.state]), check.what, said)
    out = io.StringIO()
    Console(file=out, force_terminal=colour, width=WIDTH).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def check_passed(checks: Sequence[Check]) -> None:
    """Raise ClusterError where something does not hold."""
    failed = [check for check in checks if check.state == "failed"]
    if failed:
        raise ClusterError(
            "the sweep cannot run there, and nothing was started:\n"
            + "\n".join(
                f"{c.what}: {c.told}" + (f". What to do: {c.cure}" if c.cure else "")
                for c in failed
            )
        )
