"""Will the sweep run there: every node is asked what it has, before anything is started.

One row for each thing that must hold, green or with the cure. Judges what was found; how it is
looked for is in sweeps.node_facts, what fits a GPU in sweeps.fit.
"""

import io
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.nodes import Node, on_every_node
from cluster.resources import ClusterTooSmall, Demand, Totals
from cluster.session import ClusterError
from em.api_judge import needs_key
from em.model_access import Access
from em.models import ModelConfig
from sweeps.artefacts import Probe
from sweeps.console import printable
from sweeps.fit import Memory, memory
from sweeps.layout import demands, feasible, pool_models
from sweeps.node_facts import NodeFacts, Question, look
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.store import Store

PASSED = "preflight passed"
PROBE_ENV = "EMSWEEP_PROBE"  # set in a job by who sent it and sees the store
ANSWER_S = 180.0  # a node that installs an environment takes its time
EVERYWHERE = ("python", "ray")
WHERE_WORK_IS = ("torch", "transformers", "peft", "accelerate", "deepspeed", "vllm")
WIDTH = 118
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}

State = Literal["ok", "warning", "failed"]
Answers = Sequence[tuple[Node, NodeFacts | Exception]]


@dataclass(frozen=True)
class Check:
    """One thing that must hold. `cure` says what to do where it does not."""

    what: str
    state: State
    told: str
    cure: str = ""


def write_probe(store: Store, sweep: str, name: str) -> str:
    """Leave a file in the store for others to find; return its place there."""
    place = f"{store.sweep_dir(sweep)}/preflight/{name}.json"
    store.write_record(place, Probe(made_by=os.uname().nodename))
    return place


def preflight(
    plan: SweepPlan, store: Store, todo: Sequence[CellPlan], totals: Totals, *, joined: bool
) -> list[Check]:
    """Return what holds and what does not, of the cluster that is joined or of this machine.

    Leaves nothing in the store. Starts nothing but a task on each node, which holds nothing.
    """
    store.create()
    probe = os.environ.get(PROBE_ENV) or write_probe(store, plan.spec.name, uuid.uuid4().hex)
    answers = f"{probe.removesuffix('.json')}-answers"
    question = Question(
        store=store.url,
        probe=probe,
        answers=answers,
        keys=tuple(sorted(keys_needed(plan, todo, store))),
        models=tuple(models_needed(plan, todo, store)),
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
        *judged(told, seen, demanded(plan, todo, store), question.keys),
        placement(plan, todo, store, totals),
        *map(_fit, memory(plan, todo, store, [f for _, f in told if isinstance(f, NodeFacts)])),
    ]


def _look(question: Question) -> NodeFacts:
    import ray

    return look(question, ray.get_runtime_context().get_node_id())


def demanded(plan: SweepPlan, todo: Sequence[CellPlan], store: Store) -> list[Demand]:
    """Return what one training, and what each replica, holds of a node."""
    train, pools = demands(plan.spec, todo, store)
    return [*([train] if train else []), *pools]


def models_needed(plan: SweepPlan, todo: Sequence[CellPlan], store: Store) -> list[ModelConfig]:
    """Return the models that are trained or served for the cells, each once."""
    trained = [c.cell.model for c in todo if "train" in stages_to_run(c, store)]
    both = [*trained, *pool_models(plan.spec, todo, store)]
    return list({model.name: model for model in both}.values())


def keys_needed(plan: SweepPlan, todo: Sequence[CellPlan], store: Store) -> set[str]:
    """Return the environment variables that must hold a key wherever answers are judged."""
    if not any("judge" in stages_to_run(cell, store) for cell in todo):
        return set()
    return {
        judge.api_key_env
        for judge in plan.spec.judges
        if judge.api is not None and needs_key(judge.api)
    }


def judged(
    told: Answers, seen: set[str], wanted: Sequence[Demand], keys: Iterable[str]
) -> list[Check]:
    """Return what the nodes' answers come to; `seen` are the files that they left in the store.

    `wanted` is what a training, and a replica, hold of a node; `keys` must be set everywhere.
    """
    silent = {node.name: fact for node, fact in told if isinstance(fact, Exception)}
    facts = {node: fact for node, fact in told if isinstance(fact, NodeFacts)}
    workers = {n: f for n, f in facts.items() if any(_holds(n, demand) for demand in wanted)}
    return [
        _answered(facts, silent),
        _same_versions(facts, EVERYWHERE, "Python and Ray"),
        _same_versions(workers, WHERE_WORK_IS, "packages"),
        _store(facts, seen),
        *_models(workers),
        *_keys(facts, keys),
    ]


def _holds(node: Node, demand: Demand) -> bool:
    return node.cpus >= demand.cpus and node.gpus >= demand.gpus


