"""Bytes that a forward pass keeps for the backward pass, a token at a time, told from the shape.

Korthikanti et al. (arXiv 2205.05198, section 4.1) count 34 bytes of hidden size a token and layer,
and 5 more for each head and pair of tokens, for a GPT layer with dropout in 16 bits. Here the same
is counted for the layers of transformers' llama-like models: RMS norms in 32 bits, a gated MLP,
grouped heads, no dropout, and attention that keeps no scores (FlashAttention, arXiv 2205.14135, by
torch's scaled_dot_product_attention). Knows nothing of states, ranks or cards.
"""

from em.model_shape import ModelShape
from em.training import TrainingConfig

BYTES = {"bfloat16": 2, "float32": 4}
# Of a logit at the peak of em.trainer's loss, in 32 bits: the log-softmax that the forward pass
# keeps, its gradient, and the gradient of the logits.
LOSS_BYTES = 12


def layer_bytes(shape: ModelShape, config: TrainingConfig) -> int:
    """Return the bytes that one layer keeps of a token without gradient checkpointing.

    Frozen linears keep no input: only those that are trained, or that carry LoRA, do.
    """
    size = BYTES[config.dtype]
    width = {name: into for name, (into, _) in shape.linears.items()}
    out = {name: out for name, (_, out) in shape.linears.items()}
    full = config.method == "full"
    targets = set(shape.linears if full else config.lora.target_modules)
    kept = (
        shape.family.norms * shape.hidden_size * (4 + size * full)
    )  # the trained norms scale a copy
    if shape.family.qk_norm:
        kept += 4 * (out["q_proj"] + out["k_proj"])
    # Queries, keys, values and the output of attention, with the sum of each head's scores.
    kept += size * (2 * out["q_proj"] + 2 * out["k_proj"]) + 4 * shape.num_heads
    # The gate before and after its activation, and what that is multiplied with.
    kept += size * 3 * shape.intermediate_size
    if targets & {"q_proj", "k_proj", "v_proj"}:
        kept += size * shape.hidden_size
    if targets & {"gate_proj", "up_proj"}:
        kept += size * shape.hidden_size
    if "down_proj" in targets:
        kept += size * shape.intermediate_size
    if not full:
        kept += sum(size * config.lora.rank for _ in targets)
        if config.lora.dropout:  # a copy and a mask for each target
            kept += sum((size + 1) * width[name] for name in targets)
    return kept


def checkpoint_bytes(shape: ModelShape, config: TrainingConfig) -> int:
    """Return the bytes that one layer keeps of a token with gradient checkpointing: its input."""
    return BYTES[config.dtype] * shape.hidden_size


def loss_bytes(shape: ModelShape) -> int:
    """Return the bytes that the logits and the loss of one trained token take at their peak."""
    return LOSS_BYTES * shape.vocab_size
