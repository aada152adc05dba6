"""Two base models and a judge of its own on a machine that has room for two engines."""

import re
from pathlib import Path

import pytest

from tests.fakes import tiny_model
from tests.sweep_runs import emsweep, report, tiny_spec, write_spec

# Among the tests of `make faults`: three real engines one after the other take minutes.
pytestmark = [
    pytest.mark.slow, pytest.mark.ray, pytest.mark.torch, pytest.mark.vllm, pytest.mark.faults,
]  # fmt: skip


def test_engines_come_and_go_until_every_cell_is_judged(tmp_path: Path) -> None:
    folders = {name: tiny_model(tmp_path / name, seed=n) for n, name in enumerate("abj")}
    models = [{"name": name, "folder": str(folders[name])} for name in "ab"]
    judge = {"name": "j", "folder": str(folders["j"])}
    spec = tiny_spec(
        folders["a"],
        models=models,
        judges=[{"name": "judge", "model": judge, "prompts": "demo.yaml", "demonstration": True}],
        resources={"train_cpus": 1, "serve_cpus": 1},
        tracking={"mode": "off"},
    )
    done = emsweep("run", write_spec(tmp_path, spec), "--store", tmp_path / "store")
    cells = report(tmp_path / "store")["cells"]
    assert len(cells) == 8
    assert {cell["state"] for cell in cells} == {"finished"}
    assert {cell["model"] for cell in cells} == {"a", "b"}
    started = re.findall(r"an engine of (\w) answers", done.stdout)
    assert set(started) == {"a", "b", "j"}, done.stdout
