"""Engines in this process, by their model's name: for runs without Ray.

What Serve does for a pool is done here: a dead engine is replaced when it is next asked for.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from cluster.requests import EngineDead
from em.models import ModelConfig
from sweeps.endpoints import Model, engine_config, merge
from sweeps.spec import SweepSpec


class LocalEngine(Model, Protocol):
    """What an engine in this process has beyond answering."""

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Engines(Mapping[str, LocalEngine]):
    """The engines of some models: started when first asked for, replaced when found dead."""

    def __init__(
        self, models: Iterable[ModelConfig], start: Callable[[ModelConfig], LocalEngine]
    ) -> None:
        """Start nothing yet. `start` raises EngineDead where an engine does not come up."""
        self._models = {model.name: model for model in models}
        self._start = start
        self._engines: dict[str, LocalEngine] = {}

    def __getitem__(self, name: str) -> LocalEngine:
        model = self._models[name]
        engine = self._engines.get(name)
        if engine is None or not engine.alive:
            self._drop(name)
            engine = self._engines[name] = self._start(model)
        return engine

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def start(self, names: Iterable[str]) -> None:
        """Start those that do not run. One that does not come up is met again by who asks it."""
        for name in names:
            with contextlib.suppress(EngineDead):
                self[name]

    def close(self) -> None:
        """End all of them."""
        for name in list(self._engines):
            self._drop(name)

    def _drop(self, name: str) -> None:
        if name in self._engines:
            self._engines.pop(name).close()


def start_engine(spec: SweepSpec) -> Callable[[ModelConfig], LocalEngine]:
    """Return what starts the engine of a model with the settings of `spec`."""

    def start(model: ModelConfig) -> LocalEngine:
        from cluster.engine import Engine

        own = spec.for_model(model.name)
        return Engine(engine_config(model, own.serving, own.training, own.resources), merge)

    return start
