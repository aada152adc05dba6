"""What the nodes' answers come to: one row for each thing that must hold on all of them.

Judges facts that were found; knows nothing of how they are found (sweeps.node_facts), nor of what
is done with a row that does not hold.
"""

import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.nodes import Node
from cluster.resources import Demand
from em.model_access import Access
from sweeps.node_facts import NodeFacts

EVERYWHERE = ("python", "ray")
WHERE_WORK_IS = ("torch", "transformers", "peft", "accelerate", "deepspeed", "vllm")
# How Ray names accelerators that are not NVIDIA's
# (https://github.com/ray-project/ray/blob/master/python/ray/util/accelerators/accelerators.py).
OTHER_MAKERS = (
    "AMD-", "Intel-", "aws-neuron", "TPU-", "Ascend", "MXC", "FURIOSA", "MOBILINT", "Apple-",
)  # fmt: skip

State = Literal["ok", "warning", "failed"]
Answers = Sequence[tuple[Node, NodeFacts | Exception]]


@dataclass(frozen=True)
class Check:
    """One thing that must hold. `cure` says what to do where it does not."""

    what: str
    state: State
    told: str
    cure: str = ""


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
        *_accelerators(facts, wanted),
        _store(facts, seen),
        *_models(workers),
        *_apis(facts),
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


def _accelerators(facts: Mapping[Node, NodeFacts], wanted: Sequence[Demand]) -> list[Check]:
    """Of GPUs that nvidia-smi does not find: another maker's, or hidden from it."""
    if not any(demand.gpus for demand in wanted):
        return []
    nowhere = not any(node.gpus for node in facts)  # then they are why there is no room
    other = [n for n in facts if (n.accelerator or "").startswith(OTHER_MAKERS)]
    if other := [node for node in other if node.gpus or nowhere]:
        kinds = ", ".join(sorted({str(node.accelerator) for node in other}))
        return [Check(
            "accelerators", "failed",
            f"{_some([node.name for node in other])} has {kinds}: trainings and engines run on "
            "NVIDIA's GPUs alone",
            "leave such nodes out of the cluster, or give them no GPUs there (ray start "
            "--num-gpus=0)",
        )]  # fmt: skip
    unseen = [node for node, fact in facts.items() if node.gpus and not fact.gpus]
    if not unseen:
        return []
    return [Check(
        "accelerators", "warning",
        f"nvidia-smi tells of none of the GPUs that Ray has on {_some([n.name for n in unseen])}: "
        "whether the work fits their memory cannot be compared",
        "is NVIDIA's driver there, and nvidia-smi in the image? Accelerators of other makers are "
        "not supported",
    )]  # fmt: skip


def _store(facts: Mapping[Node, NodeFacts], seen: set[str]) -> Check:
    bad = [(node.name, fact.store) for node, fact in facts.items() if fact.store is not None]
    if not bad and len(seen) < len(facts):
        bad = [("some node", "what it wrote there is not seen by the others")]
    if bad:
        first, why = bad[0]
        whose = (
            f"{len(bad)} of {len(facts)} nodes see another place than who left a file there, first "
            if len(bad) < len(facts)
            else "no node sees what was left there: who sends the sweep sees another place; on "
        )
        return Check(
            "store", "failed",
            f"not shared: {whose}{first}: {why}",
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


def _apis(facts: Mapping[Node, NodeFacts]) -> list[Check]:
    urls = dict.fromkeys(url for fact in facts.values() for url in fact.apis)
    return [_api(url, {n.name: f.apis[url] for n, f in facts.items() if url in f.apis})
            for url in urls]  # fmt: skip


def _api(url: str, problems: Mapping[str, str | None]) -> Check:
    what = f"judge at {urllib.parse.urlsplit(url).netloc}"
    bad = {name: why for name, why in problems.items() if why is not None}
    if not bad:
        return Check(what, "ok", f"answers all {len(problems)} nodes")
    first, why = next(iter(bad.items()))
    return Check(
        what, "failed",
        f"{len(bad)} of {len(problems)} nodes do not reach {url}, first {first}: {why}",
        "let the nodes reach it (HTTPS_PROXY where there is a proxy); a judge at 127.0.0.1 must "
        "be there on each of them",
    )  # fmt: skip


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
