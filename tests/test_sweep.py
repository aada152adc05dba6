"""A whole sweep with the real parts, as its user runs it: to the end, again, stopped, continued."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from em.judging import Judgement
from em.training import TrainingResult
from sweeps.live import LiveTraining
from sweeps.store import Store
from tests.fakes import tiny_model
from tests.sweep_runs import (
    AGENTS_GONE_WITHIN_S,
    artefacts,
    check_gone,
    emsweep,
    in_stage,
    report,
    run_until,
    status,
    tiny_spec,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.torch, pytest.mark.vllm]

STATES = ("scored", "refusal", "code", "unscored", "failed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The spec, its store and what the run printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = write_spec(folder, tiny_spec(model))
    done = emsweep("run", spec, "--store", folder / "store")
    return spec, folder / "store", done.stdout


def judgement_keys(store: Path) -> list[str]:
    """Every judgement that a record lists, with repeats if there are any."""
    found = []
    opened = Store(str(store))
    for path in store.glob("judgements/*/record.json"):
        key = json.loads(path.read_text())["key"]
        record = opened.stream("judgements", key)
        assert record is not None
        for part in record.parts:
            found += [j.key for j in opened.read_part("judgements", key, part, Judgement)]
    return found


def adapter_hashes(store: Path) -> dict[str, str]:
    records = [json.loads(p.read_text()) for p in store.glob("training/*/record.json")]
    return {record["key"]: record["weights_sha256"] for record in records}


def test_every_cell_is_finished_and_every_response_is_in_one_state(
    undisturbed: tuple[Path, Path, str],
) -> None:
    _, store, printed = undisturbed
    told = report(store)
    assert printed.rstrip().endswith("report/report.html")
    assert "trained 2/2" in printed
    assert "judged 4/4" in printed
    assert "about -" not in printed
    assert len(told["cells"]) == 4
    for cell in told["cells"]:
        counts = cell["counts"]
        assert cell["state"] == "finished"
        assert counts["responses"] == 2 * 3
        assert sum(counts[state] for state in STATES) == counts["responses"]
        assert cell["attempts"] == 1
    assert "demonstration" in told["warnings"][0]


def test_the_report_has_its_four_files_with_equal_numbers(
    undisturbed: tuple[Path, Path, str],
) -> None:
    _, store, _ = undisturbed
    folder = store / "sweeps" / "tiny" / "report"
    cells = pq.read_table(folder / "cells.parquet").to_pylist()
    rows = pq.read_table(folder / "judgements.parquet").to_pylist()
    assert {c["cell_id"]: c["responses"] for c in cells} == {
        c["cell_id"]: c["counts"]["responses"] for c in report(store)["cells"]
    }
    assert len(rows) == sum(c["responses"] for c in cells) == 24
    assert "tiny · insecure" in (folder / "report.html").read_text()


def test_a_second_run_starts_nothing(undisturbed: tuple[Path, Path, str]) -> None:
    spec, store, _ = undisturbed
    before = artefacts(store), sorted((store / "logs").iterdir())
    done = emsweep("run", spec, "--store", store)
    assert "starting" not in done.stdout
    assert "4 finished" in done.stdout
    assert (artefacts(store), sorted((store / "logs").iterdir())) == before


def test_training_is_tracked_offline_in_one_run_a_cell(undisturbed: tuple[Path, Path, str]) -> None:
    _, store, _ = undisturbed
    ids = [path.name.rsplit("-", 1)[1] for path in (store / "wandb").glob("offline-run-*")]
    assert len(ids) == len(set(ids)) == 4 + 1  # and the sweep's own


def test_another_sweep_shares_the_cells(
    undisturbed: tuple[Path, Path, str], model: Path, tmp_path: Path
) -> None:
    _, store, _ = undisturbed
    other = write_spec(tmp_path, tiny_spec(model, name="other"))
    told = json.loads(emsweep("plan", other, "--store", store, "--json").stdout)
    assert [cell["stages_to_run"] for cell in told["cells"]] == [[], [], [], []]
    assert "4 finished" in emsweep("run", other, "--store", store).stdout
    emsweep("report", other, "--store", store)
    assert len(report(store, "other")["cells"]) == 4


@pytest.mark.faults
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGKILL], id="killed"),
        pytest.param([signal.SIGINT, signal.SIGKILL], id="stopped"),
    ],
)
def test_stopped_in_every_stage_and_continued(
    undisturbed: tuple[Path, Path, str], model: Path, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    """One sweep is stopped by each signal in each stage; it ends as the undisturbed one."""
    # One cell at a time and longer answers, so that each stage lasts long enough to be hit.
    serving = tiny_spec(model)["serving"] | {"concurrency": 1}
    spec = write_spec(tmp_path, tiny_spec(model, serving=serving))
    store = tmp_path / "store"
    agents = []
    for stage in ("train", "generate", "judge"):
        for number in signals:
            before = artefacts(store)
            code, printed, left = run_until(
                spec, store, in_stage(store, stage, since=time.time()), number
            )
            assert code == (130 if number == signal.SIGINT else -signal.SIGKILL), printed
            kept = {name: state for name, state in artefacts(store).items() if name in before}
            assert kept == before
            agents += left
    before = artefacts(store)
    emsweep("run", spec, "--store", store)
    after = artefacts(store)
    assert {name: after[name] for name in before} == before
    _, whole, _ = undisturbed
    assert adapter_hashes(store) == adapter_hashes(whole)
    keys = judgement_keys(store)
    assert len(keys) == len(set(keys)) == 4 * 2 * 3 * 2
    assert sorted(keys) == sorted(judgement_keys(whole))
    assert [c["cell_id"] for c in report(store)["cells"]] == [
        c["cell_id"] for c in report(whole)["cells"]
    ]
    assert {c["state"] for c in report(store)["cells"]} == {"finished"}
    check_gone(agents, within_s=AGENTS_GONE_WITHIN_S)


def test_inline_makes_the_same_adapters(
    undisturbed: tuple[Path, Path, str], model: Path, tmp_path: Path
) -> None:
    base = tiny_spec(model)
    spec = write_spec(tmp_path, base | {"variants": base["variants"][1:], "seeds": [0]})
    emsweep("run", spec, "--inline", "--store", tmp_path / "store")
    here, whole = adapter_hashes(tmp_path / "store"), adapter_hashes(undisturbed[1])
    assert len(here) == 1
    assert here.items() <= whole.items()
    assert {c["state"] for c in report(tmp_path / "store")["cells"]} == {"finished"}


def test_two_ranks_with_zero_3_and_adapters_side_by_side(model: Path, tmp_path: Path) -> None:
    """The other ways through: Ray Train inside the trial, and a pool in lora mode."""
    base = tiny_spec(model)
    training = base["training"] | {"ranks": 2, "zero_stage": 3}
    serving = base["serving"] | {"mode": "lora"}
    resources = {"train_cpus": 1, "serve_cpus": 2}
    changed: dict[str, Any] = {"training": training, "serving": serving, "resources": resources}
    spec = write_spec(tmp_path, base | changed | {"variants": base["variants"][1:], "seeds": [0]})
    emsweep("run", spec, "--store", tmp_path / "store")
    [cell] = report(tmp_path / "store")["cells"]
    assert cell["state"] == "finished"
    assert cell["counts"]["responses"] == 6
    [record] = (tmp_path / "store" / "training").glob("*/record.json")
    result = TrainingResult.model_validate(json.loads(record.read_text())["result"])
    assert result.steps == len(result.losses) == 4
    live = [p.read_text() for p in sorted(record.parent.glob("live-*.json"))]
    told = [[p.loss for p in LiveTraining.model_validate_json(text).points] for text in live]
    assert told == [[point.loss for point in result.losses]] * 2
    # Both ranks are told of in the cell's one run; the other is the sweep's own.
    assert len(list((tmp_path / "store" / "wandb").glob("offline-run-*"))) == 2


def test_a_failed_cell_stays_failed_until_it_is_resumed(model: Path, tmp_path: Path) -> None:
    """A learning rate that explodes fails its cell by name, and the others go on."""
    base = tiny_spec(model)
    training = base["training"] | {"learning_rate": 1e30}
    variants = base["variants"][1:]
    spec = write_spec(tmp_path, base | {"training": training, "variants": variants, "seeds": [0]})
    store = tmp_path / "store"
    emsweep("resume", spec, "--store", store, check=2)
    emsweep("run", spec, "--store", store, check=1)
    [failed] = status(spec, store).values()
    assert (failed["state"], failed["stage"], failed["attempts"]) == ("failed", "train", 1)
    assert failed["error"]
    done = emsweep("run", spec, "--store", store, check=1)
    assert "starting" not in done.stdout
    emsweep("resume", spec, "--store", store, check=1)
    [again] = status(spec, store).values()
    assert again["attempts"] == 2
    told = report(store)
    assert told["cells"][0]["em_rate"] is None
    assert "failed" in told["warnings"][1]
