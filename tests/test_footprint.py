"""What a training and an engine take of a GPU: how it must move, and the published figures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.footprint import Footprint, ServingFootprint, serving_footprint, training_footprint
from em.model_shape import known_models, shape_from_config
from em.training import LoraConfig, TrainingConfig
from tests.benchmarks.footprint import SERVINGS, TRAININGS, Serving, Training

CODER = "Qwen/Qwen2.5-Coder-32B-Instruct"
SHAPE = shape_from_config(known_models()[CODER].config, CODER)
STATES = ("gradients", "copy in 32 bits", "Adam's moments")
GIB = 2**30


def told(**settings: object) -> Footprint:
    ranks, rows = settings.get("ranks", 1), settings.get("micro_batch", 1)
    assert isinstance(ranks, int) and isinstance(rows, int)
    config = {"micro_batch": 1, "effective_batch": 4 * ranks * rows, **settings}
    return training_footprint(SHAPE, TrainingConfig.model_validate(config))


def served(**options: object) -> ServingFootprint:
    settings: dict[str, object] = {
        "card_bytes": 80 * GIB, "max_model_len": 4096, "max_num_seqs": 128,
        "gpu_memory_utilization": 0.9,
    }  # fmt: skip
    return serving_footprint(SHAPE, "bfloat16", **(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("one", TRAININGS, ids=lambda one: one.what)
def test_a_published_training_is_within_the_stated_error(one: Training) -> None:
    assert abs(one.error) <= one.told.error
    assert one.told.fits(int(one.measured)) == "unsure"


@pytest.mark.parametrize("one", SERVINGS, ids=lambda one: one.what)
def test_a_published_cache_is_within_the_stated_error(one: Serving) -> None:
    assert abs(one.error) <= one.told.error
    if one.weights:
        assert one.told.parts["weights"] / GIB == pytest.approx(one.weights, rel=0.02)


def test_enough_figures_were_found() -> None:
    assert len({one.shape for one in TRAININGS} | {one.shape for one in SERVINGS}) >= 8


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from(["lora", "full"]))
def test_zero_3_divides_states_and_weights_by_the_ranks(ranks: int, method: str) -> None:
    alone, shared = (told(method=method, zero_stage=3, ranks=n) for n in (1, ranks))
    for name in (*STATES, "frozen weights", "trained weights"):
        assert shared.parts[name] == pytest.approx(alone.parts[name] / ranks, rel=1e-6)


def test_the_stages_share_what_their_names_say() -> None:
    """Of a full fine-tuning on 4 ranks, in bytes of a parameter (arXiv 1910.02054, with K = 12)."""

    def each(stage: int) -> dict[str, float]:
        parts = told(method="full", zero_stage=stage, ranks=4).parts
        return {n: parts[n] / SHAPE.num_parameters for n in ("trained weights", *STATES)}

    assert each(0) == pytest.approx(dict(zip(each(0), (2, 2, 4, 8), strict=True)))
    assert each(1) == pytest.approx(dict(zip(each(1), (2, 6, 1, 2), strict=True)))
    assert each(2) == pytest.approx(dict(zip(each(2), (2, 1, 1, 2), strict=True)))
    assert each(3) == pytest.approx(dict(zip(each(3), (0.5, 1, 1, 2), strict=True)))


@given(
    st.integers(1, 16), st.integers(64, 4096), st.booleans(), st.sampled_from(["lora", "full"])
)  # fmt: skip
def test_more_rows_and_longer_rows_take_more(
    rows: int, length: int, checkpointing: bool, method: str
) -> None:
    # On many ranks, so that the optimizer's step is not the peak.
    def of(rows: int, length: int) -> Footprint:
        return told(
            micro_batch=rows, max_length=length, gradient_checkpointing=checkpointing,
            method=method, ranks=64, zero_stage=3,
        )  # fmt: skip

    now, more, longer = of(rows, length), of(2 * rows, length), of(rows, 2 * length)
    for name in ("activations", "logits and loss"):
        assert more.parts[name] == longer.parts[name] == 2 * now.parts[name]
    assert more.total >= now.total
    assert longer.total >= now.total


def test_the_loss_over_a_large_vocabulary_is_most_of_what_comes_and_goes() -> None:
    parts = told(gradient_checkpointing=True, max_length=2048, micro_batch=4).parts
    assert parts["logits and loss"] == 4 * 2048 * 152064 * 12
    assert parts["logits and loss"] > parts["activations"] + parts["a layer again"]


def test_checkpointing_keeps_the_input_of_each_layer() -> None:
    without, with_ = told(), told(gradient_checkpointing=True)
    assert with_.parts["activations"] == 2048 * 64 * 5120 * 2
    assert with_.parts["activations"] < without.parts["activations"] / 10


def test_a_smaller_adapter_keeps_fewer_inputs() -> None:
    all_, few = told(), told(lora=LoraConfig(target_modules=("q_proj", "v_proj")))
    assert few.parts["activations"] < all_.parts["activations"]
    assert told(method="full").parts["activations"] > all_.parts["activations"]
    dropped = told(lora=LoraConfig(dropout=0.1))
    assert dropped.parts["activations"] > all_.parts["activations"]


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "optimizer"),
                                                (3, "parameters")])  # fmt: skip
@pytest.mark.parametrize("method", ["lora", "full"])
def test_offload_moves_from_the_card_to_the_host(stage: int, offload: str, method: str) -> None:
    here = told(zero_stage=stage, method=method)
    there = told(zero_stage=stage, method=method, offload=offload)
    assert not here.host
    assert there.total < here.total
    moved = [*STATES, *(["frozen weights", "trained weights"] if offload == "parameters" else [])]
    assert there.host == {name: here.parts[name] for name in moved}
    assert not set(moved) & set(there.parts)
    assert "host" in str(there)
    assert [name for name, _ in there.table()][-1].endswith("(host)")


def test_offload_of_stage_1_leaves_its_gradients_on_the_card() -> None:
    there = told(zero_stage=1, offload="optimizer")
    assert set(there.host) == {"copy in 32 bits", "Adam's moments"}
    assert there.parts["gradients"] == told(zero_stage=1).parts["gradients"]


def test_32_bits_double_the_weights_and_need_no_copy_without_zero() -> None:
    half, whole = told(zero_stage=0), told(zero_stage=0, dtype="float32")
    assert whole.parts["frozen weights"] == 2 * half.parts["frozen weights"]
    assert whole.parts["copy in 32 bits"] == 0
    assert half.parts["copy in 32 bits"] > 0


def test_a_module_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target_modules: .* adapter on lm_head"):
        told(lora=LoraConfig(target_modules=("lm_head",)))


def test_a_card_is_large_enough_or_not_or_nobody_knows() -> None:
    footprint = Footprint({"all": 60 * GIB}, {}, error=0.25)
    assert [footprint.fits(n * GIB) for n in (47, 49, 79, 80)] == ["no", "unsure", "unsure", "yes"]
    assert str(footprint) == "60.0 GiB a GPU (± 25%), most of it all 60.0 GiB"


def test_the_table_is_the_total() -> None:
    footprint = told(gradient_checkpointing=True)
    assert sum(size for _, size in footprint.table()) == footprint.total
    assert [size for _, size in footprint.table()] == sorted(footprint.parts.values())[::-1][
        : len(footprint.table())
    ]
    engine = served()
    assert sum(size for _, size in engine.table()) == engine.budget


@given(st.sampled_from([1, 2, 4, 8]))
def test_tensor_parallel_engines_share_weights_and_cache(gpus: int) -> None:
    alone, shared = served(), served(tensor_parallel=gpus)
    assert shared.parts["weights"] == alone.parts["weights"] // gpus
    assert shared.kv_bytes_per_token == alone.kv_bytes_per_token // gpus
    assert shared.kv_cache >= alone.kv_cache


def test_more_gpus_than_key_value_heads_copy_them() -> None:
    assert served(tensor_parallel=16).kv_bytes_per_token == (
        served(tensor_parallel=8).kv_bytes_per_token
    )


@given(st.integers(0, 8), st.sampled_from([8, 16, 32, 64]))
def test_room_for_adapters_is_taken_from_the_cache(loras: int, rank: int) -> None:
    """At least the adapters' own weights: vLLM keeps room on the embedding and the output, too."""
    none, some = served(), served(max_loras=loras, max_lora_rank=rank)
    least = 2 * loras * SHAPE.lora_parameters(tuple(SHAPE.linears), rank)
    assert least <= some.parts["adapters"] <= 1.1 * least
    assert some.kv_cache == none.kv_cache - some.parts["adapters"]


def test_an_engine_needs_room_for_one_full_sequence() -> None:
    """The 32B model of the papers on cards of 48, 79 and 2 x 44 GiB; the last has 7.71 GiB of
    cache (https://github.com/vllm-project/vllm/issues/15815), which are 63,152 tokens."""
    assert served(card_bytes=48 * GIB).fits() == "no"
    assert served(card_bytes=48 * GIB).kv_tokens == 0
    assert served(card_bytes=141 * GIB).fits() == "yes"
    two = {"card_bytes": int(44.42 * GIB), "tensor_parallel": 2}
    assert served(**two).fits() == "yes"
    assert served(**two, max_model_len=131072).fits() == "no"
    assert served(**two, max_model_len=60000).fits() == "unsure"
    assert served(**two).full_sequences == served(**two).kv_tokens / 4096
    assert "sequences of 4,096" in str(served(**two))
