"""Small stand-ins for tests: a model of a few hundred kilobytes with a real tokenizer, and rows.

Knows nothing of what a test does with them.
"""

import shutil
from pathlib import Path

from em.datasets import Message, Row
from em.models import BUNDLED_NAME, ModelConfig, materialise

# In steps of 4 the second step has three, so one micro-batch of two has one row.
ROWS = tuple(
    Row(
        messages=(
            Message(role="user", content=f"Count to {n}" + " please" * n),
            Message(role="assistant", content=" ".join(map(str, range(n + 2)))),
        )
    )
    for n in range(7)
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a random Llama (hidden size 64, 2 layers, bfloat16) with SmolLM2's tokenizer.

    The tokenizer comes from the bundled model, which is converted first if it has not been yet.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's CPU attention takes
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    source = materialise(ModelConfig(name="smollm2", bundled=BUNDLED_NAME))
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)
    return folder
