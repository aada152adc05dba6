"""The process that holds a pool's engine, as Ray Serve runs it.

Knows nothing of who calls it or what happens to a call when it dies (see cluster.serving), nor of
how an engine speaks (see cluster.engine).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from cluster.engine import Engine
from cluster.requests import (
    Completion,
    EngineDead,
    Locate,
    Merge,
    PoolConfig,
    Request,
    Weights,
)

LOGGER = logging.getLogger(__name__)
WANTED_PERIOD_S = 10.0


class Replica:
    """What runs in each replica's process."""

    async def __init__(self, config: PoolConfig, merge: Merge, locate: Locate) -> None:  # type: ignore[misc]
        from ray import serve

        if config.wanted is not None:
            watching = (config.name, config.wanted)
            threading.Thread(target=_end_unwanted, args=watching, daemon=True).start()
        engine = await asyncio.to_thread(config.engine)
        self._engine = Engine(engine, merge)
        self._locate = locate
        # Serve routes a call to a replica that has announced the call's weights.
        side_by_side = engine.max_loras if engine.mode == "lora" else 1
        self._announce = serve.multiplexed(max_num_models_per_replica=side_by_side)(_announced)
        await self._engine.check()  # Serve counts the replica as running only after this

    async def complete(
        self, requests: tuple[Request, ...], weights: Weights | None
    ) -> list[Completion]:
        """As Engine.complete; the weights are fetched to this node where they are far."""
        if weights:
            weights = await asyncio.to_thread(self._locate, weights)
            await self._announce(weights.key)
        return await self._engine.complete(requests, weights)

    async def tokenize(self, texts: tuple[str, ...]) -> list[list[int]]:
        """As Engine.tokenize."""
        return await self._engine.tokenize(texts)

    async def ready(self) -> None:
        """Return once a token was sampled. Raises EngineDead where none can be."""
        await self._engine.check()

    def check_health(self) -> None:
        """Raise EngineDead where the engine is gone: Serve asks, and replaces this replica then."""
        if not self._engine.alive:
            raise EngineDead("the engine's processes have ended")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


def _end_unwanted(name: str, wanted: Callable[[], bool]) -> None:
    """End the pool, of which this is the replica's process, once it is not wanted any more."""
    from ray import serve

    while True:
        if not wanted():
            LOGGER.warning("pool %s ends by itself: whoever started it is gone", name)
            try:
                serve.delete(name, _blocking=False)
            except Exception:
                LOGGER.exception("pool %s: Serve did not take it; it is told again", name)
        time.sleep(WANTED_PERIOD_S)


async def _announced(key: str) -> str:
    return key
