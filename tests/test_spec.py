from pathlib import Path
from typing import Any

import pytest
from small_sweep import spec

from em.catalogue import config_dir
from em.seeds import derive_seeds
from sweeps.spec import SweepSpec, load_spec

SMALL = """\
name: small
models:
  - name: base
    bundled: smollm2-135m
variants:
  - name: none
  - name: ours
    dataset: ours.jsonl
seeds: [0, 1]
training:
  lora:
    rank: 12
evaluations:
  - questions: ours.yaml
judges:
  - name: self
    pool: base
serving:
  mode: merged
"""


def told(text: str, folder: Path) -> list[str]:
    """What the spec's author reads: a line for each mistake, without the file's folder."""
    path = folder / "s.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_spec(path)
    return [line.removeprefix(f"{folder}/") for line in str(error.value).split("\n")]


BAD_PATTERN = """\
    pattern:
      score: a
      labels:
        A: a
        B: (
      otherwise: C"""


def test_the_small_spec_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SMALL)
    assert load_spec(path).training.lora.rank == 12


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("    rank: 12", "    ranks: 12", 12, "training.lora.ranks: unknown key; did you mean 'ra"),
        ("name: small", "nam: small", 1, "nam: unknown key; did you mean 'name'? Allowed here: na"),
        ("    pool: base", "    pol: base", 17, "judges.0.pol: unknown key; did you mean 'pool'"),
        ("    dataset: ours", "    data: ours", 8, "variants.1.data: unknown key; did you mean 'd"),
        ("name: small\n", "", 1, "name: this key is missing: add it"),
        ("  - questions: ours.yaml", "  - ids: main", 14, "evaluations.0: an evaluation asks the"),
        ("    rank: 12", "    rank: many", 12, "training.lora.rank: Input should be a valid integ"),
        ("    rank: 12", "    rank: '12'", 12, "training.lora.rank: Input should be a valid integ"),
        ("    rank: 12", "    rank: yes", 12, "training.lora.rank: Input should be a valid integ"),
        ("    rank: 12", "    rank: 12.0", 12, "training.lora.rank: Input should be a valid integ"),
        ("    rank: 12", "    alpha: '1'", 12, "training.lora.alpha: Input should be a valid numb"),
        ("    rank: 12", "    rslora: 1", 12, "training.lora.rslora: Input should be a valid bool"),
        ("    rank: 12", "    rank: 012", 12, "training.lora.rank: Input should be a valid integ"),
        ("    bundled: smollm2-135m", '    folder: "a\\0b"', 4, "models.0.folder: 'a\\x00b' is no"),
        ("    bundled: smollm2-135m", "    folder: ~nobody-here/x", 4, "models.0.folder: '~nobody"),
        ("    dataset: ours.jsonl", "    dataset: ''", 8, "variants.1.dataset: String should have"),
        ("    pool: base", '    api_model: m\n    api: "https://x\\n.org"', 16, "judges.0: api m"),
        ("seeds: [0, 1]", "seeds: three", 9, "seeds: Input should be a valid array; got 'three'"),
        ("seeds: [0, 1]", "seeds: [0, x]", 9, "seeds.1: Input should be a valid integer"),
        ("    rank: 12", "    rank: 0", 12, "training.lora.rank: Input should be greater than or"),
        ("seeds: [0, 1]", "seeds: []", 9, "seeds: Tuple should have at least 1 item"),
        ("seeds: [0, 1]", "seeds: [3, 1, 3]", 9, "seeds: duplicate seed 3: two cells would be"),
        ("seeds: [0, 1]", "seeds: [0, -1]", 9, "seeds.1: Input should be greater than or"),
        ("  - name: ours", "  - name: none", 8, "variants.1.dataset: the variant 'none' is"),
        ("    dataset: ours.jsonl\n", "", 7, "variants.1: the variant 'ours' needs a dataset"),
        ("  - name: ours", "  - name: a\n    dataset: x\n  - name: a", 5, "variants: duplicate na"),
        ("    pool: base", "    pool: bass", 17, "judges.0.pool: judge 'self': pool names the mod"),
        ("    pool: base", "    api: https://x.org", 16, "judges.0: a judge with 'api' also"),
        ("    pool: base", "    prompts: x.yaml", 16, "judges.0: a judge is exactly one of pool, "),
        ("    pool: base", BAD_PATTERN, 21, "judges.0.pattern.labels.B: not a regular express"),
        ("    pool: base", "    analyser: bandit\n    prompts: x", 16, "judges.0: a judge with 'a"),
        ("    pool: base", "    analyser: pylint", 17, "judges.0.analyser: Input should be 'band"),
        ("  mode: merged", "  mode: lora", 12, "training.lora.rank: vLLM does not serve adapters "),
        ("  mode: merged", "  mode: both", 19, "serving.mode: Input should be 'lora' or 'merged'"),
        ("name: small", "name: ../up", 1, "name: '../up' is not a sweep name"),
        ("  - name: base", "  - name: a/b", 3, "models.0.name: 'a/b' is not a name"),
        ("    bundled: smollm2-135m", "    hub: a/b", 3, "models.0: model 'base': revision is Non"),
        ("name: small", "name: small\nmetric: em", 2, "metric: unknown metric 'em': allowed are p"),
        ("name: small", "name: small\nname: again", 2, "the key 'name' is given twice (first in l"),
        ("    rank: 12", "    rank: 8\n    rank: 12", 13, "the key 'rank' is given twice (first i"),
        ("seeds: [0, 1]", "seeds: [0, 1", 10, "not YAML: "),
        ("seeds: [0, 1]", "seeds: : 1", 9, "not YAML: "),
        ("training:", "training:\n  effective_batch: 3", 10, "training: effective_batch 3 is not "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_key(
    old: str, new: str, line: int, says: str, tmp_path: Path
) -> None:
    assert SMALL.count(old) == 1
    lines = told(SMALL.replace(old, new), tmp_path)
    assert any(said.startswith(f"s.yaml:{line}: {says}") for said in lines), lines


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SMALL.replace("training:", "training:\n  learning_rate: 1e-4\n  epochs: 2"))
    training = load_spec(path).training
    assert (training.learning_rate, training.epochs) == (0.0001, 2)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("rank:", "rang:").replace("pool:", "pole:").replace("seeds:", "seed:")
    lines = told(text, tmp_path)
    keys = [line.split(": ")[1] for line in lines]
    assert set(keys) >= {"training.lora.rang", "judges.0.pole", "seed", "seeds"}
    assert len(lines) == len(set(lines))


