"""Engines of a run without Ray: started when asked for, replaced when dead."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.requests import Completion, EngineDead, Request, Weights
from em.models import ModelConfig
from sweeps.engines import Engines
from sweeps.failures import CellFailure, OnStage, attempt_cell
from sweeps.store import Store

MODELS = [ModelConfig(name=name, folder=f"/nowhere/{name}") for name in ("a", "b")]


class FakeEngine:
    def __init__(self, *, dies: bool = False) -> None:
        self.alive, self.closed, self._dies = True, 0, dies

    async def complete(
        self, requests: Sequence[Request], weights: Weights | None
    ) -> list[Completion]:
        if self._dies:
            self.alive = False
            raise EngineDead("the engine died")
        return []

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return []

    def close(self) -> None:
        self.alive, self.closed = False, self.closed + 1


class Starting:
    """Starts engines of which the first `dying` die when asked."""

    def __init__(self, dying: int = 0) -> None:
        self.started: list[tuple[str, FakeEngine]] = []
        self._dying = dying

    def __call__(self, model: ModelConfig) -> FakeEngine:
        engine = FakeEngine(dies=len(self.started) < self._dying)
        self.started.append((model.name, engine))
        return engine

    @property
    def names(self) -> str:
        return "".join(name for name, _ in self.started)


def test_an_engine_is_started_when_asked_for_and_replaced_only_when_dead() -> None:
    start = Starting()
    engines = Engines(MODELS, start)
    assert start.names == "" and list(engines) == ["a", "b"]
    first = engines["b"]
    engines.start(["a", "b"])
    assert engines["b"] is first and start.names == "ba"
    start.started[0][1].alive = False
    assert engines["b"] is not first and start.names == "bab"
    engines.close()
    assert [engine.closed for _, engine in start.started] == [1, 1, 1]
    with pytest.raises(KeyError):
        engines["c"]


def test_one_that_does_not_come_up_is_met_by_who_asks_it() -> None:
    def start(model: ModelConfig) -> FakeEngine:
        raise EngineDead("the engine did not start")

    engines = Engines(MODELS, start)
    engines.start(engines)
    with pytest.raises(EngineDead, match="did not start"):
        engines["a"]
    engines.close()


def asked(store: Store, engines: Engines, cell_id: str, tries: int) -> CellFailure | None:
    def work(on_stage: OnStage) -> None:
        asyncio.run(engines["a"].complete([], None))

    return attempt_cell(
        store, "sweep", cell_id, "driver", work, first_stage="generate", tries=tries
    )


def test_a_cell_is_tried_with_a_fresh_engine_and_fails_by_name_when_all_die(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path / "store"))
    store.create()
    start = Starting(dying=2)
    engines = Engines(MODELS, start)
    failure = asked(store, engines, "one", tries=1)
    assert failure is not None and failure.error_class == "EngineDead"
    assert asked(store, engines, "two", tries=2) is None
    assert start.names == "aaa"
