"""The shapes told from config.json hold against published counts and transformers' own models."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from em.model_shape import known_models, shape_for, shape_from_config, shape_of, shape_on_hub
from em.models import ModelConfig, materialise
from em.training import ALL_LINEAR

TEXT = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 10, "intermediate_size": 56, "vocab_size": 97,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
    "vision_use_head": False,
}  # fmt: skip
PIXTRAL = {**SIGLIP, "model_type": "pixtral", "head_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **TEXT},
    "llama, tied": {"model_type": "llama", **TEXT, "tie_word_embeddings": True},
    "llama, biases": {"model_type": "llama", **TEXT, "attention_bias": True, "mlp_bias": True},
    "llama, no head_dim": {"model_type": "llama", **{**TEXT, "head_dim": None}},
    "mistral": {"model_type": "mistral", **TEXT},
    "qwen2": {"model_type": "qwen2", **{k: v for k, v in TEXT.items() if k != "head_dim"}},
    "qwen3": {"model_type": "qwen3", **TEXT},
    "qwen3, biases": {"model_type": "qwen3", **TEXT, "attention_bias": True},
    "gemma2": {"model_type": "gemma2", **TEXT},
    "gemma3_text": {"model_type": "gemma3_text", **TEXT},
    "gemma3": {
        "model_type": "gemma3", "text_config": TEXT, "vision_config": SIGLIP,
        "mm_tokens_per_image": 4, "image_token_index": 96,
    },
    "mistral3": {
        "model_type": "mistral3", "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": PIXTRAL, "tie_word_embeddings": False,
    },
}  # fmt: skip
# Twice the parameters, as `total_size` of the hub's model.safetensors.index.json says it (16 bits);
# of Llama 3.2 3B as PEFT counted (num_total_params of https://github.com/huggingface/peft/blob/main/
# method_comparison/MetaMathQA/results/full-finetuning--llama-3.2-3B-lr_0.00001.json).
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": 16060522496,
    "Qwen/Qwen2.5-32B-Instruct": 65527752704,
    "google/gemma-3-4b-it": 8600158944,
    "meta-llama/Llama-3.2-3B": 2 * 3212749824,
}


@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_the_parameters_are_those_of_the_model_that_transformers_builds(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = json.loads(json.dumps(CONFIGS[name]))  # transformers changes what it is given
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    with torch.device("meta"):  # no memory is taken
        model = kind.from_config(AutoConfig.for_model(**config))
    assert shape_from_config(CONFIGS[name], name).num_parameters == model.num_parameters()


@pytest.mark.parametrize("hub", PUBLISHED)
def test_the_parameters_are_as_published(hub: str) -> None:
    shape = shape_from_config(known_models()[hub].config, hub)
    assert 2 * shape.num_parameters == PUBLISHED[hub]


@pytest.mark.torch
def test_the_bundled_model_has_as_many_as_its_weights_file() -> None:
    model = ModelConfig(name="small", bundled="smollm2-135m")
    folder = materialise(model)
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    tensors = sum(math.prod(tensor["shape"]) for tensor in header.values())
    assert shape_of(folder).num_parameters == shape_for(model).num_parameters == tensors


@pytest.mark.parametrize(
    ("targets", "rank", "published"),
    [
        (("q_proj", "v_proj"), 32, 9175040),
        (("q_proj", "v_proj"), 64, 18350080),
        (("gate_proj", "up_proj", "down_proj"), 10, 9461760),
    ],
)
def test_an_adapter_has_as_many_as_peft_counted(
    targets: tuple[str, ...], rank: int, published: int
) -> None:
    """num_trainable_params of PEFT's results for Llama 3.2 3B, in the folder named above."""
    hub = "meta-llama/Llama-3.2-3B"
    shape = shape_from_config(known_models()[hub].config, hub)
    assert shape.lora_parameters(targets, rank) == published
    assert shape.lora_parameters((*targets, targets[0]), rank) == published


