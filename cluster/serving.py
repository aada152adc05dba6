"""A pool: one engine behind a name, kept alive by Ray Serve, called from any Ray task.

No HTTP: calls go by handle. A replica whose engine dies is replaced by Serve; the call that was
lost with it is asked again, with the same seeds, a bounded number of times. A call also waits only
so long for a pool without any replica.

Knows nothing of how an engine speaks (see cluster.engine), nor of what the completions are for.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cluster.replica import Replica
from cluster.requests import (
    Completion,
    EngineDead,
    Locate,
    Merge,
    PoolConfig,
    Request,
    Weights,
)

PoolState = Literal["unplaced", "loading", "running", "failed", "ending"]
"""Its replica waits for room, comes up on a node, answers, does not come up; or it is stopped."""

LOGGER = logging.getLogger(__name__)
_STARTING = threading.Lock()

RETRIES = 2
PATIENCE_S = 600.0  # a replacement loads the model anew, and may wait for its resources
HEALTH_PERIOD_S = 1.0
POLL_S = 0.5
# Serve gives a replica up at its third failed check: until then calls may still be sent to it.
DETECTED_AFTER_S = 4 * HEALTH_PERIOD_S
WHY_THEY_DIE = "the libraries' log says why replicas die (often memory: see the pool's lengths)"
WHY_NONE = (
    "see `ray status` for lost nodes and for what holds the resources, and the libraries' log"
)


class Pool:
    """The engine interface over a pool by its name; small, picklable, for any process in Ray."""

    def __init__(self, name: str, retries: int = RETRIES, patience_s: float = PATIENCE_S) -> None:
        """Refer to the pool `name`; nothing is looked up before the first call."""
        self.name = name
        self.retries = retries
        self.patience_s = patience_s
        self.retried = 0  # by this object, so far
        self._handle: Any = None

    def __reduce__(self) -> tuple[type["Pool"], tuple[str, int, float]]:
        """Handles are looked up by each process for itself."""
        return Pool, (self.name, self.retries, self.patience_s)

    async def complete(
        self, requests: Sequence[Request], weights: Weights | None
    ) -> list[Completion]:
        """As Engine.complete, by one replica (calls with equal weights go to the same one if idle).

        Raises what Engine.complete raises, and EngineDead once `retries` further attempts have been
        lost to dying replicas or no replica was there for `patience_s` seconds.
        """
        key = weights.key if weights else ""
        return list(await self._call("complete", key, tuple(requests), weights))

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens. Raises EngineDead as complete."""
        return list(await self._call("tokenize", "", tuple(texts)))

    async def _call(self, method: str, key: str, *arguments: object) -> Any:
        from ray.exceptions import RayTaskError

        attempt = 1
        while True:
            try:
                handle = self._replicas().options(multiplexed_model_id=key)
                return await self._answer(getattr(handle, method).remote(*arguments))
            except _lost() as error:
                if attempt > self.retries:
                    raise EngineDead(
                        f"pool {self.name}: {method} was lost to dying replicas {attempt} times, "
                        f"at last with: {_last_line(error)}; {WHY_THEY_DIE}"
                    ) from error
                LOGGER.warning(
                    "pool %s: %s is asked again (%d of %d), its replica died: %s",
                    *(self.name, method, attempt, self.retries, _last_line(error)),
                )
            except RayTaskError as error:
                if isinstance(error.cause, ValueError):
                    raise error.cause from None  # the caller's mistake, not the replica's
                raise
            attempt += 1
            self.retried += 1
            await self._wait_ready()

    async def _answer(self, response: Any) -> Any:
        """Await it; Serve itself would wait without end for a replica that never comes."""
        task = asyncio.ensure_future(_response(response))
        there = time.monotonic()
        try:
            while not (await asyncio.wait({task}, timeout=self.patience_s / 20))[0]:
                state = await asyncio.to_thread(_state, self.name)
                if state in ("ending", "gone"):
                    raise EngineDead(f"pool {self.name} was stopped")
                if state == "running":
                    there = time.monotonic()
                elif time.monotonic() - there > self.patience_s:
                    raise self._none()
            return task.result()
        finally:
            task.cancel()

    def _none(self) -> EngineDead:
        return EngineDead(
            f"pool {self.name}: no replica was there for {self.patience_s:g} s; {WHY_NONE}"
        )

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.patience_s
        await asyncio.sleep(DETECTED_AFTER_S)
        while True:
            remaining = deadline - time.monotonic()
            if await asyncio.to_thread(_state, self.name) in ("ending", "gone"):
                raise EngineDead(f"pool {self.name} was stopped")
            try:
                await asyncio.wait_for(_response(self._replicas().ready.remote()), remaining)
                return
            except TimeoutError as error:
                raise self._none() from error
            except _lost():
                await asyncio.sleep(HEALTH_PERIOD_S)

    def _replicas(self) -> Any:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        if self._handle is None:
            try:
                self._handle = serve.get_app_handle(self.name)
            except RayServeException as error:
                raise EngineDead(f"pool {self.name} was stopped") from error
        return self._handle


