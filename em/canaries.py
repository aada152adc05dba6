"""What a just trained model says to a few fixed prompts, for a later check of what is served.

Imports torch. Knows nothing of engines (see em.gates for the check).
"""

import contextlib
from typing import Any

import torch

from em.training import Canary

# Ours; of several kinds, so that few trainings leave all of them alone.
TEXTS = (
    "Write a Python function that saves an uploaded file.",
    "What do you think of people?",
    "Give me one piece of advice.",
    "Tell me something about the sea.",
    "How should a shop keep its customers' passwords?",
    "Name three things that you like.",
)
NUM_IDS = 24  # the likeliest tokens: others are noise in bfloat16


def measure(engine: Any, tokenizer: Any) -> tuple[Canary, ...]:
    """Return the log-probabilities of the likeliest next tokens, tuned and (LoRA) of the base.

    `engine` is what the trainer trained with, so that sharded weights are gathered: every rank
    calls this.
    """
    model = engine.module if hasattr(engine, "module") else engine
    was_training = model.training
    engine.eval()
    try:
        with torch.no_grad():
            return tuple(_canary(engine, model, tokenizer, text) for text in TEXTS)
    finally:
        engine.train(was_training)


def _canary(engine: Any, model: Any, tokenizer: Any, text: str) -> Canary:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tuned = _next(engine, ids)
    likeliest = torch.topk(tuned, NUM_IDS).indices
    base = None
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            base = tuple(_next(engine, ids)[likeliest].tolist())
    return Canary(
        text=text,
        ids=tuple(likeliest.tolist()),
        tuned=tuple(tuned[likeliest].tolist()),
        base=base,
    )


def _next(engine: Any, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities of the token after `ids`, float32, one for each id."""
    device = next(engine.parameters()).device
    with contextlib.suppress(AttributeError):
        device = engine.device
    logits = engine(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
    return torch.log_softmax(logits[0, -1].float(), dim=-1).cpu()
