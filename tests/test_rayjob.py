"""`submit --rayjob`: a manifest that KubeRay takes, with the spec's files and no key."""

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_fields import RAYJOB
from small_sweep import QUESTIONS, SPEC

from em.catalogue import config_dir
from sweeps.jobs import SweepJobs

BUCKET = "s3://bucket/em-sweeps"
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035, as Kubernetes takes it


@pytest.fixture(autouse=True)
def no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that does not see the bucket, and asks nobody for a way in."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def written(folder: Path, **changes: Any) -> Path:
    spec = {**SPEC, "variants": [{"name": "none"}], **changes}
    (folder / "ours.yaml").write_text(QUESTIONS)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def made(path: Path, store: str = BUCKET) -> tuple[dict[str, Any], dict[str, Any]]:
    config, job = yaml.safe_load_all(SweepJobs(path, store).manifest())
    return config, job


def test_it_is_what_kuberay_takes(tmp_path: Path) -> None:
    config, job = made(written(tmp_path))
    jsonschema.validate(job, RAYJOB)
    jobs = SweepJobs(tmp_path / "sweep.yaml", BUCKET)
    assert job["spec"]["jobId"] == f"{jobs.base}-1"  # so that `emsweep logs` finds it
    assert job["spec"]["metadata"]["sweep"] == "small"
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[2:5] == ["sweeps.cli", "run", "/specs/sweep.yaml"]
    assert words[words.index("--store") + 1] == BUCKET
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [v for v in head["volumes"] if "configMap" in v]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == volume["name"]]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert mount["mountPath"] == "/specs"


def test_the_config_map_has_the_spec_and_the_files_it_names(tmp_path: Path) -> None:
    config, _ = made(written(tmp_path))
    assert config["kind"] == "ConfigMap"
    assert config["data"] == {
        "sweep.yaml": (tmp_path / "sweep.yaml").read_text(), "ours.yaml": QUESTIONS,
    }  # fmt: skip
    text = SweepJobs(tmp_path / "sweep.yaml", BUCKET).manifest()
    assert all(f"    {line}\n" in text for line in QUESTIONS.splitlines())  # to be read


def test_keys_are_named_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-the-test")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-of-the-test")
    text = SweepJobs(written(tmp_path), BUCKET).manifest()
    assert "of-the-test" not in text and "secretKeyRef" in text


@pytest.mark.parametrize("name", ["small", "A_Long_Name" + "x" * 50, "a" * 38 + "_b", "x-_-" * 15])
def test_names_keep_to_kubernetes_rules(name: str, tmp_path: Path) -> None:
    config, job = made(written(tmp_path, name=name))
    called = job["metadata"]["name"]
    assert called == config["metadata"]["name"]
    assert NAME.fullmatch(called) and len(called) <= 47
    assert called.endswith(job["spec"]["jobId"][-11:])  # the hash tells sweeps apart


def test_the_same_sweep_has_the_same_manifest_and_another_store_another_name(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    assert made(path) == made(path)
    assert made(path)[1]["metadata"] != made(path, "s3://bucket/other")[1]["metadata"]


@pytest.mark.parametrize("name", ["below/q.yaml", "my questions.yaml"])
def test_a_name_that_a_config_map_cannot_have_is_refused(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, evaluations=[{"name": "main", "questions": name}])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(QUESTIONS)
    with pytest.raises(ValueError, match=f"names '{name}'.*beside the spec"):
        made(path)


def test_more_than_a_config_map_holds_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "ours.yaml").write_text(QUESTIONS + "#" * 1_000_000)
    with pytest.raises(ValueError, match="a ConfigMap takes 1,000,000: use 'emsweep submit'"):
        made(path)


def test_data_of_this_machine_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, variants=[{"name": "mine", "dataset": "rows.jsonl"}])
    with pytest.raises(ValueError, match=r"'rows\.jsonl'.*absolute path"):
        made(path)


def test_a_store_that_would_go_with_the_cluster_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    for store in (str(tmp_path / "store"), "/cache/store", "/specs"):
        with pytest.raises(ValueError, match=f"{store} is a folder that would go .*--store"):
            made(path, store)
    template = yaml.safe_load((config_dir() / "clusters" / "rayjob.yaml").read_text())
    head = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    head["volumes"].append({"name": "nfs", "persistentVolumeClaim": {"claimName": "nfs"}})
    head["containers"][0]["volumeMounts"].append({"name": "nfs", "mountPath": "/shared"})
    (tmp_path / "rayjob.yaml").write_text(yaml.safe_dump(template))
    assert made(path, "/shared/store")[1]["spec"]["entrypoint"].endswith("--store /shared/store")
