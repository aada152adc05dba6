"""Gates: checks that stop a cell where a number would otherwise be wrong in silence.

Each names itself in its error. Knows nothing of cells or stores, nor of what serves a model.
"""

import math
from collections.abc import Sequence

from em.generation import Answer, Endpoint, GateFailed, Prompt
from em.record import Record
from em.training import Canary

# Root mean square difference, in nats, that one model's log-probabilities may have between
# transformers + PEFT and a serving engine. Measured on smollm2-135m in bfloat16 (CPU): 0.08 to 0.17
# for the adapter itself, 1.0 to 1.1 for the base model in its place (48 rows, 6 steps). In float32
# a model of random weights differs by less than 1e-4; 0.02 leaves room for larger ones.
TOLERANCE = {"bfloat16": 0.25, "float32": 0.02}


class Applied(Record):
    """How far what answers is from the trained model, and from its base (nats, RMS).

    `telling`: the training is known to have moved the model by more than the tolerance, so that the
    base in its place would have been noticed. Of a full fine-tune it is not known.
    """

    to_tuned: float
    to_base: float | None
    telling: bool


async def check_applied(
    endpoint: Endpoint, canaries: Sequence[Canary], *, dtype: str
) -> Applied | None:
    """Return how near `endpoint` is to the model that was trained; None without canaries.

    Raises GateFailed where it is farther than TOLERANCE from what the training process computed,
    or, where that is farther than this from the base, no nearer to it than to the base: the adapter
    is not applied, or another one is.
    """
    if not canaries:
        return None
    answers = await endpoint.ask([_prompt(canary) for canary in canaries])
    spoken = [_log_probabilities(a, c) for a, c in zip(answers, canaries, strict=True)]
    tuned = _distance(spoken, [canary.tuned for canary in canaries])
    bases = [canary.base for canary in canaries if canary.base is not None]
    base = moved = None
    if len(bases) == len(canaries):
        base = _distance(spoken, bases)
        moved = _distance([canary.tuned for canary in canaries], bases)
    telling = moved is not None and moved > TOLERANCE[dtype]
    told = f"{tuned:.3f} nats from the trained model (allowed: {TOLERANCE[dtype]:g} in {dtype})"
    if base is not None:
        told += f", {base:.3f} from its base"
    if not tuned <= TOLERANCE[dtype] or (base is not None and telling and tuned >= base):
        raise GateFailed(
            f"adapter gate: what answers is {told}. The adapter is not applied, or another one is: "
            "look for warnings about modules or shapes in the libraries' log"
        )
    return Applied(to_tuned=tuned, to_base=base, telling=telling)


def _prompt(canary: Canary) -> Prompt:
    return Prompt(
        messages=({"role": "user", "content": canary.text},),
        max_tokens=1,
        temperature=0.0,
        seed=0,
        logprob_ids=canary.ids,
    )


def _log_probabilities(answer: Answer, canary: Canary) -> tuple[float, ...]:
    return tuple(answer.logprobs[i] for i in canary.ids)


def _distance(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    """Root mean square difference over all ids of all prompts."""
    squares = [
        (a - b) ** 2
        for ours, theirs in zip(left, right, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return math.sqrt(math.fsum(squares) / len(squares))