def _answered(facts: Mapping[Node, NodeFacts], silent: Mapping[str, Exception]) -> Check:
    if silent:
        first, error = next(iter(silent.items()))
        return Check(
            "nodes",
            "failed",
            f"{len(silent)} of {len(silent) + len(facts)} do not answer, first {first}: "
            f"{_first_line(error)}",
            "does every node have this Python, and the packages of em-sweeps? See 'ray status'",
        )
    gpus = sum(len(fact.gpus) for fact in facts.values())
    kinds = sorted({name for fact in facts.values() for name, _ in fact.gpus})
    return Check(
        "nodes", "ok",
        f"{len(facts)}, {gpus} GPUs" + (f" ({', '.join(kinds)})" if kinds else ""),
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _same_versions(facts: Mapping[Node, NodeFacts], names: Iterable[str], what: str) -> Check:
    """All nodes must have the same: numbers hang on it, and what travels between them."""
    told, differ = [], []
    for name in names:
        found: dict[str, list[str]] = {}
        for node, fact in facts.items():
            version = fact.python if name == "python" else fact.versions.get(name, "none")
            found.setdefault(version.partition("+")[0], []).append(node.name)
        if len(found) > 1:
            sides = "; ".join(f"{v} on {_some(on)}" for v, on in sorted(found.items()))
            differ.append(f"{name} {sides}")
        elif "none" in found:
            differ.append(f"no {name} on {_some(found['none'])}")
        else:
            told += [f"{name} {version}" for version in found]
    if differ:
        return Check(
            what, "failed", "; ".join(differ),
            "give all nodes one image or environment (configs/clusters has such), and start Ray "
            "there anew",
        )  # fmt: skip
    return Check(what, "ok", ", ".join(told) or "no node has work")


def _some(names: Sequence[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _store(facts: Mapping[Node, NodeFacts], seen: set[str]) -> Check:
    bad = {node.name: fact.store for node, fact in facts.items() if fact.store is not None}
    if not bad and len(seen) < len(facts):
        bad = {"some node": "what it wrote there is not seen by the others"}
    if bad:
        first, why = next(iter(bad.items()))
        return Check(
            "store", "failed",
            f"not shared by {len(bad)} of {len(facts)} nodes, first {first}: {why}",
            "name a place that all nodes and this machine see: a shared folder (NFS), or a bucket "
            "(s3://…, gs://…) with --store",
        )  # fmt: skip
    return Check("store", "ok", f"read and written by all {len(facts)} nodes")


def _models(facts: Mapping[Node, NodeFacts]) -> list[Check]:
    names = list(dict.fromkeys(name for fact in facts.values() for name in fact.models))
    return [_model(name, {n: f.models[name] for n, f in facts.items()}) for name in names]


def _model(name: str, access: Mapping[Node, Access]) -> Check:
    bad = {node.name: a.problem for node, a in access.items() if a.problem is not None}
    what = f"model {name}"
    if bad:
        first, why = next(iter(bad.items()))
        return Check(
            what, "failed",
            f"{len(bad)} of {len(access)} nodes cannot have it, first {first}: {why}",
            "let the nodes reach the hub (HF_TOKEN for gated models), fetch it beforehand with "
            "'emsweep prefetch', or name a folder that all nodes see",
        )  # fmt: skip
    if len({a.revision for a in access.values()}) > 1:
        return Check(
            what, "failed", "its folder holds other files on some nodes than on others",
            "copy the folder anew, or put it on shared storage",
        )  # fmt: skip
    if any(a.has_template is False for a in access.values()):
        return Check(
            what, "failed", "its tokenizer has no chat template",
            "name the instruct model, or put chat_template.jinja into its folder",
        )  # fmt: skip
    missing = sum(not a.here for a in access.values())
    if missing:
        return Check(
            what, "warning", f"{missing} of {len(access)} nodes fetch it when they first need it",
            "'emsweep prefetch' does so beforehand",
        )  # fmt: skip
    return Check(what, "ok", f"on all {len(access)} nodes that have work")


def _keys(facts: Mapping[Node, NodeFacts], keys: Iterable[str]) -> list[Check]:
    return [_key(name, [n.name for n, f in facts.items() if name not in f.keys]) for name in keys]


def _key(name: str, without: Sequence[str]) -> Check:
    if not without:
        return Check(name, "ok", "set on all nodes")
    return Check(
        name, "failed", f"not set on {_some(without)}: answers may be judged on any node",
        "set it in the environment in which Ray is started there (a Kubernetes secret, or the "
        "launch file's): keys are not sent along",
    )  # fmt: skip


def placement(plan: SweepPlan, todo: Sequence[CellPlan], store: Store, totals: Totals) -> Check:
    """Return whether the work finds room, and how it is laid out."""
    try:
        return Check("room", "ok", str(feasible(plan, todo, store, totals)))
    except ClusterTooSmall as error:
        return Check("room", "failed", str(error), "see there")


def _fit(found: Memory) -> Check:
    """A card that is too small is told before an hour of loading shows it."""
    if found.fits is None:
        return Check(found.what, "warning", f"{found.told} ({found.card}: not compared)")
    told = f"{found.told}; the smallest card is {found.card}"
    if found.fits == "yes":
        return Check(found.what, "ok", told)
    if found.fits == "unsure":
        return Check(found.what, "warning", f"{told}: within the error of the estimate", found.cure)
    return Check(found.what, "failed", told, found.cure)


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
            + "\n".join(f"{c.what}: {c.told}. What to do: {c.cure}" for c in failed)
        )
