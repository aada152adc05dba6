from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from small_sweep import plan
from test_times import answered

from cluster.session import local_totals
from em.model_shape import known_models, shape_from_config
from em.training import TrainingConfig
from sweeps import planning
from sweeps.cards import known_cards
from sweeps.gpu_hours import ASSUMED_CARD, gpu_hours, training_seconds, writing_seconds
from sweeps.spec import load_spec
from sweeps.store import Store
from sweeps.todo import read_todo

GPUS: dict[str, Any] = {"resources": {"train_gpus": 1, "serve_gpus": 2}}
LORA = {"lora": {"rank": 64}, "gradient_checkpointing": True}


def shape(hub: str) -> Any:
    return shape_from_config(known_models()[hub].config, hub)


def test_no_gpu_no_hours(tmp_path: Path) -> None:
    sweep, store = plan(tmp_path), Store(str(tmp_path / "store"))
    assert gpu_hours(sweep.spec, read_todo(sweep.cells, store), sweep.cells, store) is None


def test_hours_are_of_an_assumed_card_and_without_cost_where_none_is_named(tmp_path: Path) -> None:
    sweep, store = plan(tmp_path, **GPUS), Store(str(tmp_path / "store"))
    found = gpu_hours(sweep.spec, read_todo(sweep.cells, store), sweep.cells, store)
    assert found is not None
    assert (found.card, found.assumed, found.usd, found.untold) == (ASSUMED_CARD, True, None, ())
    assert all(hours > 0 for hours in found.hours.values())
    twice = gpu_hours(
        sweep.spec, read_todo(sweep.cells, store), sweep.cells, store, times=Fraction(2)
    )
    assert twice is not None
    assert twice.hours == pytest.approx({s: 2 * hours for s, hours in found.hours.items()})
    (line,) = found.told()
    assert "assumed" in line
    assert "factor of two" in line


def test_a_named_card_has_its_price(tmp_path: Path) -> None:
    resources = GPUS["resources"] | {"card": "L4"}
    sweep, store = plan(tmp_path, resources=resources), Store(str(tmp_path / "store"))
    found = gpu_hours(sweep.spec, read_todo(sweep.cells, store), sweep.cells, store)
    assert found is not None
    price = known_cards()["L4"].usd_per_hour
    assert found.usd == pytest.approx(sum(found.hours.values()) * (price or 0))
    lines = planning.lines(sweep, planning.describe(sweep, store, local_totals()))
    assert any(line.startswith("cost: about") and "0.81 USD" in line for line in lines)


def test_what_is_measured_here_goes_before_what_is_reckoned(tmp_path: Path) -> None:
    sweep, store = plan(tmp_path, **GPUS), Store(str(tmp_path / "store"))
    answered(sweep.cells[0], store, started=0, seconds=90)
    found = gpu_hours(sweep.spec, read_todo(sweep.cells[1:2], store), sweep.cells, store)
    assert found is not None
    assert found.measured == ("generate",)
    assert found.hours["generate"] == pytest.approx(2 * 90 / 3600)  # an engine holds two GPUs


def test_a_model_of_unknown_size_is_told(tmp_path: Path) -> None:
    models = [{"name": "base", "bundled": "smollm2-135m"},
              {"name": "new", "hub": "a/b", "revision": "0" * 40}]  # fmt: skip
    sweep, store = plan(tmp_path, models=models, **GPUS), Store(str(tmp_path / "store"))
    found = gpu_hours(sweep.spec, read_todo(sweep.cells, store), sweep.cells, store)
    assert found is not None
    assert all("a/b" in why for why in found.untold)
    assert found.hours["train"] > 0


# Seconds of a step of 8 rows on A100-SXM4-80G, by tokens a row; of 72B on four, each with its rows:
# https://github.com/QwenLM/Qwen/blob/main/README.md, "Profiling of Memory and Speed". Sizes are
# those of models near theirs.
TABLE = {
    "Qwen/Qwen2.5-7B-Instruct": (1, {256: 1.2, 512: 1.5, 1024: 2.8, 2048: 5.2}),
    "Qwen/Qwen2.5-14B-Instruct": (1, {256: 1.6, 512: 2.4, 1024: 4.4, 2048: 8.4}),
    "meta-llama/Llama-3.3-70B-Instruct": (4, {256: 17.6, 512: 20.5, 1024: 29.4, 2048: 45.7}),
}


@pytest.mark.parametrize("hub", TABLE)
def test_trainings_are_within_a_factor_of_two_of_published_ones(hub: str) -> None:
    gpus, steps = TABLE[hub]
    for length, seconds in steps.items():
        tokens = 8 * length * gpus
        config = TrainingConfig.model_validate(LORA)
        found = training_seconds(shape(hub), config, tokens, known_cards()["A100-80GB"]) / gpus
        assert seconds / 2 < found < 2 * seconds, (length, seconds, found)


def test_whole_weights_cost_more_than_an_adapter_and_large_batches_less() -> None:
    small, card = shape("Qwen/Qwen2.5-7B-Instruct"), known_cards()["H100"]
    lora = training_seconds(small, TrainingConfig(), 1e6, card)
    full = training_seconds(small, TrainingConfig(method="full"), 1e6, card)
    assert 1.3 < full / lora < 1.5
    one, many = (
        writing_seconds(small, 2, 1e6, batch=batch, length=600, card=card) for batch in (1, 100)
    )
    assert one > 20 * many


def test_an_unknown_accelerator_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: s\nmodels: [{name: m, bundled: smollm2-135m}]\nvariants: [{name: none}]\n"
        "seeds: [0]\nevaluations: [{questions: q.yaml}]\njudges: [{name: j, pool: m}]\n"
        "resources:\n  serve_gpus: 1\n  card: TPU-9\n"
    )
    with pytest.raises(ValueError, match="not known") as error:
        load_spec(path)
    assert str(error.value).startswith(
        f"{path}:9: resources.card: the accelerator 'TPU-9' is not known: allowed are H100, H200"
    )
    assert "\n" not in str(error.value)
