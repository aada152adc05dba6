"""The memory model against published figures of model x layout pairs, each with its address.

    python tests/benchmarks/footprint.py        prints footprint.txt

The errors that em.footprint states are the largest of these. Two of its constants, CONTEXT and
FRAGMENTATION, were chosen with the figures of Qwen and PEFT in sight: there the errors are those of
a fit, not of a prediction.
"""

from dataclasses import dataclass, field
from typing import Any

from em.footprint import (
    GIB,
    SERVING_ERROR,
    TRAINING_ERROR,
    Footprint,
    ServingFootprint,
    serving_footprint,
    training_footprint,
)
from em.model_shape import ModelShape, known_models, shape_from_config
from em.training import LoraConfig, TrainingConfig

QWEN = "https://github.com/QwenLM/Qwen/blob/main/README.md"
PEFT = "https://github.com/huggingface/peft/blob/main/method_comparison/MetaMathQA/results/"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
NOT_COUNTED = """\
Seen, and not counted:
  Llama 2 70B on 4 A100-80GB: 20,865 blocks of 16 tokens, 25.5 GiB of cache, where the model says
    39.0: an engine of 2023, before prompts were prefilled in chunks.
    https://github.com/vllm-project/vllm/pull/2031
  Llama 3.1 8B, LoRA: 16.2 and 30.3 GiB; checkpointing and offload of the two are not said.
    https://github.com/pytorch/torchtune/blob/main/README.md
  Llama 3.2 3B, all weights: 37.2e9 bytes; the moments are in 16 bits, here in 32.
    https://github.com/huggingface/peft/blob/main/method_comparison/MetaMathQA/results/full-finetuning--llama-3.2-3B-lr_0.00001.json
  bloomz-7b1, LoRA: 32 GB, 18.1 with offload; its architecture is not one that is known here.
    https://github.com/huggingface/peft/blob/main/README.md
No figure was measured by this project: it has recorded none on a GPU."""


@dataclass(frozen=True)
class Training:
    """A figure of one GPU's memory at the peak of a training, in bytes."""

    what: str
    source: str
    shape: ModelShape
    config: TrainingConfig
    measured: float

    @property
    def told(self) -> Footprint:
        return training_footprint(self.shape, self.config)

    @property
    def error(self) -> float:
        """The model's error, as a share of the figure."""
        return self.told.total / self.measured - 1


@dataclass(frozen=True)
class Serving:
    """A figure of the cache that an engine had left on one GPU, in GiB; `card` and `weights`, too.

    CUDA graphs are no part of these: the engines captured them after the figure was taken.
    """

    what: str
    source: str
    shape: ModelShape
    card: float
    utilization: float
    cache: float
    weights: float | None = None
    tokens: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> ServingFootprint:
        return serving_footprint(
            self.shape, "bfloat16", card_bytes=int(self.card * GIB), max_num_seqs=256,
            gpu_memory_utilization=self.utilization, cuda_graphs=False, **self.options,
        )  # fmt: skip

    @property
    def error(self) -> float:
        """The model's error of the cache, as a share of all that the engine may take."""
        return (self.told.kv_cache - self.cache * GIB) / self.told.budget


def known(hub: str) -> ModelShape:
    return shape_from_config(known_models()[hub].config, hub)


def plain(kind: str, hidden: int, layers: int, heads: int, inner: int, vocab: int) -> ModelShape:
    """A model with as many key-value heads as heads, and an output layer of its own."""
    config = {
        "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": inner,
        "vocab_size": vocab, "tie_word_embeddings": False,
    }  # fmt: skip
    return shape_from_config(config, kind)


# The first Qwen: its tensors are those of Qwen1.5 (model_type qwen2) of the same size, as in
# https://huggingface.co/Qwen/Qwen1.5-7B-Chat/blob/main/config.json
QWEN_1_8B = plain("qwen2", 2048, 24, 16, 5504, 151936)
QWEN_7B = plain("qwen2", 4096, 32, 32, 11008, 151936)
QWEN_14B = plain("qwen2", 5120, 40, 40, 13696, 152064)
QWEN_72B = plain("qwen2", 8192, 80, 64, 24576, 152064)
LLAMA_2_7B = plain("llama", 4096, 32, 32, 11008, 32000)


