"""Model weights and tasks' samples onto every node's own disk, before cells ask for them.

Knows nothing of how they are fetched (see em.models, em.inspect_tasks), or of what they are for.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.nodes import on_every_node
from em.inspect_tasks import TaskConfig, load_task
from em.models import ModelConfig, materialise

HOURS_S = 6 * 3600.0  # of a large model over a slow line


@dataclass(frozen=True)
class Fetched:
    """How one node came by models and samples: seconds by name, or why it could not."""

    node: str
    seconds: dict[str, float]
    problem: str | None = None


def prefetch_here(
    models: Sequence[ModelConfig], tasks: Sequence[TaskConfig] = ()
) -> dict[str, float]:
    """Have models' files and tasks' samples on this machine's disk; return how long each took (s).

    Of several processes of a machine that ask at the same time one fetches. Raises ValueError for
    what cannot be had.
    """
    took = {}
    for task in tasks:
        began = time.monotonic()
        load_task(task)
        took[task.told] = time.monotonic() - began
    for model in models:
        began = time.monotonic()
        materialise(model)
        took[model.name] = time.monotonic() - began
    return took


def prefetch_everywhere(
    models: Sequence[ModelConfig], tasks: Sequence[TaskConfig] = ()
) -> list[Fetched]:
    """The same on every node of the joined cluster, all at once."""
    return [
        Fetched(node.name, {}, str(told))
        if isinstance(told, Exception)
        else Fetched(node.name, told)
        for node, told in on_every_node(
            prefetch_here, tuple(models), tuple(tasks), timeout_s=HOURS_S
        )
    ]
