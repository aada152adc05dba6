"""`emsweep prefetch` on one machine: data, questions and models are here before any cell asks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import REPO, REVISION, hub_server
from small_sweep import QUESTIONS, SPEC

from em.catalogue import CACHE_ENV
from em.models import ModelConfig
from sweeps.cli import main
from sweeps.prefetch import prefetch_here


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def prefetch(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    (folder / "ours.yaml").write_text(QUESTIONS)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "variants": [{"name": "none"}], **changes}))
    monkeypatch.setattr(sys, "argv", ["emsweep", "prefetch", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_models_of_cells_and_judges_are_fetched_each_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [{"name": "base", "folder": str(model)}]
    judges = [
        {"name": "self", "pool": "base"},
        {"name": "other", "model": {"name": "judge", "folder": str(model)}},
    ]
    assert prefetch(tmp_path, monkeypatch, models=models, judges=judges) == 0
    said = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["data and questions", "base", "judge"]


def test_what_cannot_be_had_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [{"name": "base", "folder": str(model)}]
    variants = [{"name": "mine", "dataset": "not-there.jsonl"}]
    assert prefetch(tmp_path, monkeypatch, models=models, variants=variants) == 2
    assert "not-there.jsonl" in capsys.readouterr().err
    (model / "model.safetensors").unlink()
    assert prefetch(tmp_path, monkeypatch, models=models) == 2
    assert "no *.safetensors" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no such folder"):
        prefetch_here([ModelConfig(name="m", folder=tmp_path / "nowhere")])


WEIGHTS = {"model-00001-of-00002.safetensors": b"one", "model-00002-of-00002.safetensors": b"two"}
FETCH = """
import sys
from em.models import ModelConfig
from sweeps.prefetch import prefetch_here
prefetch_here([ModelConfig(name="m", hub=sys.argv[1], revision=sys.argv[2])])
"""


@pytest.mark.slow
def test_each_weight_file_is_read_once_by_each_node(tmp_path: Path) -> None:
    """Two nodes are two disks; on each three processes ask at the same time, and one later."""
    with hub_server({"config.json": b"{}"} | WEIGHTS) as hub:
        asked = []
        for node in ("a", "b"):
            own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / node), "NO_PROXY": "127.0.0.1"}
            environment = os.environ | own | {"HF_HUB_OFFLINE": "0"}
            command = [sys.executable, "-c", FETCH, REPO, REVISION]
            asked += [subprocess.Popen(command, env=environment) for _ in range(3)]
        assert [process.wait(120) for process in asked] == [0] * 6
        assert subprocess.run(command, env=environment, check=False).returncode == 0
        assert {name: hub.sent[name] for name in WEIGHTS} == dict.fromkeys(WEIGHTS, 2)
