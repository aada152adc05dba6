"""What one node has of what a sweep needs: looked at there, judged elsewhere (sweeps.preflight).

Knows nothing of other nodes, and changes nothing but a file that it leaves in the store.
"""

import http.client
import importlib.metadata
import os
import platform
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from em.model_access import Access, model_access
from em.models import ModelConfig
from sweeps.artefacts import Probe
from sweeps.provenance import PACKAGES
from sweeps.store import open_store

SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
SMI_S = 20
API_S = 20


@dataclass(frozen=True)
class Question:
    """What is asked of every node. `probe` is a file that must be seen in the store.

    `keys` are variables of the environment, `apis` the addresses of judges.
    """

    store: str
    probe: str
    answers: str
    keys: tuple[str, ...]
    models: tuple[ModelConfig, ...]
    apis: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeFacts:
    """What a node has. `store` is why the store cannot be used there, None where it can.

    `apis` is the same of each judge's address.
    """

    python: str
    versions: Mapping[str, str]
    gpus: tuple[tuple[str, int], ...] = ()  # name, memory in MiB
    keys: frozenset[str] = frozenset()
    store: str | None = None
    models: Mapping[str, Access] = field(default_factory=dict)
    apis: Mapping[str, str | None] = field(default_factory=dict)


def look(question: Question, place: str) -> NodeFacts:
    """Return what this node has; `place` is its name among the answers left in the store."""
    return NodeFacts(
        python=platform.python_version(),
        versions=_versions(),
        gpus=gpus(),
        keys=frozenset(name for name in question.keys if os.environ.get(name)),
        store=_store_problem(question, place),
        models={model.name: model_access(model) for model in question.models},
        apis={url: _api_problem(url) for url in question.apis},
    )


def _versions() -> dict[str, str]:
    """Return the packages that bear on results; both builds of vLLM under one name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name.removesuffix("-cpu")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> tuple[tuple[str, int], ...]:
    """Return name and memory in MiB of this machine's NVIDIA GPUs; none where it cannot tell."""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=SMI_S, check=True)
        lines = [line.rsplit(",", 1) for line in done.stdout.splitlines() if line.strip()]
        return tuple((name.strip(), int(mib)) for name, mib in lines)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def _api_problem(url: str) -> str | None:
    """Return why nobody answers at a judge's address; any answer will do, and no key is sent."""
    try:
        with urllib.request.urlopen(url, timeout=API_S):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))


def _store_problem(question: Question, place: str) -> str | None:
    """Return why this node cannot use the store: it must see the probe, and leave an answer."""
    try:
        store = open_store(question.store)
        if store.files.read_record(question.probe, Probe) is None:
            return "it sees another place there, or none: the file that was left for it is missing"
        store.write_record(f"{question.answers}/{place}.json", Probe(made_by=platform.node()))
    except (OSError, ValueError) as error:
        return str(error)
    return None
