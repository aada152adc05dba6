"""Notebooks run from the first cell to the last, hold no outputs in git, and define no function."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sweeps.report import write_report
from tests.recorded import recorded

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store = recorded(tmp_path / "store")
    write_report(plan, store, tmp_path / "report")
    monkeypatch.setenv("EMSWEEP_REPORT", str(tmp_path / "report"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    printed = json.dumps(notebook["cells"])
    assert "svg" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_is_stripped_and_defines_nothing(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert "def " not in "".join(cell["source"])


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
