"""`emsweep prefetch` on one machine: data, questions and models are here before any cell asks."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
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
