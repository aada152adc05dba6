from pathlib import Path
from typing import Any

import pytest
from small_sweep import plan, spec

from sweeps.identities import identities
from sweeps.layout import demands, train_demand
from sweeps.spec import load_spec
from sweeps.store import Store
from sweeps.todo import read_todo

TWO: dict[str, Any] = {
    "models": [
        {"name": "small", "bundled": "smollm2-135m"},
        {"name": "large", "hub": "a/b", "revision": "0" * 40},
    ],
    "judges": [{"name": "self", "pool": "small"}],
    "training": {"effective_batch": 4, "micro_batch": 2, "zero_stage": 2},
    "resources": {"serve_cpus": 2},
}
LARGE = {
    "ranks": 4,
    "micro_batch": 1,
    "zero_stage": 3,
    "train_gpus": 1,
    "serve_gpus": 2,
    "replicas": 3,
    "max_model_len": 2048,
}


def test_a_models_layout_is_its_own(tmp_path: Path) -> None:
    two = spec(**TWO, layouts={"large": LARGE})
    large = two.for_model("large")
    assert large.training.model_dump() == two.training.model_dump() | {
        "ranks": 4,
        "micro_batch": 1,
        "zero_stage": 3,
    }
    assert (large.serving.replicas, large.serving.max_model_len) == (3, 2048)
    assert (large.resources.serve_gpus, large.resources.serve_cpus) == (2, 2)
    assert large.layouts == {}
    assert two.for_model("small") is two
    trained = {cell.model.name: cell.training for cell in two.cells() if cell.training}
    assert trained == {"small": two.training, "large": large.training}


def test_only_the_laid_out_model_is_another_training(tmp_path: Path) -> None:
    plain, laid = plan(tmp_path, **TWO), plan(tmp_path, **TWO, layouts={"large": LARGE})
    changed = {
        (new.cell.model.name, new.cell.variant.name)
        for old, new in zip(plain.cells, laid.cells, strict=True)
        if old.training_key != new.training_key
    }
    assert changed == {("large", "ours")}
    served = plan(tmp_path, **TWO, layouts={"large": {"serve_gpus": 2, "max_loras": 1}})
    assert [c.model_dump() for c in served.cells] == [c.model_dump() for c in plain.cells]


def test_what_is_held_is_told_model_by_model(tmp_path: Path) -> None:
    laid = plan(tmp_path, **TWO, layouts={"large": LARGE})
    store = Store(str(tmp_path / "store"))
    trains, engines = demands(laid.spec, read_todo(laid.cells, store))
    assert trains == [train_demand(laid.spec, name) for name in ("small", "large")]
    assert (trains[1].cpus, trains[1].gpus, trains[1].count) == (1, 1, 4)
    assert [(e.name, e.gpus, e.count) for e in engines] == [("small", 0, 1), ("large", 2, 1)]
    only_small = [cell for cell in laid.cells if cell.cell.model.name == "small"]
    assert demands(laid.spec, read_todo(only_small, store))[0] == [train_demand(laid.spec, "small")]
    assert identities(laid, store)["layouts"] == {"large": LARGE}


SPEC = """\
name: small
models:
  - name: base
    bundled: smollm2-135m
variants:
  - name: ours
    dataset: ours.jsonl
seeds: [0]
evaluations:
  - {questions: ours.yaml, sampling: {max_tokens: 600}}
judges:
  - name: self
    model: {name: judge, bundled: smollm2-135m}
layouts:
  judge: {serve_gpus: 2}
  base:
    train_gpus: 1
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("  base:\n", "  bass:\n", 16,
         "layouts.bass: 'bass' is no model of this sweep; it has base, judge"),
        ("train_gpus", "train_gpu", 17,
         "layouts.base.train_gpu: unknown key; did you mean 'train_gpus'"),
        ("train_gpus: 1", "ranks: 3", 16,
         "layouts.base: with the rest of training: effective_batch 16 is not"),
        ("train_gpus: 1", "ranks: 0", 17,
         "layouts.base.ranks: Input should be greater than or equal to 1; got 0"),
        ("train_gpus: 1", "offload: parameters", 16,
         "layouts.base: with the rest of training: offload: "),
        ("train_gpus: 1", "max_model_len: 512", 10,
         "evaluations.0.sampling.max_tokens: 600 new tokens"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(
    old: str, new: str, line: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SPEC)
    assert load_spec(path).for_model("judge").resources.serve_gpus == 2
    path.write_text(SPEC.replace(old, new))
    with pytest.raises(ValueError) as error:
        load_spec(path)
    assert str(error.value).startswith(f"{path}:{line}: {says}")
