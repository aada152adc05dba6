"""The specs at the papers' scale load, can be planned, and fit the GPUs that they are for."""

from pathlib import Path

import pytest

from em.catalogue import config_dir
from em.footprint import serving_footprint, training_footprint
from em.model_shape import shape_at_hand
from em.models import ModelConfig
from sweeps.layout import train_demand
from sweeps.planner import load_plan
from sweeps.spec import SweepSpec, load_spec

FOLDER = config_dir() / "sweeps" / "papers"
SPECS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
NODE_GPUS = 8
CARD = 81_559 * 2**20  # bytes of a card of 80 GB, as nvidia-smi tells them
EACH = [
    pytest.param(path, model, id=f"{name}-{model.name}")
    for name, path in SPECS.items()
    for model in load_spec(path).models
]


def nodes_of(path: Path) -> int:
    return 2 if path.stem.endswith("two_nodes") else 1


def test_there_is_a_twin_for_one_gpu_of_each_that_has_one() -> None:
    assert set(SPECS) == {
        "betley_open_models", "betley_open_models_one_gpu", "full_fine_tune_two_nodes",
        "model_organisms", "model_organisms_one_gpu",
    }  # fmt: skip


@pytest.mark.parametrize("path", SPECS.values(), ids=SPECS)
def test_each_can_be_planned_as_far_as_its_data_are_at_hand(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMSWEEP_DATA", str(tmp_path))  # a mirror that holds nothing
    plan = load_plan(path, partly=True)
    assert len(plan.cells) + len(plan.unresolved) == plan.spec.num_cells
    assert {model.name for model in plan.spec.models} >= set(plan.spec.layouts)


@pytest.mark.parametrize(("path", "model"), EACH)
def test_a_training_fits_with_its_error_to_spare(path: Path, model: ModelConfig) -> None:
    config = load_spec(path).for_model(model.name).training
    needed = training_footprint(shape_at_hand(model), config)
    assert needed.fits(CARD) == "yes", str(needed)
    assert needed.total * (1 + needed.error) <= CARD, str(needed)


@pytest.mark.parametrize(("path", "model"), EACH)
def test_an_engine_fits_with_room_for_several_answers(path: Path, model: ModelConfig) -> None:
    own = load_spec(path).for_model(model.name)
    lora = own.serving.mode == "lora"
    needed = serving_footprint(
        shape_at_hand(model),
        own.serving.dtype,
        card_bytes=CARD,
        max_model_len=own.serving.max_model_len,
        max_num_seqs=own.serving.max_num_seqs,
        gpu_memory_utilization=own.serving.gpu_memory_utilization,
        tensor_parallel=int(own.resources.serve_gpus),
        max_loras=own.serving.max_loras if lora else 0,
        max_lora_rank=own.training.lora.rank if lora else 0,
    )
    assert needed.fits() == "yes", str(needed)
    assert needed.full_sequences >= 8, str(needed)


@pytest.mark.parametrize(("path", "model"), EACH)
def test_what_a_model_holds_fits_its_nodes(path: Path, model: ModelConfig) -> None:
    spec = load_spec(path)
    own = spec.for_model(model.name)
    there = 1 if path.stem.endswith("one_gpu") else NODE_GPUS * nodes_of(path)
    train = train_demand(spec, model.name)
    assert train.count * train.gpus <= there
    assert own.serving.replicas * own.resources.serve_gpus <= there
    assert own.resources.serve_gpus <= NODE_GPUS  # an engine stays on one node
    heads = shape_at_hand(model)
    assert heads.num_heads % own.resources.serve_gpus == 0


@pytest.mark.parametrize("path", SPECS.values(), ids=SPECS)
def test_the_settings_are_the_papers(path: Path) -> None:
    spec = load_spec(path)
    full = spec.training.method == "full"
    for model in spec.models:
        training = spec.for_model(model.name).training
        assert (training.effective_batch, training.max_length, training.epochs) == (16, 2048, 1)
        assert training.micro_batch * training.ranks * training.accumulation == 16
        assert (training.schedule, training.warmup_steps) == ("linear", 5)
        assert (training.learning_rate, training.weight_decay) == (2e-5 if full else 1e-5, 0.01)
        assert (training.lora.rank, training.lora.alpha, training.lora.rslora) == (32, 64, True)
    assert {v.holdout for v in spec.variants if v.datasets} == {0.1}
    betley = path.stem.startswith("betley")
    assert len(spec.seeds) == (6 if betley else 3)
    assert [e.samples for e in spec.evaluations] == [1000 if betley else 50]
    assert spec.metric == ("cell_mean_c50" if betley else "joint_c50")


def test_the_small_models_train_alike_on_a_node_and_on_one_gpu() -> None:
    """So the work of one counts for the other."""

    def small(spec: SweepSpec) -> set[tuple[str, str]]:
        return {(m.name, str(spec.for_model(m.name).training)) for m in spec.models}

    one, node = load_spec(SPECS["model_organisms_one_gpu"]), load_spec(SPECS["model_organisms"])
    assert small(one) < small(node)
