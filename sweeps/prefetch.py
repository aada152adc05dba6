"""Model weights onto every node's own disk, once for each node, before cells ask for them.

Knows nothing of how a model is fetched (see em.models), or of what it is used for.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.nodes import on_every_node
from em.models import ModelConfig, materialise

HOURS_S = 6 * 3600.0  # of a large model over a slow line


@dataclass(frozen=True)
class Fetched:
    """How one node came by its models: seconds by model's name, or why it could not."""

    node: str
    seconds: dict[str, float]
    problem: str | None = None


def prefetch_here(models: Sequence[ModelConfig]) -> dict[str, float]:
    """Have every model's files on this machine's disk; return how long each took, in seconds.

    Of several processes of a machine that ask at the same time one fetches. Raises ValueError for
    a model that cannot be had.
    """
    took = {}
    for model in models:
        began = time.monotonic()
        materialise(model)
        took[model.name] = time.monotonic() - began
    return took


def prefetch_everywhere(models: Sequence[ModelConfig]) -> list[Fetched]:
    """The same on every node of the joined cluster, all at once."""
    return [
        Fetched(node.name, {}, str(told))
        if isinstance(told, Exception)
        else Fetched(node.name, told)
        for node, told in on_every_node(prefetch_here, tuple(models), timeout_s=HOURS_S)
    ]
