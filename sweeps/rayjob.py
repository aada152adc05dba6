"""A sweep as a manifest for KubeRay: a RayJob with the project's own cluster, and the spec's files.

The cluster is that of configs/clusters/rayjob.yaml, where its user has named image and machines.
Knows nothing of Ray; keys are referred to there as a secret, and are in no manifest.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from em.catalogue import find_file
from em.yaml_files import load_yaml
from sweeps.packing import check_sendable, named_files
from sweeps.spec import SweepSpec

TEMPLATE = "rayjob.yaml"
FOLDER = "/specs"  # where the template mounts the files
MOST_NAME = 47  # letters of a RayJob's name: KubeRay makes longer ones of it
MOST_BYTES = 1_000_000  # what Kubernetes keeps in a ConfigMap
NOTE = """\
# {name}: kubectl apply -f this file, once the image (IMAGE) and the store are right. The image must
# have this version of em-sweeps. Keys: the secret em-sweeps-keys. See configs/clusters/README.md.
"""


def manifest(path: Path, spec: SweepSpec, job_id: str, command: Callable[[Path], str]) -> str:
    """Return a ConfigMap of the spec and the files it names, and a RayJob that runs it, as YAML.

    `command` makes the job's command of the spec's place. Raises ValueError where a file looks as
    if it held a key, or all are too large for a ConfigMap.
    """
    files = {path.name: path} | {name: source for source, name in named_files(path, spec).items()}
    texts = {name: check_sendable(source).decode() for name, source in files.items()}
    nested = [name for name in texts if "/" in name]
    if nested:
        raise ValueError(
            f"{path} names {nested[0]!r}, and a ConfigMap has no folders: put it beside the spec"
        )
    size = sum(len(text.encode()) for text in texts.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"the spec and its files have {size:,} bytes; a ConfigMap takes {MOST_BYTES:,}: use "
            "'emsweep submit' with an address"
        )
    name = _kubernetes_name(job_id)
    template, _ = load_yaml(find_file(TEMPLATE, relative_to=path.resolve().parent, kind="clusters"))
    job = _filled(template, name, job_id, command(Path(FOLDER) / path.name))
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": texts,
    }
    return NOTE.format(name=name) + yaml.safe_dump_all([config, job], sort_keys=False, width=110)


def _filled(template: dict[str, Any], name: str, job_id: str, command: str) -> dict[str, Any]:
    spec = template["spec"] | {"jobId": job_id, "entrypoint": command}
    volumes = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    for volume in volumes:
        if "configMap" in volume:
            volume["configMap"] = {"name": name}
    return template | {"metadata": {"name": name}, "spec": spec}


def _kubernetes_name(job_id: str) -> str:
    """Return it in small letters, digits and -, with its end, which tells sweeps apart."""
    name = re.sub(r"[^a-z0-9-]", "-", job_id.lower())
    return name if len(name) <= MOST_NAME else name[: MOST_NAME - 9].rstrip("-") + name[-9:]