def qwen(what: str, shape: ModelShape, measured: str, **settings: Any) -> list[Training]:
    """A row of Qwen's table, of G for all GPUs, taken as GiB; rank 64 and dropout as in its script.

    The rows are padded to the length, and checkpointed.
    """
    ranks = settings.get("ranks", 1)
    return [
        Training(
            f"{what}, {length} tokens", QWEN, shape,
            TrainingConfig(
                micro_batch=1, effective_batch=8 * ranks, max_length=length,
                gradient_checkpointing=True, lora=LoraConfig(rank=64, dropout=0.05), **settings,
            ),
            float(each) * GIB / ranks,
        )
        for length, each in zip(LENGTHS, measured.split(), strict=False)
    ]  # fmt: skip


def peft(name: str, measured: int, rank: int, targets: tuple[str, ...]) -> Training:
    """A run of PEFT's comparison on Llama 3.2 3B: 4 rows of up to 768 tokens, reserved bytes."""
    lora = LoraConfig(rank=rank, target_modules=targets)
    config = TrainingConfig(
        micro_batch=4, effective_batch=4, max_length=768, lora=lora, zero_stage=0
    )
    shape = known("meta-llama/Llama-3.2-3B")
    return Training(
        f"Llama 3.2 3B LoRA of rank {rank}", f"{PEFT}{name}.json", shape, config, measured
    )


MLP = ("gate_proj", "up_proj", "down_proj")
TRAININGS = [
    *qwen("Qwen 1.8B LoRA", QWEN_1_8B, "6.7 7.4 8.4 11.0 16.2 21.8", zero_stage=0),
    *qwen("Qwen 7B LoRA", QWEN_7B, "20.1 20.4 21.5 23.8 29.7 36.6", zero_stage=0),
    *qwen("Qwen 14B LoRA", QWEN_14B, "34.6 35.1 35.3 37.4 42.5 55.2", zero_stage=0),
    *qwen("Qwen 72B LoRA, ZeRO-3 on 4", QWEN_72B, "215.4 217.7 222.6 228.8 249.0 289.2",
          zero_stage=3, ranks=4),
    *qwen("Qwen 1.8B full, ZeRO-3 on 1", QWEN_1_8B, "43.5 43.5 43.5 43.5 47.1 48.3",
          method="full", zero_stage=3),
    *qwen("Qwen 7B full, ZeRO-3 on 2", QWEN_7B, "139.2 148.0 162.0",
          method="full", zero_stage=3, ranks=2),
    peft("lora--llama-3.2-3B-rank32", 22273851392, 32, ("q_proj", "v_proj")),
    peft("lora--llama-3.2-3B-rank64", 22540189696, 64, ("q_proj", "v_proj")),
    peft("lora--llama-3.2-3B-rank10-target-mlp", 24712839168, 10, MLP),
    # As the data set cites Table 12 of LongLoRA (arXiv 2309.12307), 25.7 taken as GiB; the rank is
    # not said there.
    Training(
        "Llama 2 7B LoRA, ZeRO-2 on 8, 8192 tokens",
        "https://huggingface.co/datasets/odyn-network/benchmark-finetune-lora-v1", LLAMA_2_7B,
        TrainingConfig(
            micro_batch=1, effective_batch=64, max_length=8192, gradient_checkpointing=True,
            ranks=8, lora=LoraConfig(rank=8),
        ),
        25.7 * GIB,
    ),
]  # fmt: skip
VLLM = "https://github.com/vllm-project/vllm/"
SERVINGS = [
    Serving(
        "Llama 3 8B, H100", f"{VLLM}pull/10511", known("meta-llama/Llama-3.1-8B-Instruct"),
        79.22, 0.9, 53.29, 14.96, options={"max_model_len": 8192, "max_batched_tokens": 8192},
    ),
    Serving(
        "R1-Distill-Qwen 14B, 2 RTX 4090", f"{VLLM}issues/13061",
        known("Qwen/Qwen2.5-14B-Instruct"), 23.08 / 0.98, 0.98, 8.69, 13.9476, 81536,
        options={"max_model_len": 131072, "tensor_parallel": 2},
    ),
    Serving(
        "Qwen2.5 32B, 2 L40S", f"{VLLM}issues/15815", known("Qwen/Qwen2.5-32B-Instruct"),
        44.42, 0.9, 7.71, 30.7098, 3947 * 16,
        options={"max_model_len": 10000, "max_batched_tokens": 10000, "tensor_parallel": 2},
    ),
    Serving(
        "Qwen2.5 0.5B, A100-40GB", "https://github.com/ovg-project/kvcached/pull/448",
        known("Qwen/Qwen2.5-0.5B-Instruct"), 36.33 / 0.92, 0.92, 34.70, 0.93,
        options={"max_model_len": 32768},
    ),
    Serving(
        "Llama 2 7B, A100-80GB", f"{VLLM}pull/2031", LLAMA_2_7B, 80, 0.9,
        7351 * 16 * LLAMA_2_7B.kv_bytes_per_token() / GIB, None, 7351 * 16,
        options={"max_model_len": 4096, "max_batched_tokens": 4096},
    ),
    Serving(  # not named there: the weights and the cache of a token are those of Llama 3.1 8B
        "an 8B, A10",
        "https://github.com/oracle-samples/oci-data-science-ai-samples/blob/main/ai-quick-actions/"
        "troubleshooting-tips.md",
        known("meta-llama/Llama-3.1-8B-Instruct"), 22.07, 0.9, 4.60, 14.9888, 37696,
        options={"max_model_len": 131072},
    ),
]  # fmt: skip


