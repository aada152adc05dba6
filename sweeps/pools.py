"""The engines that a sweep's answers and judgements come from: started and stopped one by one.

Knows nothing of which cells ask them, or in what order.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from cluster.requests import EngineDead, Locate, Merge, PoolConfig, Weights
from cluster.serving import (
    PoolState,
    pool_states,
    running_pools,
    start_pool,
    stop_pool,
    stop_pools,
)
from cluster.session import ClusterError
from em.models import ModelConfig
from em.record import fingerprint
from sweeps.attempts import Beat
from sweeps.endpoints import engine_config, merge
from sweeps.files import StoreError
from sweeps.leases import has_ended, living
from sweeps.spec import SweepSpec
from sweeps.store import Store

# Without a sign of life of its driver an engine ends by itself: later than leases do, as a driver
# that was only cut off goes on with the engines that it has.
ABANDONED_S = 600.0
CUT_OFF_S = 6 * 3600.0

log = logging.getLogger(__name__)


class Pools:
    """The engines of one driver: each is a pool of one replica behind Ray Serve.

    Names hold the address of the `store` and the driver: two sweeps of one name may share a
    cluster, and so may two drivers of one sweep.
    """

    def __init__(
        self,
        spec: SweepSpec,
        store: Store,
        beat: Beat,
        *,
        joined: bool,
        start: Callable[[PoolConfig, Merge, Locate], object] = start_pool,
        stop: Callable[[Sequence[str]], None] = stop_pools,
    ) -> None:
        """Start nothing yet. A cluster that was `joined` keeps what is not stopped."""
        self._start_pool, self._stop_pools = start, stop
        self._spec, self._store, self._beat, self.joined = spec, store, beat, joined
        self._names: dict[str, str] = {}  # of engines that are starting or stand
        self._stopped: set[str] = set()  # engines, whose names are used once
        self._numbers = itertools.count(1)
        self._given_up = False
        self._lock = threading.Lock()

    def name(self, engine: str) -> str:
        """Return the name that an engine's pool is connected to by."""
        return self._names[engine]

    def start(self, model: ModelConfig, engine: str) -> bool:
        """Start an engine of a model, and wait; whether it answers: it may be stopped meanwhile.

        Raises ClusterError where it does not come up.
        """
        prefix = _prefix(self._spec, self._store, model)
        with self._lock:
            if engine in self._stopped:
                return False
            name = f"{prefix}{self._beat.driver}-{next(self._numbers)}"
            self._names[engine] = name
        try:
            with self._beat.starting(f"engine {engine}"):
                self._start(model, name)
        except ClusterError:
            if engine in self._stopped:
                return False
            raise
        if self._given_up or engine in self._stopped:
            self._stop_pools([name])  # it may not have been there yet when it was stopped
            return False
        return True

    def _start(self, model: ModelConfig, name: str) -> None:
        spec, driver = self._spec.for_model(model.name), self._beat.driver
        config = PoolConfig(
            name=name,
            engine=partial(engine_config, model, spec.serving, spec.training, spec.resources),
            num_cpus=spec.resources.serve_cpus,
            num_gpus=spec.resources.serve_gpus,
            wanted=AtWork(self._store.url, spec.name, driver),
        )
        try:
            self._start_pool(config, merge, fetch_weights)
        except EngineDead as error:
            raise ClusterError(
                f"the pool of {model.name} did not come up: {error}. The libraries' log says why; "
                "look at 'serving' and 'resources' in the spec"
            ) from error

    def stop(self, engine: str) -> None:
        """End an engine; what it held is free when this returns."""
        with self._lock:
            self._stopped.add(engine)
            name = self._names.pop(engine, None)
        if name is not None:
            self._stop_pools([name])

    def look(self) -> dict[str, PoolState | None]:
        """Return how each engine is that is starting or stands; None for one that is gone."""
        with self._lock:
            names = dict(self._names)
        if not names:
            return {}
        states = pool_states()
        return {engine: states.get(name) for engine, name in names.items()}

    def give_up(self) -> None:
        """End all of them after an error: a Ray that was started here ends with them anyway."""
        self._given_up = True
        if self.joined:
            self._stop_pools(list(self._names.values()))


def _prefix(spec: SweepSpec, store: Store, model: ModelConfig) -> str:
    return f"pool-{fingerprint([store.url, spec.name, model.name])[:12]}-"


def stop_left_behind(spec: SweepSpec, store: Store, models: Sequence[ModelConfig]) -> None:
    """Stop the pools of drivers of this sweep that were killed: they hold GPUs for nobody."""
    owners: dict[str, str] = {}
    for name in running_pools():
        for model in models:
            rest = name.removeprefix(_prefix(spec, store, model))
            if rest != name:
                owners[name] = rest.rpartition("-")[0]
    if not owners:
        return
    asked = [(spec.name, b) for b in store.drivers(spec.name) if b.driver in owners.values()]
    live = {beat.driver for _, beat in living(store, asked)}
    for name, driver in owners.items():
        if driver not in live:
            stop_pool(name)


class AtWork:
    """Whether a driver is at work: asked again and again, where its engines are.

    It is until it says that it has ended, or its process on this machine is gone, or it gave no
    sign for ABANDONED_S seconds in which the store could be read. A store out of reach says
    nothing, for CUT_OFF_S seconds.
    """

    def __init__(
        self, store_url: str, sweep: str, driver: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._store_url, self._sweep, self._driver, self._now = store_url, sweep, driver, now
        self._count = -1  # of its last sign
        self._silent_s = 0.0  # since then, while the store was read
        self._looked: float | None = None
        self._read: float | None = None

    def __call__(self) -> bool:
        """Look once more."""
        now = self._now()
        passed = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if self._read is None:
            self._read = now
        try:
            store = Store(self._store_url)
            if store.files.read("store.json") is None:  # a disk that is not mounted just now
                raise StoreError(f"there is no store at {store.url}")
            beat = store.driver(self._sweep, self._driver)
        except Exception as error:  # noqa: BLE001  of whatever kind a client raises
            log.warning("the store cannot be read, where the driver's sign is: %s", error)
            return now - self._read <= CUT_OFF_S
        self._read = now
        if beat is not None and has_ended(beat):
            return False
        if beat is not None and beat.count != self._count:
            self._count, self._silent_s = beat.count, 0.0
        else:
            self._silent_s += passed
        return self._silent_s <= ABANDONED_S


def fetch_weights(weights: Weights) -> Weights:
    """Return weights with a folder of this node as their path: those in a bucket are fetched.

    Raises StoreError where they cannot be had.
    """
    if "://" not in weights.path:
        return weights
    return replace(weights, path=str(Store.adapter_from(weights.path, weights.key)))
