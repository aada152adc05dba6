"""A sweep as a manifest for KubeRay: a RayJob with the project's own cluster, and the spec's files.

The cluster is that of configs/clusters/rayjob.yaml, where its user has named image and machines.
Knows nothing of Ray; keys are referred to there as a secret, and are in no manifest.
"""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from em.catalogue import find_file
from em.yaml_files import load_yaml
from sweeps.packing import check_nothing_is_only_here, check_sendable, named_files
from sweeps.spec import SweepSpec

TEMPLATE = "rayjob.yaml"
FOLDER = "/specs"  # where the template mounts the files
MOST_NAME = 47  # letters of a RayJob's name: KubeRay makes longer ones of it
MOST_BYTES = 1_000_000  # Kubernetes keeps 1 MiB in a ConfigMap, with its names
KEPT = re.compile(r"-[0-9a-f]{8}-\d+$")  # the hash of name and store, and the number
CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")  # what a file in a ConfigMap may be called
PASSING = ("emptyDir", "configMap", "secret")  # volumes that go with the cluster, or take no files
NOTE = """\
# {name}: kubectl apply --filename this file, once the image (IMAGE) is right: it must have this
# version of em-sweeps. Keys: the secret em-sweeps-keys. See configs/clusters/README.md.
"""


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such, to be read before it is applied."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def manifest(
    path: Path,
    spec: SweepSpec,
    *,
    job_id: str,
    store: str,
    command: Callable[[Path], str],
    metadata: Mapping[str, str],
) -> str:
    """Return a ConfigMap of the spec and the files it names, and a RayJob that runs it, as YAML.

    `command` makes the job's command of the spec's place; `metadata` is kept with the job. Raises
    ValueError for what a ConfigMap cannot hold, a file that looks as if it held a key, data and
    models of this machine, and a `store` that would go with the cluster.
    """
    check_nothing_is_only_here(path, spec)
    name = _kubernetes_name(job_id)
    template, _ = load_yaml(find_file(TEMPLATE, relative_to=path.resolve().parent, kind="clusters"))
    _check_store(store, template)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": _texts(path, spec),
    }
    job = _filled(template, name) | {"metadata": {"name": name}}
    job["spec"] |= {
        "jobId": job_id,
        "entrypoint": command(Path(FOLDER) / path.name),
        "metadata": dict(metadata),
    }
    text = yaml.dump_all([config, job], Dumper=_Dumper, sort_keys=False, width=110)
    return NOTE.format(name=name) + text


def _texts(path: Path, spec: SweepSpec) -> dict[str, str]:
    files = {path.name: path, **named_files(path, spec)}
    for name in files:
        if not CONFIG_KEY.fullmatch(name):
            raise ValueError(
                f"{path} names {name!r}, and a ConfigMap has no folders and no names but of "
                "letters, digits, '-', '_' and '.': put it beside the spec, or call it otherwise"
            )
    texts = {name: check_sendable(source).decode() for name, source in files.items()}
    size = sum(len(text.encode()) for text in texts.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"{path} and the files it names have {size:,} bytes; a ConfigMap takes {MOST_BYTES:,}: "
            "use 'emsweep submit' with an address"
        )
    return texts


def _check_store(store: str, template: Mapping[str, Any]) -> None:
    """Raise ValueError for a folder that is on no volume which outlives the cluster's pods."""
    if "://" in store:
        return
    pod = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    passing = {v["name"] for v in pod["volumes"] if any(kind in v for kind in PASSING)}
    mounts = [m for c in pod["containers"] for m in c["volumeMounts"] if m["name"] not in passing]
    if not any(PurePosixPath(store).is_relative_to(mount["mountPath"]) for mount in mounts):
        raise ValueError(
            f"the store {store} is a folder that would go with the cluster: name a bucket with "
            "--store (s3://…, gs://…), or mount a volume there in a copy of "
            f"configs/clusters/{TEMPLATE} beside the spec"
        )


def _filled(template: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the template with the ConfigMap `name` as the files that it mounts."""
    filled = copy.deepcopy(template)
    head = filled["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for volume in head["volumes"]:
        if "configMap" in volume:
            volume["configMap"] = {"name": name}
    return filled


def _kubernetes_name(job_id: str) -> str:
    """Return it in small letters, digits and -, with its end, which tells sweeps apart."""
    name = re.sub(r"[^a-z0-9-]", "-", job_id.lower())
    end = KEPT.search(name)
    kept = end[0] if end else ""
    start = name.removesuffix(kept)[: MOST_NAME - len(kept)].rstrip("-")
    return start + kept