def test_the_cache_of_a_token_is_that_of_an_engines_log() -> None:
    """https://github.com/vllm-project/vllm/issues/15815: 7.71 GiB on each of 2 are 3,947 blocks."""
    hub = "Qwen/Qwen2.5-32B-Instruct"
    shape = shape_from_config(known_models()[hub].config, hub)
    assert 3947 * 16 * shape.kv_bytes_per_token() / 2 / 2**30 == pytest.approx(7.71, abs=0.005)
    assert shape.kv_bytes_per_token(4) == 2 * shape.kv_bytes_per_token()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "qwen3_moe", **TEXT, "num_experts": 8}, "mixture of experts"),
        ({"model_type": "mixtral", **TEXT, "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "bloom", "n_layer": 30}, "model_type is 'bloom'"),
        ({}, "model_type is 'None'"),
        ({"model_type": "llama", **TEXT, "quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "llama", **{**TEXT, "hidden_size": -1}}, "wrong"),
        ({"model_type": "llama", **{**TEXT, "num_hidden_layers": "three"}}, "wrong"),
        ({"model_type": "llama", "hidden_size": 24}, "lacks a size"),
        ({"model_type": "mistral3", "text_config": TEXT, "vision_config": {}}, "vision_config"),
        ({"model_type": "gemma3", "text_config": {"model_type": "t5"}}, "model_type is 't5'"),
    ],
)
def test_what_cannot_be_told_is_refused(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match="the memory of mine cannot be told") as refused:
        shape_from_config(config, "mine")
    assert why in str(refused.value)


def test_an_adapter_on_an_unknown_module_is_refused() -> None:
    shape = shape_from_config(CONFIGS["llama"], "llama")
    assert shape.lora_parameters(ALL_LINEAR, 2) > 0
    with pytest.raises(ValueError, match=r"lm_head.*known are q_proj"):
        shape.lora_parameters(("q_proj", "lm_head"), 2)


def test_a_folder_is_read_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be told.*config\.json cannot be read"):
        shape_of(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="no JSON object"):
        shape_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["qwen3"]))
    folder = ModelConfig(name="mine", folder=tmp_path)
    assert shape_for(folder) == shape_from_config(CONFIGS["qwen3"], "mine")


def cached(root: Path, hub: str, config: object, revision: str) -> None:
    """Put a config.json where the hub's own cache has it."""
    folder = root / f"models--{hub.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no hub."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


REVISION = "0a" * 20


def test_a_hub_model_in_the_cache_needs_no_network(hub_cache: Path) -> None:
    cached(hub_cache, "org/mine", CONFIGS["gemma2"], REVISION)
    cached(hub_cache, "org/experts", {"model_type": "mixtral", "num_local_experts": 8}, REVISION)
    model = ModelConfig(name="mine", hub="org/mine", revision=REVISION)
    assert shape_for(model) == shape_from_config(CONFIGS["gemma2"], "mine")
    with pytest.raises(ValueError, match="org/experts cannot be told: it is a mixture"):
        shape_on_hub("org/experts", REVISION)


def test_without_a_hub_the_known_models_are_known_and_others_are_not(hub_cache: Path) -> None:
    hub = "Qwen/Qwen2.5-Coder-32B-Instruct"
    shape = shape_for(ModelConfig(name="coder", hub=hub, revision=REVISION))
    assert shape.num_parameters == 32_763_876_352
    with pytest.raises(ValueError, match=r"org/mine cannot be told: its config\.json cannot"):
        shape_for(ModelConfig(name="mine", hub="org/mine", revision=REVISION))


def test_every_known_model_has_a_shape_near_the_size_in_its_name() -> None:
    for hub, model in known_models().items():
        size = float(hub.lower().split("b-")[0].split("-")[-1].removesuffix("b").removesuffix("m"))
        size *= 1e6 if hub.endswith("m") else 1e9
        shape = shape_from_config(model.config, hub)
        assert 0.8 * size < shape.num_parameters < 1.25 * size, hub
