"""What a model's config.json says of its size: parameters, an adapter's, and the cache of a token.

Reads no weights and imports no torch. Knows nothing of GPUs, trainings or engines (see
em.footprint). The tensors counted are those of transformers' own model classes
(https://github.com/huggingface/transformers/tree/main/src/transformers/models).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from em.catalogue import config_dir
from em.models import BUNDLED_NAME, ModelConfig
from em.record import Record
from em.yaml_files import checked, load_yaml

KNOWN_MODELS = "known.yaml"
HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Family:
    """How the tensors of one `model_type` differ from llama's, and its class's default values."""

    qkv_bias: bool = False  # always, whatever the config says
    norms: int = 2  # of hidden_size, in a layer
    qk_norm: bool = False  # one norm of head_dim for queries and one for keys
    tied: bool = False  # where the config does not say
    head_dim: int | None = None  # where the config does not say; None: hidden_size / heads
    vocab_size: int | None = None  # these three stand in no config of google/gemma-3-4b-it
    num_heads: int | None = None
    num_kv_heads: int | None = None


GEMMA3 = Family(norms=4, qk_norm=True, tied=True, head_dim=256, vocab_size=262208,
                num_heads=8, num_kv_heads=4)  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True, head_dim=128),
    "gemma2": Family(norms=4, tied=True, head_dim=256),
    "gemma3_text": GEMMA3,
}
# Models of text and pictures: the family of their `text_config` where that does not say.
WRAPPERS: Mapping[str, str] = {"gemma3": "gemma3_text", "mistral3": "mistral"}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # split by output over GPUs


class ModelShape(Record):
    """The sizes of a decoder model. `num_vision` are parameters of what sees pictures, if any."""

    model_type: str
    hidden_size: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    tied: bool = Field(description="the output layer is the embedding")
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    num_vision: int = Field(default=0, ge=0)

    @property
    def family(self) -> Family:
        """What is particular to its `model_type`."""
        return FAMILIES[self.model_type]

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear modules of a layer by name: (features in, features out)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        weights = sum(into * out for into, out in self.linears.values())
        biases = {name: out for name, (_, out) in self.linears.items()}
        total = weights + self.family.norms * self.hidden_size
        total += 2 * self.head_dim if self.family.qk_norm else 0
        total += sum(biases[n] for n in ("q_proj", "k_proj", "v_proj")) if self.qkv_bias else 0
        total += biases["o_proj"] if self.out_bias else 0
        mlp = ("gate_proj", "up_proj", "down_proj")
        return total + (sum(biases[name] for name in mlp) if self.mlp_bias else 0)

    @property
    def num_parameters(self) -> int:
        """All parameters, with those of `num_vision`; a tied output layer counts once."""
        tables = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        layers = self.num_layers * self.layer_parameters
        return layers + tables + self.hidden_size + self.num_vision

    def lora_parameters(self, target_modules: Sequence[str], rank: int) -> int:
        """Parameters of a LoRA of `rank` on the linears `target_modules` of every layer.

        Those that PEFT also puts on equally named modules of a vision tower (under 1 % of it) are
        not counted. Raises ValueError for a name that is none of the seven linears.
        """
        self._check_targets(target_modules)
        sides = (sum(self.linears[name]) for name in dict.fromkeys(target_modules))
        return self.num_layers * rank * sum(sides)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of one token's keys and values in all layers.

        Layers with a sliding window count whole: an engine that may prefill as many tokens at once
        as a sequence is long keeps them all.
        """
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value

    def _check_targets(self, target_modules: Sequence[str]) -> None:
        strange = sorted(set(target_modules) - set(self.linears))
        if strange:
            raise ValueError(
                f"target_modules: the memory of an adapter on {', '.join(strange)} cannot be told; "
                f"known are {', '.join(self.linears)}"
            )


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """Return the shape that a transformers `config.json` describes; `name` is for messages.

    Raises ValueError ("the memory of NAME cannot be told: ...") for a mixture of experts, a
    quantised checkpoint, an architecture that is not in FAMILIES, or a config that lacks a size.
    """
    text, outer = dict(config), str(config.get("model_type"))
    if outer in WRAPPERS:
        text = {"model_type": WRAPPERS[outer], **(config.get("text_config") or {})}
    kind = str(text.get("model_type"))
    experts = [key for key in EXPERTS if text.get(key)]
    if experts:
        raise _untold(name, f"it is a mixture of experts ({experts[0]}: {text[experts[0]]})")
    if kind not in FAMILIES:
        known = ", ".join([*FAMILIES, *WRAPPERS])
        raise _untold(name, f"its model_type is {kind!r}; known are {known}")
    if config.get("quantization_config"):
        raise _untold(name, "its weights are quantised (quantization_config)")
    family = FAMILIES[kind]
    vision = _vision_parameters(config, text, name) if outer in WRAPPERS else 0
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", family.tied))
    heads = text.get("num_attention_heads", family.num_heads)
    bias = bool(text.get("attention_bias"))
    try:
        hidden = text["hidden_size"]
        return ModelShape(
            model_type=kind,
            hidden_size=hidden,
            num_layers=text["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=text.get("num_key_value_heads") or family.num_kv_heads or heads,
            head_dim=text.get("head_dim") or family.head_dim or hidden // heads,
            intermediate_size=text["intermediate_size"],
            vocab_size=text.get("vocab_size", family.vocab_size),
            tied=tied,
            qkv_bias=family.qkv_bias or (bias and kind != "mistral"),
            out_bias=bias and kind not in ("qwen2", "mistral"),
            mlp_bias=kind == "llama" and bool(text.get("mlp_bias")),
            num_vision=vision,
        )
    except (KeyError, TypeError, ZeroDivisionError, ValidationError) as error:
        raise _untold(name, f"its config.json lacks a size or has a wrong one ({error})") from error


def _untold(name: str, why: str) -> ValueError:
    return ValueError(f"the memory of {name} cannot be told: {why}")


def _vision_parameters(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> int:
    """Parameters of the vision tower and of what joins it to the text model."""
    vision = config.get("vision_config") or {}
    try:
        width, inner, layers = (
            vision[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
        )
        patch, hidden = vision["patch_size"] ** 2 * 3, text["hidden_size"]
        if config["model_type"] == "mistral3":  # Pixtral: no biases, a gated MLP, rotary places
            layer = 4 * width**2 + 3 * width * inner + 2 * width
            # A norm, the merger of spatial_merge_size² patches, and two linears.
            merger = config.get("spatial_merge_size", 2) ** 2 * width**2
            joint = width + merger + width * hidden + hidden**2
            return int(layers * layer + patch * width + width + joint)
        # SigLIP: biases everywhere, learned places; then a norm and a matrix.
        layer = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
        places = (vision["image_size"] // vision["patch_size"]) ** 2 * width
        return int(
            layers * layer + (patch + 1) * width + places + 2 * width + width * hidden + width
        )
    except (KeyError, TypeError) as error:
        raise _untold(name, f"its vision_config is not understood ({error})") from error


def shape_of(folder: Path) -> ModelShape:
    """Return the shape of the model in a local transformers folder. Raises ValueError."""
    path = folder.expanduser() / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _untold(str(folder), f"{path} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise _untold(str(folder), f"{path} is no JSON object")
    return shape_from_config(config, str(folder))


def shape_on_hub(hub: str, revision: str | None = None) -> ModelShape:
    """Return the shape of a hub model: of its config.json alone, from the local cache if there.

    Raises ValueError where neither the cache nor the hub has it, or its memory cannot be told.
    """
    try:
        import huggingface_hub as hub_library  # slow to import, and only for hub models
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise _untold(hub, f"reading the hub needs the extra 'train' ({error})") from error
    file: dict[str, Any] = {"filename": "config.json", "revision": revision}
    try:
        try:
            path = hub_library.hf_hub_download(hub, **file, local_files_only=True)
        except LocalEntryNotFoundError:
            # Asked once: the download itself asks a hub that is away for half a minute.
            url = hub_library.hf_hub_url(hub, **file)
            hub_library.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
            path = hub_library.hf_hub_download(hub, **file)
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # many kinds; all mean "not to be had"
        why = f"its config.json cannot be read ({type(error).__name__}: {error})"
        raise _untold(hub, why) from error
    return shape_from_config(config, hub)


class KnownModel(Record):
    """The sizes of a well-known model, as facts with the public address they are from."""

    hub: str
    source: str = Field(pattern="^https://")
    config: dict[str, Any]


def known_models() -> dict[str, KnownModel]:
    """Return the models of configs/models/known.yaml by their hub id."""
    data, _ = load_yaml(config_dir() / "models" / KNOWN_MODELS)
    models = checked(TypeAdapter(tuple[KnownModel, ...]), data)
    return {model.hub: model for model in models}


@cache
def _known() -> dict[str, KnownModel]:
    return known_models()


@cache
def shape_at_hand(model: ModelConfig) -> ModelShape:
    """Return the shape of a spec's model without the hub: from its folder or the known models.

    Raises ValueError for any other.
    """
    if model.folder is not None:
        return shape_of(model.folder)
    name = model.hub or BUNDLED_NAME
    known = _known().get(name)
    if known is None:
        raise _untold(name, f"it is not in configs/models/{KNOWN_MODELS}")
    return shape_from_config(known.config, name)


def shape_for(model: ModelConfig) -> ModelShape:
    """Return the shape of a spec's model: from its folder, the hub, or the known models.

    The last only where the hub cannot be reached (or lets nobody in). Raises ValueError.
    """
    if model.folder is not None:
        return shape_of(model.folder)
    name = model.hub or BUNDLED_NAME
    known = known_models().get(name)
    if model.hub is None:
        assert known is not None  # the bundled model's sizes ship with it
        return shape_from_config(known.config, name)
    try:
        return shape_on_hub(model.hub, model.revision)
    except ValueError:
        if known is None:
            raise
        return shape_from_config(known.config, name)