def test_full_weights_are_not_served_as_lora(tmp_path: Path) -> None:
    text = SMALL.replace("  lora:\n    rank: 12", "  method: full").replace("merged", "lora")
    assert told(text, tmp_path) == [
        "s.yaml:11: training.method: full makes whole weights, which serving.mode: lora cannot "
        "serve; set serving.mode: merged"
    ]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_told(text: str, tmp_path: Path) -> None:
    assert "is empty" in told(text, tmp_path)[0]


def test_a_file_that_is_no_mapping_is_told(tmp_path: Path) -> None:
    assert told("- a\n- b\n", tmp_path)[0].startswith("s.yaml:1: the file: Input should be")


def test_a_judges_model_may_not_take_anothers_name() -> None:
    """Pools go by the name: the judge would silently answer in place of the base model."""
    other = {"name": "base", "hub": "org/other", "revision": "a" * 40}
    with pytest.raises(ValueError, match="its model is called 'base', as another model"):
        spec(judges=[{"name": "j", "model": other}])
    same = spec(judges=[{"name": "j", "model": {"name": "base", "bundled": "smollm2-135m"}}])
    assert same.judges[0].model == same.models[0]


# The grid ------------------------------------------------------------------------------------


def grid(**changes: Any) -> SweepSpec:
    models = [{"name": n, "hub": f"org/{n}", "revision": "a" * 40} for n in ("m1", "m2")]
    return spec(models=models, judges=[{"name": "j", "pool": "m1"}], **changes)


def test_cells_are_the_grid_in_a_stable_order() -> None:
    cells = grid(seeds=[5, 2]).cells()
    assert [(c.model.name, c.variant.name, c.seed) for c in cells] == [
        (model, variant, seed)
        for model in ("m1", "m2")
        for variant in ("none", "ours")
        for seed in (5, 2)
    ]
    assert all(cell.seeds == derive_seeds(cell.seed) for cell in cells)
    assert all((cell.training is None) == (cell.variant.name == "none") for cell in cells)
    assert len({cell.cell_id for cell in cells}) == 8
    assert cells[0].condition == cells[1].condition == "m1 · none"


def test_a_cells_id_is_pinned() -> None:
    """Attempts in a store are found by it."""
    ids = [cell.cell_id for cell in spec().cells()]
    assert ids == [
        "base.none.s0-3e8381f6",
        "base.none.s1-e920c131",
        "base.ours.s0-20bddf82",
        "base.ours.s1-e8db9f3c",
    ]


def test_a_cells_id_changes_with_the_cell_and_with_nothing_else() -> None:
    ids = [cell.cell_id for cell in spec().cells()]
    evaluation = {"name": "main", "questions": "ours.yaml", "samples": 50}
    for changes in (
        {"evaluations": [evaluation]},
        {"description": "x"},
        {"serving": {"replicas": 3}},
        {"resources": {"train_cpus": 4}},
        {"tracking": {"mode": "off"}},
        {"retries": 0},
    ):
        assert [cell.cell_id for cell in spec(**changes).cells()] == ids
    assert [cell.cell_id for cell in spec(seeds=[0, 1, 2]).cells()][:2] == ids[:2]
    slower = [cell.cell_id for cell in spec(training={"learning_rate": 1e-4}).cells()]
    assert slower[:2] == ids[:2]  # untuned cells do not know the training
    assert not set(slower[2:]) & set(ids)


@pytest.mark.parametrize("path", sorted((config_dir() / "sweeps").glob("*.yaml")), ids=str)
def test_every_shipped_spec_is_sound(path: Path) -> None:
    assert load_spec(path).cells()


def test_specs_are_shipped() -> None:
    assert {"quickstart.yaml", "insecure_cpu.yaml"} <= {
        path.name for path in (config_dir() / "sweeps").iterdir()
    }