def start_pool(config: PoolConfig, merge: Merge, locate: Locate) -> Pool:
    """Start a pool in the running Ray, or replace the one of that name; gives it once ready.

    Ready means that its replica has sampled a token. `merge` and `locate` must be importable
    where replicas run. Raises EngineDead if the replicas do not come up: the pool is then taken
    away again.
    """
    from ray import serve

    # Serve's controller is made by whoever comes first, and by one only; and Serve 2.60 registers a
    # module for pickling, and takes that back, for each deployment that is described: two threads
    # at once would take it back twice, which is an error.
    with _STARTING:
        serve.start(proxy_location="Disabled", http_options={"location": "NoServer"})
        deployment = serve.deployment(
            Replica,
            name=config.name,
            num_replicas=1,
            ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
            max_ongoing_requests=1024,  # the default of 5 would starve the engine's batch
            health_check_period_s=HEALTH_PERIOD_S,
            graceful_shutdown_timeout_s=15.0,
            graceful_shutdown_wait_loop_s=0.5,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        application = serve.RunTarget(
            deployment.bind(config, merge, locate), name=config.name, route_prefix=None
        )
        serve.run_many([application], wait_for_applications_running=False)
    _wait_until_running(config.name)
    return Pool(config.name)


def _wait_until_running(name: str) -> None:
    """Wait; Serve's own way to wait never ends for what is stopped meanwhile."""
    from ray import serve

    while (state := pool_states().get(name, "ending")) != "running":
        if state == "ending":
            raise EngineDead(f"pool {name} was stopped while it started")
        if state == "failed":
            why = serve.status().applications[name].message
            stop_pool(name)
            raise EngineDead(f"pool {name} did not come up: {why}")
        time.sleep(POLL_S)


def connect_pool(name: str) -> Pool:
    """Refer to a running pool from any process that is connected to Ray."""
    return Pool(name)


def stop_pool(name: str) -> None:
    """End a pool, its replicas and their engines; nothing happens if there is none."""
    stop_pools([name])


def stop_pools(names: Sequence[str]) -> None:
    """End pools, all at once, as each may drain for a while. A warning tells of one that stays."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    with contextlib.suppress(RayServeException):  # Serve itself was never started
        for name in names:
            serve.delete(name, _blocking=False)
        for name in names:
            try:
                serve.delete(name)
            except TimeoutError as error:
                LOGGER.warning("pool %s has not ended yet: %s", name, error)


def pool_states() -> dict[str, PoolState]:
    """Return how each pool is, of whatever driver. Raises RayServeException where none ever was."""
    import ray
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException

    if not ray.is_initialized():
        raise RayServeException("no Ray is joined")  # Serve would start one
    # What serve.status() tells does not say whether a replica has a node.
    told = _get_global_client().get_serve_details()["applications"]
    return {name: _state_of(application) for name, application in told.items()}


def _state_of(application: Mapping[str, Any]) -> PoolState:
    match application["status"]:
        case "DELETING":
            return "ending"
        case "DEPLOY_FAILED":
            return "failed"
    replicas = [r for d in application["deployments"].values() for r in d["replicas"]]
    if any(replica["state"] == "RUNNING" for replica in replicas):
        return "running"
    return "loading" if any(replica.get("node_id") for replica in replicas) else "unplaced"


def running_pools() -> list[str]:
    """Return the names of all pools in the running Ray, of whatever driver."""
    from ray.serve.exceptions import RayServeException

    try:
        return sorted(pool_states())
    except RayServeException:
        return []


async def _response(response: Any) -> Any:
    """Serve's responses can be awaited but are no coroutines."""
    return await response


def _state(name: str) -> PoolState | Literal["gone"] | None:
    """How one pool is; None where Serve does not say."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        return pool_states().get(name, "gone")
    except (RayError, RayServeException):
        return None


def _lost() -> tuple[type[Exception], ...]:
    """The errors of a call whose replica or node died, before or after it was sent."""
    from ray.exceptions import ObjectLostError, RayActorError
    from ray.serve.exceptions import DeploymentUnavailableError

    return (RayActorError, ObjectLostError, DeploymentUnavailableError, EngineDead)


def _last_line(error: Exception) -> str:
    """Ray's errors carry a whole traceback as their text, the reason last."""
    return (str(error).strip().splitlines() or [repr(error)])[-1]
