"""The nodes of the joined Ray cluster, and one function run on each of them.

Knows nothing of what the function looks for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Found = TypeVar("Found")


@dataclass(frozen=True)
class Node:
    """One machine of the cluster. `name` is its address; several may share one in a test.

    `accelerator` is what Ray calls its accelerators ("H100", "AMD-Instinct-MI300X-OAM"), None where
    it has none or Ray does not know them.
    """

    node_id: str
    name: str
    cpus: float
    gpus: float
    accelerator: str | None = None


ACCELERATOR = "accelerator_type:"  # a resource of this name and the kind is on each such node


def nodes() -> list[Node]:
    """Return the nodes that are alive, those with most GPUs first."""
    import ray

    found = [
        Node(
            node_id=node["NodeID"],
            name=node["NodeManagerAddress"],
            cpus=float(node["Resources"].get("CPU", 0)),
            gpus=float(node["Resources"].get("GPU", 0)),
            accelerator=next(
                (
                    name.removeprefix(ACCELERATOR)
                    for name in sorted(node["Resources"])
                    if name.startswith(ACCELERATOR)
                ),
                None,
            ),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (-node.gpus, -node.cpus, node.name, node.node_id))


def on_every_node(
    function: Callable[..., Found], *arguments: Any, timeout_s: float
) -> list[tuple[Node, Found | Exception]]:
    """Call `function(*arguments)` on every node at once, holding nothing there.

    What a call raises, or that it took longer than `timeout_s`, stands in place of its result.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=1)(function)
    asked = [
        (
            node,
            remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            ).remote(*arguments),
        )
        for node in nodes()
    ]
    ray.wait([reference for _, reference in asked], num_returns=len(asked), timeout=timeout_s)
    told: list[tuple[Node, Found | Exception]] = []
    for node, reference in asked:
        try:
            told.append((node, ray.get(reference, timeout=0)))
        except GetTimeoutError:
            ray.cancel(reference, force=True)
            told.append((node, TimeoutError(f"no answer within {timeout_s:g} s")))
        except RayTaskError as error:
            told.append((node, error.cause if isinstance(error.cause, Exception) else error))
        except RayError as error:
            told.append((node, error))
    return told
