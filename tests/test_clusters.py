"""The launch files of configs/clusters keep to their tools' schemas, and to what the code needs.

No cloud, cluster or GPU is touched. What the files do there, nothing here proves.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_fields import RAYCLUSTER, RAYJOB
from kubernetes_fields import checked
from packaging.requirements import Requirement
from yamllint import linter
from yamllint.config import YamlLintConfig

from em.models import BUNDLED_PACKAGE, BUNDLED_VERSION
from sweeps.settings import JudgeConfig

ROOT = Path(__file__).resolve().parent.parent
CLUSTERS = ROOT / "configs/clusters"
README = (CLUSTERS / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RAY_UP = {"aws": CLUSTERS / "aws.yaml", "gcp": CLUSTERS / "gcp.yaml"}
SCRIPTS = [*sorted(CLUSTERS.glob("*.sh")), CLUSTERS / "slurm.sbatch"]
ENGINE_START_S = 300  # minutes, with the weights of a large model to read
KEYS = {"WANDB_API_KEY", JudgeConfig.model_fields["api_key_env"].default, "HF_TOKEN"}
LINT = YamlLintConfig(
    "{extends: default, rules: {line-length: {max: 160}, document-start: disable, "
    "comments: {min-spaces-from-content: 1}, braces: {max-spaces-inside: 0}, "
    "truthy: {check-keys: false}}}"
)


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / name).read_text())


def raycluster(name: str) -> Any:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> dict[str, Any]:
    spec = raycluster(name)
    return {"head": spec["headGroupSpec"]["template"]} | {
        group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]
    }


def pinned(extra: str) -> dict[str, Requirement]:
    """What an extra of pyproject.toml asks for, with the extras that it names."""
    found: dict[str, Requirement] = {}
    for text in PROJECT["optional-dependencies"][extra]:
        wanted = Requirement(text)
        if wanted.name == PROJECT["name"]:
            for other in wanted.extras:
                found |= pinned(other)
        else:
            found[wanted.name] = wanted
    return found


def locked() -> dict[str, str]:
    lines = (CLUSTERS / "requirements-gpu.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def sourced(**given: str) -> dict[str, str]:
    """The environment that node_env.sh makes of one with nothing but PATH and what is given."""
    tell = "import json, os; print(json.dumps(dict(os.environ)))"
    script = f'. {CLUSTERS / "node_env.sh"} && exec "$0" -c "{tell}"'
    said = subprocess.run(
        ["bash", "-euc", script, sys.executable],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    env = json.loads(said.stdout)
    return {k: v for k, v in env.items() if k.startswith(("RAY_", "EMSWEEP_", "HF_"))}


# All files ------------------------------------------------------------------------------------


def test_the_readme_tells_of_every_file_and_links_to_what_is_there() -> None:
    names = {path.name for path in CLUSTERS.iterdir() if path.name != "README.md"}
    assert {name for name in names if name not in README} == set()
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (CLUSTERS / link).exists(), link


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.name)
def test_yaml_is_clean(path: Path) -> None:
    assert [str(problem) for problem in linter.run(path.read_text(), LINT)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    said = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "--external-sources", path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout == ""


def test_only_the_dashboard_that_the_operator_must_reach_listens_beyond_its_machine() -> None:
    files = [path for path in CLUSTERS.iterdir() if "0.0.0.0" in path.read_text()]
    assert [path.name for path in files] == ["rayjob.yaml"]  # within kuberay_network.yaml's limits


# The environment ------------------------------------------------------------------------------


def test_the_lock_holds_what_the_gpu_extra_asks_for() -> None:
    versions, wanted = locked(), pinned("gpu") | {
        (r := Requirement(text)).name: r for text in PROJECT["dependencies"]
    }  # fmt: skip
    assert {"vllm", "ray", "torch", "deepspeed"} <= set(wanted)
    missed = {n: str(r) for n, r in wanted.items() if versions.get(n) not in r.specifier}
    assert missed == {}
    asked = re.findall(r"^[\w-]+$", (CLUSTERS / "requirements.in").read_text(), flags=re.M)
    assert set(asked) <= set(versions)


def test_image_and_machines_are_made_alike() -> None:
    texts = [(CLUSTERS / name).read_text() for name in ("Dockerfile", "aws.yaml", "gcp.yaml")]
    for text in texts:
        assert set(re.findall(rf"{BUNDLED_PACKAGE}==([\w.]+)", text)) == {BUNDLED_VERSION}
        assert set(re.findall(r"python(3\.\d+)", text)) == {"3.12"}
        assert "requirements-gpu.txt" in text and "DS_BUILD_OPS=0" in text
    assert len({match for text in texts for match in re.findall(r"uv==([\d.]+)", text)}) == 1


def test_the_image_runs_as_a_user_and_holds_no_key() -> None:
    lines = (CLUSTERS / "Dockerfile").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM nvidia/cuda:13\.\d+\.\d+-devel-ubuntu24\.04", base)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("0", "root")
    assert pods("rayjob.yaml")["head"]["spec"]["securityContext"]["runAsUser"] == int(users[-1])
    settings = [line for line in lines if line.startswith(("ENV ", "ARG "))]
    assert not [line for line in settings if re.search("KEY|TOKEN|SECRET", line)]
    copied = {part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]}
    let_in = (CLUSTERS / "Dockerfile.dockerignore").read_text().splitlines()
    assert {name.split("/")[0] for name in copied} == {
        line[1:] for line in let_in if line[0] == "!"
    }


def test_every_node_has_what_a_ray_of_our_own_would_have() -> None:
    session = (ROOT / "cluster/session.py").read_text()
    wanted = {k: v for k, v in sourced().items() if k != "RAY_AUTH_MODE"}
    assert wanted and all(f'"{name}", "{value}"' in session for name, value in wanted.items())
    assert sourced()["RAY_AUTH_MODE"] == "token"
    for name in ("kuberay_cluster.yaml", "rayjob.yaml"):
        for pod in pods(name).values():
            env = {e["name"]: e.get("value") for e in pod["spec"]["containers"][0]["env"]}
            assert wanted.items() <= env.items()


def test_caches_lie_on_the_disk_of_the_node_where_one_is_named(tmp_path: Path) -> None:
    assert not {"EMSWEEP_CACHE", "HF_HOME"} & set(sourced())
    env = sourced(NODE_DISK=str(tmp_path))
    for name in ("EMSWEEP_CACHE", "HF_HOME"):
        assert Path(env[name]).is_dir() and Path(env[name]).is_relative_to(tmp_path)


# ray up ---------------------------------------------------------------------------------------


def ray_schema() -> Any:
    found = find_spec("ray")  # without importing it
    assert found is not None and found.origin is not None
    return json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text())


@pytest.mark.parametrize("path", RAY_UP.values(), ids=list(RAY_UP))
def test_ray_up_files_keep_to_rays_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), ray_schema())


@pytest.mark.slow
@pytest.mark.parametrize("path", RAY_UP.values(), ids=list(RAY_UP))
def test_ray_takes_the_files_and_fills_them_out(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    kinds = config["available_node_types"]
    assert {k: v["max_workers"] for k, v in kinds.items() if k != "head"} == {
        "one-gpu": 8, "eight-gpus": 2,
    }  # fmt: skip
    with pytest.raises(jsonschema.ValidationError):  # a slip would be found
        validate_config(config | {"idle_timeout_minute": 5})


@pytest.mark.parametrize(("cloud", "path"), RAY_UP.items(), ids=list(RAY_UP))
def test_ray_up_clusters_are_what_a_sweep_needs(cloud: str, path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    kinds = dict(config["available_node_types"])
    head = kinds.pop(config["head_node_type"])
    assert head["resources"]["GPU"] == 0 and "min_workers" not in head
    assert {kind["resources"]["GPU"] for kind in kinds.values()} == {1, 8}
    assert sum(kind["min_workers"] for kind in kinds.values()) >= 1  # else it is refused: too small
    assert sum(kind["max_workers"] for kind in kinds.values()) <= config["max_workers"]
    assert config["idle_timeout_minutes"] * 60 > ENGINE_START_S
    (start_head,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    (start,) = [c for c in config["worker_start_ray_commands"] if "ray start" in c]
    assert "--num-gpus=0" in start_head and "--dashboard-host=127.0.0.1" in start_head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start_head
    for command in (start_head, start):
        assert "node_env.sh" in command and "em-sweeps-keys" in command
    assert "spot_watch.sh " + cloud in config["worker_start_ray_commands"][-1]
    mounts = {Path(there).name: here for there, here in config["file_mounts"].items()}
    assert mounts == {"auth_token": "~/.ray/auth_token", "em-sweeps-cluster": "configs/clusters"}


def test_workers_are_spot_and_heads_are_not() -> None:
    for kind, node in load("aws.yaml")["available_node_types"].items():
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (kind != "head")
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    for kind, node in load("gcp.yaml")["available_node_types"].items():
        spot = node["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert spot == (kind != "head")
    for name in ("kuberay_cluster.yaml", "rayjob.yaml"):
        for kind, pod in pods(name).items():
            assert ("nodeSelector" in pod["spec"]) == (kind != "head")


@pytest.mark.parametrize("path", RAY_UP.values(), ids=list(RAY_UP))
def test_commands_of_ray_up_files_are_shell(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    commands = [c for key, value in config.items() if key.endswith("commands") for c in value]
    assert len(commands) >= 9
    script = "#!/bin/bash\n# shellcheck disable=SC1090,SC1091,SC2016\n" + "\n".join(commands) + "\n"
    said = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "-"],
        input=script, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout == ""


# KubeRay --------------------------------------------------------------------------------------


def test_kuberay_files_keep_to_the_fields_of_kuberay() -> None:
    jsonschema.validate(load("kuberay_cluster.yaml"), RAYCLUSTER)
    jsonschema.validate(load("rayjob.yaml"), RAYJOB)
    slip = load("rayjob.yaml")
    slip["spec"]["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutSecond"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(slip, RAYJOB)


@pytest.mark.parametrize("name", ["kuberay_cluster.yaml", "rayjob.yaml"])
def test_pods_keep_to_the_fields_of_kubernetes(name: str) -> None:
    for template in pods(name).values():
        checked("V1PodTemplateSpec", template)
    template = pods(name)["head"]
    template["spec"]["containers"][0]["env"][0]["values"] = "a slip"
    with pytest.raises(ValueError, match="values"):
        checked("V1PodTemplateSpec", template)


def test_the_network_policy_lets_in_the_pods_themselves_and_the_operator_alone() -> None:
    policy = load("kuberay_network.yaml")
    checked("V1NetworkPolicy", policy)
    label = policy["spec"]["podSelector"]["matchLabels"]
    for name in ("kuberay_cluster.yaml", "rayjob.yaml"):
        assert all(pod["metadata"]["labels"] == label for pod in pods(name).values())
    own, operator = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": label}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]


@pytest.mark.parametrize("name", ["kuberay_cluster.yaml", "rayjob.yaml"])
def test_kuberay_clusters_are_what_a_sweep_needs(name: str) -> None:
    spec = raycluster(name)
    assert spec["rayVersion"] == str(pinned("gpu")["ray"].specifier).removeprefix("==")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > ENGINE_START_S
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    groups = spec["workerGroupSpecs"]
    assert sum(group["minReplicas"] for group in groups) >= 1
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in groups)
    for kind, pod in pods(name).items():
        (container,) = pod["spec"]["containers"]
        env = {entry["name"]: entry for entry in container["env"]}
        for key in KEYS:
            assert env[key]["valueFrom"]["secretKeyRef"]["name"] == "em-sweeps-keys"
        assert not [e for e in env if re.search("KEY$|TOKEN$", e) and "value" in env[e]]
        gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        assert gpus == {"head": 0, "one-gpu": 1, "eight-gpus": 8}[kind]
        if kind != "head":  # what is left of the grace is for Ray to end
            drain_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"])
            assert 30 <= drain_s < pod["spec"]["terminationGracePeriodSeconds"]


def test_the_job_brings_the_same_cluster() -> None:
    job, cluster = raycluster("rayjob.yaml"), raycluster("kuberay_cluster.yaml")
    head = job["headGroupSpec"]
    assert head["rayStartParams"].pop("dashboard-host") == "0.0.0.0"
    assert cluster["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    spec = {"name": "spec", "mountPath": "/specs", "readOnly": True}
    head["template"]["spec"]["containers"][0]["volumeMounts"].remove(spec)
    head["template"]["spec"]["volumes"].remove(
        {"name": "spec", "configMap": {"name": "em-sweeps-spec"}}
    )
    assert job == cluster
    entry = load("rayjob.yaml")["spec"]["entrypoint"]
    assert entry.startswith("python -m sweeps.cli run /specs/spec.yaml --address auto --store ")
