"""The pools that a sweep's answers and judgements come from: started together, stopped together.

Knows nothing of which cells ask them, or in what order.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from cluster.requests import EngineDead, PoolConfig
from cluster.serving import running_pools, start_pool, stop_pool
from cluster.session import ClusterError
from em.models import ModelConfig
from em.record import fingerprint
from sweeps.attempts import Beat
from sweeps.endpoints import engine_config, merge
from sweeps.leases import living
from sweeps.spec import SweepSpec
from sweeps.store import Store


@contextlib.contextmanager
def pools(
    spec: SweepSpec,
    models: Sequence[ModelConfig],
    *,
    store: Store,
    beat: Beat,
    joined: bool,
) -> Iterator[dict[str, str]]:
    """Start the pools of `models`; gives each pool's name by its model's.

    Names hold the address of the `store` and the driver: two sweeps of one name may share a
    cluster, and so may two drivers of one sweep. What a driver that was killed left is stopped.

    They are stopped on the way out; after an error only in a cluster that was `joined`, which would
    keep them and their GPUs: a Ray that was started here ends with them in any case. Raises
    ClusterError where one does not come up.
    """
    names = {model.name: f"{_prefix(spec, store, model)}{beat.driver}" for model in models}
    if joined:
        stop_left_behind(spec, store, models)
    try:
        with beat.starting(f"pool {' + '.join(names)}"):
            for model in models:
                _start(model, names[model.name], spec)
        yield names
    except BaseException:
        if not joined:
            names = {}
        raise
    finally:
        for name in names.values():
            stop_pool(name)


def _prefix(spec: SweepSpec, store: Store, model: ModelConfig) -> str:
    return f"pool-{fingerprint([store.url, spec.name, model.name])[:12]}-"


def stop_left_behind(spec: SweepSpec, store: Store, models: Sequence[ModelConfig]) -> None:
    """Stop the pools of drivers of this sweep that were killed: they hold GPUs for nobody."""
    owners: dict[str, str] = {}
    for name in running_pools():
        for model in models:
            driver = name.removeprefix(_prefix(spec, store, model))
            if driver != name:
                owners[name] = driver
    if not owners:
        return
    asked = [(spec.name, b) for b in store.drivers(spec.name) if b.driver in owners.values()]
    live = {beat.driver for _, beat in living(store, asked)}
    for name, driver in owners.items():
        if driver not in live:
            stop_pool(name)


def _start(model: ModelConfig, name: str, spec: SweepSpec) -> None:
    spec = spec.for_model(model.name)
    config = PoolConfig(
        name=name,
        engine=partial(engine_config, model, spec.serving, spec.training, spec.resources),
        replicas=spec.serving.replicas,
        num_cpus=spec.resources.serve_cpus,
        num_gpus=spec.resources.serve_gpus,
    )
    try:
        start_pool(config, merge)
    except EngineDead as error:
        raise ClusterError(
            f"the pool of {model.name} did not come up: {error}. The libraries' log says why; look "
            "at 'serving' and 'resources' in the spec"
        ) from error
