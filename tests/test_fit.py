"""Do trainings and engines fit the cards that were found: the rows, and the way out they name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sweep import plan, spec

from cluster.session import local_totals
from em.footprint import GIB, training_footprint
from em.model_shape import known_models, shape_at_hand, shape_for
from em.models import ModelConfig
from em.training import TrainingConfig
from sweeps import planning
from sweeps.fit import NO_WAY, PLANNED_MIB, Cards, cards, memory, serving_memory, training_memory
from sweeps.node_facts import NodeFacts
from sweeps.store import Store
from sweeps.todo import read_todo

CODER = "Qwen/Qwen2.5-Coder-32B-Instruct"
H100 = ("NVIDIA H100 80GB HBM3", 81_559)
L4 = ("NVIDIA L4", 23_034)
LONG = TrainingConfig(effective_batch=16, micro_batch=2, max_length=2048)


def node(*gpus: tuple[str, int]) -> NodeFacts:
    return NodeFacts(python="3.12.1", versions={}, gpus=gpus)


@pytest.fixture
def coder(tmp_path: Path) -> ModelConfig:
    """A folder that is a model of 32B as far as its sizes go."""
    folder = tmp_path / "coder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(known_models()[CODER].config))
    return ModelConfig(name="coder", folder=folder)


def in_cure(cure: str, part: str) -> dict[str, Any]:
    """The settings that a cure names under `part`, read as the YAML that they are."""
    found = re.search(rf"{part}: (\{{[^}}]*\}})", cure)
    assert found, cure
    settings: dict[str, Any] = yaml.safe_load(found[1])
    return settings


def test_the_smallest_card_counts() -> None:
    assert cards([node(H100, H100), node(L4), node()]) == Cards(*L4, most_on_a_node=2, num=3)
    assert cards([node()]).mib == 0


def test_a_training_that_fits_is_told_with_its_sum(coder: ModelConfig) -> None:
    small = ModelConfig(name="small", bundled="smollm2-135m")
    found = training_memory(small, LONG, cards([node(H100)]))
    assert (found.fits, found.cure) == ("yes", "")
    assert " GiB a GPU" in found.told and found.card == "NVIDIA H100 80GB HBM3, 79.6 GiB"


def test_a_training_that_does_not_names_its_parts_and_a_layout_that_does(
    coder: ModelConfig,
) -> None:
    seen = cards([node(*[H100] * 8)])
    found = training_memory(coder, LONG, seen)
    assert found.fits == "no"
    shape = shape_for(coder)
    for name, size in training_footprint(shape, LONG).table()[:3]:
        assert f"{name} {size / GIB:.1f} GiB" in found.told
    changes = in_cure(found.cure, "training")
    mended = TrainingConfig.model_validate(LONG.model_dump() | changes)
    assert mended.ranks <= 8
    assert training_footprint(shape, mended).fits(seen.mib * 2**20) == "yes"


def test_a_layout_has_no_more_ranks_than_there_are_gpus(coder: ModelConfig) -> None:
    found = training_memory(coder, LONG, cards([node(L4), node(L4)]))
    assert found.fits == "no"
    if found.cure != NO_WAY:
        assert in_cure(found.cure, "training").get("ranks", 1) <= 2


def test_a_model_too_large_for_every_layout_is_told_so(coder: ModelConfig) -> None:
    tiny_card = cards([node(("NVIDIA T4", 2_000))])
    assert training_memory(coder, LONG, tiny_card).cure == NO_WAY
    found = serving_memory(coder, spec(serving={"mode": "merged"}), tiny_card)
    assert (found.fits, found.cure.startswith(NO_WAY)) == ("no", True)
    assert "weights 61.0 GiB" in found.told and "one sequence of 4,096 tokens" in found.told


def test_an_engine_that_does_not_fit_is_made_wider(coder: ModelConfig) -> None:
    given = spec(serving={"mode": "merged"}, resources={"serve_gpus": 1})
    found = serving_memory(coder, given, cards([node(*[L4] * 8)]))
    assert found.fits == "no"
    gpus = in_cure(found.cure, "resources")["serve_gpus"]
    again = spec(serving={"mode": "merged"}, resources={"serve_gpus": gpus})
    assert serving_memory(coder, again, cards([node(*[L4] * 8)])).fits == "yes"


def test_an_engine_is_no_wider_than_a_node(coder: ModelConfig) -> None:
    given = spec(serving={"mode": "merged"}, resources={"serve_gpus": 1})
    found = serving_memory(coder, given, cards([node(L4)] * 8))
    assert found.cure.startswith(NO_WAY)


def test_a_share_of_a_card_is_all_that_a_training_may_hold() -> None:
    small = ModelConfig(name="small", bundled="smollm2-135m")
    needed = training_footprint(shape_for(small), LONG).total
    seen = cards([node(("NVIDIA some", int(needed * 1.5) // 2**20))])
    assert training_memory(small, LONG, seen).fits == "yes"
    half = training_memory(small, LONG, seen, share=0.5)
    assert half.fits == "no" and "train_gpus 0.5" in half.card


def test_where_no_card_is_seen_nothing_is_compared(coder: ModelConfig) -> None:
    for found in (
        training_memory(coder, LONG, cards([])),
        serving_memory(coder, spec(serving={"mode": "merged"}), cards([])),
    ):
        assert (found.fits, found.card) == (None, "no GPU seen") and " GiB" in found.told
    assert H100[1] == PLANNED_MIB


ON_HUB: dict[str, Any] = {
    "models": [{"name": "coder", "hub": CODER, "revision": "0" * 40}],
    "judges": [{"name": "self", "pool": "coder"}],
    "training": {"gradient_checkpointing": True},
}


def test_where_no_card_is_seen_the_one_that_is_named_counts(tmp_path: Path, store: Store) -> None:
    for card, fits in (("L4", "no"), ("H200", "yes")):
        gpus = {"train_gpus": 1, "serve_gpus": 1, "card": card}
        sweep = plan(tmp_path, resources=gpus, **ON_HUB)
        todo = read_todo(sweep.cells, store)
        for found in memory(sweep.spec, todo, [node()], shape_of=shape_at_hand):
            assert found.fits == fits and f"smallest card: {card} (named in the spec)" in str(found)
        seen = memory(sweep.spec, todo, [node(H100)], shape_of=shape_at_hand)
        assert all(H100[0] in str(found) and "named" not in str(found) for found in seen)


def test_a_plan_says_what_a_gpu_holds_and_the_way_out(tmp_path: Path, store: Store) -> None:
    resources = {"train_gpus": 1, "serve_gpus": 1, "card": "A10G"}
    sweep = plan(tmp_path, resources=resources, **ON_HUB)
    lines = planning.lines(sweep, planning.describe(sweep, store, local_totals()))
    at = next(n for n, line in enumerate(lines) if line.startswith("memory  training coder"))
    assert "does not fit: " in lines[at] and "22.5 GiB" in lines[at]
    assert lines[at + 1].strip().startswith("-> with training: {")


def test_a_model_whose_memory_cannot_be_told_is_told_as_such(tmp_path: Path) -> None:
    model = ModelConfig(name="odd", folder=tmp_path)
    for found in (
        training_memory(model, LONG, cards([node(H100)])),
        serving_memory(model, spec(), cards([node(H100)])),
    ):
        assert found.fits is None and "config.json cannot be read" in found.told


def test_each_kind_of_work_is_told_once_and_only_where_it_holds_gpus(
    tmp_path: Path, store: Store
) -> None:
    facts = [node(H100)]
    on_cpus = plan(tmp_path)
    assert memory(on_cpus.spec, read_todo(on_cpus.cells, store), facts) == []
    gpus = {"train_gpus": 1, "serve_gpus": 1}
    on_gpus = plan(tmp_path, resources=gpus)
    told = memory(on_gpus.spec, read_todo(on_gpus.cells, store), facts)
    assert [found.what for found in told] == ["training base", "serving base"]
    assert {found.fits for found in told} == {"yes"}
