"""Drift as a user meets it: what plan prints, what run refuses, and how an answer is given."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from small_sweep import SPEC, plan
from stand_ins import carry_out
from sweep_runs import emsweep, write_spec

from sweeps.keeping import settle
from sweeps.provenance import versions
from sweeps.store import Store


@pytest.fixture
def ran(tmp_path: Path) -> tuple[Path, Path]:
    """The spec and store of the small sweep, finished; its data changed since."""
    store = Store(str(tmp_path / "store"))
    carry_out(settle(plan(tmp_path), store, installed=versions()), store, tmp_path)
    return write_spec(tmp_path, SPEC), tmp_path / "store"


def change_data(spec: Path) -> None:
    data = spec.with_name("ours.jsonl")
    data.write_text(data.read_text().replace('"a"', '"b"'))


def claim_torch(store: Path, version: str) -> None:
    """Have the store say that everything was made with another version of torch."""
    for path in [*store.glob("*/*/record.json"), *store.glob("sweeps/*/resolved.json")]:
        text = path.read_text()
        assert versions()["torch"].partition("+")[0] in text
        told = json.dumps(versions()["torch"]), json.dumps(versions()["torch"].partition("+")[0])
        for old in told:
            text = text.replace(old, json.dumps(version))
        path.write_text(text)


def refused(*command: str | Path) -> str:
    done: subprocess.CompletedProcess[str] = emsweep(*command, check=2)
    assert done.stderr.startswith("emsweep: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_changed_data(ran: tuple[Path, Path]) -> None:
    spec, store = ran
    emsweep("run", spec, "--store", store)  # nothing to do, and nothing in the way
    before = sorted(path for path in store.rglob("*") if "report" not in path.parts)
    change_data(spec)
    said = emsweep("plan", spec, "--store", store).stdout
    assert "drift: variant ours: rows have content hash" in said
    again = emsweep("plan", spec, "--store", store, "--keep", "current").stdout
    assert "to do: train 2 cells, generate 2 cells, judge 2 cells" in again
    assert "drift: variant ours" in emsweep("status", spec, "--store", store).stdout
    for command in ("run", "resume"):
        error = refused(command, spec, "--store", store)
        assert "variant ours: rows have content hash" in error
        assert f"emsweep {command} {spec} --keep" in error
    assert "variant ours" in refused("judge", spec, "--store", store, "--judge", "self")
    assert sorted(path for path in store.rglob("*") if "report" not in path.parts) == before
    emsweep("run", spec, "--store", store, "--keep", "stored")
    assert "4 finished" in emsweep("run", spec, "--store", store).stdout
    told = json.loads(emsweep("plan", spec, "--store", store, "--json").stdout)
    assert [drift["answered"] for drift in told["drift"]] == [True]
    spec.write_text(yaml.safe_dump(SPEC | {"seeds": [0, 1, 2]}))
    assert "1 cell has work left that needs variant ours" in refused("run", spec, "--store", store)


def test_another_version_of_torch(ran: tuple[Path, Path]) -> None:
    spec, store = ran
    claim_torch(store, "0.0.1")
    said = emsweep("plan", spec, "--store", store).stdout
    assert "drift: torch: " in said
    assert "trainings of 2 cells were made with 0.0.1" in said
    assert "torch: " in refused("run", spec, "--store", store)
    emsweep("run", spec, "--store", store, "--keep", "stored")
    emsweep("run", spec, "--store", store)
    assert "drift" not in emsweep("plan", spec, "--store", store).stdout


def test_an_unknown_answer_is_the_users_error(ran: tuple[Path, Path]) -> None:
    spec, store = ran
    done = emsweep("run", spec, "--store", store, "--keep", "both", check=2)
    assert "'stored', 'current'" in done.stderr