def of_trainings() -> None:
    print("Trainings, GiB of one GPU at its peak. Qwen's G are taken as GiB; its ZeRO-3 figures")
    print("are of all GPUs, here divided by their number.")
    print(f"{'':42} {'figure':>7} {'model':>7} {'error':>6}")
    last = ""
    for one in TRAININGS:
        if one.source != last:
            print(one.source)
            last = one.source
        figure, told = one.measured / GIB, one.told.total / GIB
        print(f"  {one.what:40} {figure:7.1f} {told:7.1f} {one.error:+6.0%}")
    errors = sorted(abs(one.error) for one in TRAININGS)
    print(
        f"{len(errors)} figures: half within {errors[len(errors) // 2]:.0%}, "
        f"the worst {errors[-1]:.0%}; stated: {TRAINING_ERROR:.0%}"
    )


def of_servings() -> None:
    print("\nEngines, GiB of one GPU; error of the cache as a share of what the engine may take.")
    print(f"{'':34} {'weights':>15} {'cache':>15} {'tokens':>17}")
    print(f"{'':34} {'figure':>7} {'model':>7} {'figure':>7} {'model':>7} "
          f"{'figure':>8} {'model':>8} {'error':>6}")  # fmt: skip
    for one in SERVINGS:
        weights = f"{one.weights:7.2f}" if one.weights else f"{'–':>7}"
        tokens = f"{one.tokens:8,}" if one.tokens else f"{'–':>8}"
        print(one.source)
        print(
            f"  {one.what:32} {weights} {one.told.parts['weights'] / GIB:7.2f} {one.cache:7.2f} "
            f"{one.told.kv_cache / GIB:7.2f} {tokens} {one.told.kv_tokens:8,} {one.error:+6.1%}"
        )
    worst = max(abs(one.error) for one in SERVINGS)
    print(f"{len(SERVINGS)} figures: the worst {worst:.1%}; stated: {SERVING_ERROR:.0%}")


def of_states() -> None:
    """DeepSpeed's own estimate of model states, for a model of 2,851M parameters on 8 GPUs."""
    print(
        "\nModel states of a full fine-tuning, GiB of one GPU of 8, for 2,851M parameters, beside"
    )
    print("https://deepspeed.readthedocs.io/en/latest/memory.html (an estimate, not a figure; its")
    print("ZeRO-2 counts gradients in 16 bits whole on each GPU, here they are in a bucket):")
    states = ("trained weights", "gradients", "copy in 32 bits", "Adam's moments")
    for stage, offload, said in [(2, "none", 15.93), (2, "optimizer", 5.31), (3, "none", 6.09)]:
        config = TrainingConfig.model_validate(
            {"method": "full", "ranks": 8, "zero_stage": stage, "offload": offload}
        )
        parts = training_footprint(QWEN_7B, config).parts
        each = sum(parts.get(name, 0) for name in states) / QWEN_7B.num_parameters
        print(f"  ZeRO-{stage}, offload {offload:10} {said:7.2f} {each * 2851e6 / GIB:7.2f}")


def main() -> None:
    of_trainings()
    of_servings()
    of_states()
    print("\n" + NOT_COUNTED)


if __name__ == "__main__":
    main()
