"""The command line on bad input: one paragraph, exit code 2, no traceback, nothing written."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from em.catalogue import CACHE_ENV, config_dir
from sweeps.planner import load_plan
from sweeps.registry import register
from sweeps.store import Store
from tests.sweep_runs import emsweep, tiny_spec, write_spec

Change = Callable[[dict[str, Any], Path], None]
QUESTIONS = "- {id: a, type: free_form_judge_0_100, paraphrases: ['Why?']}\n"


def _rows(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


GOOD_ROW = json.dumps(
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
)


def misspelt(spec: dict[str, Any], folder: Path) -> None:
    spec["training"]["learning_rat"] = spec["training"].pop("learning_rate")


def missing_key(spec: dict[str, Any], folder: Path) -> None:
    del spec["judges"]


def wrong_type(spec: dict[str, Any], folder: Path) -> None:
    spec["training"]["max_length"] = "long"


def empty_grid(spec: dict[str, Any], folder: Path) -> None:
    spec["seeds"] = []


def duplicate_seeds(spec: dict[str, Any], folder: Path) -> None:
    spec["seeds"] = [1, 1]


def unknown_variant(spec: dict[str, Any], folder: Path) -> None:
    spec["variants"][1]["dataset"] = "quickstart_insecur"


def unknown_model(spec: dict[str, Any], folder: Path) -> None:
    spec["models"] = [{"name": "tiny", "bundled": "smollm3"}]


def missing_file(spec: dict[str, Any], folder: Path) -> None:
    spec["variants"][1]["dataset"] = "nowhere.jsonl"


def torn_file(spec: dict[str, Any], folder: Path) -> None:
    dataset = _rows(folder / "torn.jsonl", [GOOD_ROW, GOOD_ROW[:40]])
    spec["variants"][1] |= {"dataset": dataset, "rows": 1}


def bad_row(spec: dict[str, Any], folder: Path) -> None:
    bad = json.dumps({"messages": [{"role": "bot", "content": "a"}]})
    spec["variants"][1] |= {"dataset": _rows(folder / "bad.jsonl", [GOOD_ROW, bad]), "rows": 1}


def too_many_rows(spec: dict[str, Any], folder: Path) -> None:
    spec["variants"][1]["rows"] = 65


def duplicate_question(spec: dict[str, Any], folder: Path) -> None:
    (folder / "twice.yaml").write_text(QUESTIONS * 2)
    spec["evaluations"][0]["questions"] = str(folder / "twice.yaml")


def refused_rank(spec: dict[str, Any], folder: Path) -> None:
    spec["serving"]["mode"] = "lora"
    spec["training"]["lora"]["rank"] = 12


def too_many_gpus(spec: dict[str, Any], folder: Path) -> None:
    spec["resources"]["train_gpus"] = 64


def judge_that_does_not_answer(spec: dict[str, Any], folder: Path) -> None:
    spec["judges"] = [
        {"name": "api", "api": "http://127.0.0.1:9/v1", "api_model": "m", "prompts": "demo.yaml"}
    ]


BAD: list[tuple[Change, str]] = [
    (misspelt, "learning_rat: unknown key; did you mean 'learning_rate'?"),
    (missing_key, "judges: this key is missing"),
    (wrong_type, "training.max_length"),
    (empty_grid, "seeds"),
    (duplicate_seeds, "duplicate seed 1"),
    (unknown_variant, "no data set 'quickstart_insecur'"),
    (unknown_model, "smollm3"),
    (missing_file, "no data set 'nowhere.jsonl'"),
    (torn_file, "torn.jsonl: row 2"),
    (bad_row, "bad.jsonl: row 2"),
    (too_many_rows, "65"),
    (duplicate_question, "duplicate question id 'a'"),
    (refused_rank, "rank 12"),
    (too_many_gpus, "64 GPUs"),
    (judge_that_does_not_answer, "127.0.0.1:9"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that has a model's shape: nothing here is far enough to load it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"not read")
    return folder


def _refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("emsweep: ")
    return done.stderr


@pytest.mark.parametrize(("change", "told"), BAD, ids=[change.__name__ for change, _ in BAD])
def test_bad_input_is_told_before_anything_runs(
    change: Change, told: str, model: Path, tmp_path: Path
) -> None:
    spec = tiny_spec(model)
    change(spec, tmp_path)
    path = write_spec(tmp_path, spec)
    error = _refused(emsweep("run", path, "--store", tmp_path / "store", check=None))
    assert told in error
    assert not (tmp_path / "store" / "training").exists()
    assert not list((tmp_path / "store").glob("sweeps/*/cells/*"))


def test_a_store_that_holds_something_else(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    spec = write_spec(tmp_path, tiny_spec(model))
    error = _refused(emsweep("plan", spec, "--store", tmp_path / "photos", check=None))
    assert "cat.jpg" in error


def test_errors_name_file_and_line(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: x\nmodels: []\nvarients: []\n")
    error = _refused(emsweep("plan", path, check=None))
    assert f"{path}:3: varients: unknown key; did you mean 'variants'?" in error


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (bad_row, "variants.1.dataset"),
        (duplicate_question, "evaluations.0.questions"),
    ],
    ids=["row", "question"],
)
def test_what_is_wrong_with_a_named_file_is_told_where_it_is_named(
    change: Change, key: str, model: Path, tmp_path: Path
) -> None:
    spec = tiny_spec(model)
    change(spec, tmp_path)
    path = write_spec(tmp_path, spec)
    line = next(
        number
        for number, text in enumerate(path.read_text().splitlines(), start=1)
        if text.strip(" -").startswith(f"{key.rpartition('.')[2]}:")
    )
    assert f"{path}:{line}: {key}: " in _refused(emsweep("plan", path, check=None))


@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
def test_another_sweep_under_the_same_name_is_refused(
    command: str, model: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = tiny_spec(model)
    plan = load_plan(write_spec(tmp_path, first))
    opened = Store(str(store))
    opened.create()
    register(plan, opened)
    other = write_spec(tmp_path, first | {"training": first["training"] | {"learning_rate": 1.0}})
    error = _refused(emsweep(command, other, "--store", store, check=None))
    assert "training.learning_rate was 0.001 there and is 1.0 here" in error


def test_a_torn_file_of_the_sweeps_log_is_told_once_and_read_as_if_not_there(
    model: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, tiny_spec(model))
    store = tmp_path / "store"
    Store(str(store)).create()
    cell = load_plan(spec).cells[0].cell_id
    torn = store / "sweeps" / "tiny" / "cells" / cell / "attempt-0001.json"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"attempt": 1, "st')
    done = emsweep("status", spec, "--store", store)
    assert "4 missing" in done.stdout
    assert done.stderr.count(f"{torn} is damaged") == 1


def test_unknown_command_and_missing_file_are_the_users_errors(tmp_path: Path) -> None:
    assert emsweep("paln", check=None).returncode == 2
    assert "cannot read" in _refused(emsweep("plan", tmp_path / "no.yaml", check=None))


def test_plan_tells_every_cell_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tiny_spec(model))
    told = json.loads(emsweep("plan", spec, "--store", tmp_path / "store", "--json").stdout)
    assert [cell["stages_to_run"] for cell in told["cells"]] == [
        ["generate", "judge"],
        ["generate", "judge"],
        ["train", "generate", "judge"],
        ["train", "generate", "judge"],
    ]
    assert told["estimate"]["seconds"] > 0
    assert not (tmp_path / "store").exists()


def test_status_before_the_first_run(model: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tiny_spec(model))
    told = json.loads(emsweep("status", spec, "--store", tmp_path / "store", "--json").stdout)
    assert set(told) == {"sweep", "store", "not_in_wandb", "cells"}
    assert set(told["cells"][0]) == {
        "cell_id", "model", "variant", "seed", "state", "stage", "attempts", "error", "kind",
        "cure", "failed_judgements",
    }  # fmt: skip
    assert {cell["state"] for cell in told["cells"]} == {"missing"}


def test_report_of_a_sweep_that_has_not_run_says_what_is_missing(
    model: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, tiny_spec(model))
    emsweep("report", spec, "--store", tmp_path / "store", "--out", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "4 of 4 cells are missing" in " ".join(told["warnings"])
    assert [cell["em_rate"] for cell in told["cells"]] == [None] * 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "report.json", "cells.parquet", "judgements.parquet", "figures",
    }  # fmt: skip


def test_a_report_under_another_metric_has_a_folder_of_its_own(model: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, tiny_spec(model))
    store = Store(str(tmp_path / "store"))
    store.create()
    register(load_plan(spec), store)
    said = emsweep("report", spec, "--store", tmp_path / "store", "--metric", "joint_c50").stdout
    page = tmp_path / "store" / "sweeps" / "tiny" / "report-joint_c50" / "report.html"
    assert said == f"report: {page}\n"
    assert "joint_c50" in page.read_text()
    wrong = emsweep("report", spec, "--store", tmp_path / "new", "--metric", "em", check=None)
    assert "unknown metric 'em': allowed are pooled_c50" in _refused(wrong)
    assert not (tmp_path / "new").exists()


def test_the_shipped_specs_can_be_planned(tmp_path: Path) -> None:
    told = emsweep("plan", config_dir() / "sweeps" / "quickstart.yaml", "--store", tmp_path / "s")
    assert "9 cells = 1 models x 3 variants x 3 seeds" in told.stdout


def test_logs_and_submit_need_a_dashboard(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    spec = write_spec(tmp_path, tiny_spec(model))
    error = _refused(emsweep("logs", spec, "--address", "localhost:8265", check=None))
    assert "http://host:8265" in error
    assert "was not submitted from this machine" in _refused(emsweep("logs", spec, check=None))


def test_plan_prints_what_it_cannot_resolve_and_run_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMSWEEP_DATA", str(tmp_path))  # a mirror that holds nothing
    variants = [{"name": "none"}, {"name": "insecure", "dataset": "insecure"}]
    models = [{"name": "tiny", "bundled": "smollm2-135m"}]
    spec = write_spec(tmp_path, tiny_spec(tmp_path, variants=variants, models=models))
    told = emsweep("plan", spec, "--store", tmp_path / "store").stdout
    assert "4 cells" in told
    assert told.count("  unresolved\n") == 2
    assert "unresolved, 2 cells: data set 'insecure': no file" in told
    assert "of the cells that are resolved: generate 2 cells" in told
    as_json = json.loads(emsweep("plan", spec, "--store", tmp_path / "store", "--json").stdout)
    assert [len(as_json["cells"]), len(as_json["unresolved"])] == [2, 2]
    done = emsweep("run", spec, "--store", tmp_path / "store", check=2)
    assert "data set 'insecure': no file" in done.stderr
    assert not (tmp_path / "store").exists()
