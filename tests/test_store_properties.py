"""The store under random work, crashes between any two file operations, and two writers.

The model: whatever happened, a last undisturbed pass leaves every key exactly once, with the
undisturbed answer; what was whole on disk is never asked for again, and a crash costs at most the
parts that were being written.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sweep import FakeEndpoint, plan

from em.generation import Answer, Prompt, Response
from sweeps.artefacts import DriverBeat
from sweeps.files import Files
from sweeps.filling import PARTS_AT_ONCE, part_size
from sweeps.leases import HeldElsewhere, Holder, LeaseLost
from sweeps.plan import CellPlan, EvaluationPlan
from sweeps.stages import generate_stage
from sweeps.store import Store

SAMPLES = (30, 90, 120)  # of each of three wordings: one part, two parts
NOTHING: Callable[[], None] = lambda: None  # noqa: E731


class Crash(BaseException):
    """The process is killed here."""


class WatchedFiles(Files):
    """Files that call `at` before each operation that changes something."""

    def __init__(self, url: str, at: Callable[[], None]) -> None:
        super().__init__(url)
        self.at = at

    def _write(self, path: str, data: bytes, forced: bool) -> None:
        self.at()
        super()._write(path, data, forced)
        self.at()

    def _create(self, target: str, data: bytes) -> bool:
        self.at()
        created = super()._create(target, data)
        self.at()
        return created

    def remove(self, path: str) -> None:
        self.at()
        super().remove(path)


class CountingEndpoint(FakeEndpoint):
    """Counts how often each prompt is asked, over all drivers."""

    def __init__(self, asked: Counter[tuple[str, int]]) -> None:
        super().__init__()
        self.times = asked

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self.times.update((p.messages[-1]["content"], p.seed) for p in prompts)
        await asyncio.sleep(0)
        return await super().ask(prompts)


class World:
    """One store, and the drivers that come and go on it."""

    def __init__(self, root: str, cell: CellPlan) -> None:
        self.root, self.cell = root, cell
        self.asked: Counter[tuple[str, int]] = Counter()
        self.dead: set[str] = set()
        self.crashes = 0

    def pass_over(self, samples: int, *, at: int | None = None, do: Callable[[], None]) -> str:
        """Have a new driver generate `samples` of each wording; at operation `at`, `do` happens."""
        driver = uuid4().hex[:12]
        plain = Store(self.root)
        beat = DriverBeat(driver=driver, host="x", place="x", pid=1, started=0.0, updated=0.0)
        plain.write_record(plain.driver_path("s", driver), beat)
        operations = [0]

        def watch() -> None:
            operations[0] += 1
            if operations[0] == at:
                self.dead.add(driver)
                do()

        store = Store(self.root, WatchedFiles(self.root, watch))
        evaluation = self.cell.evaluations[0]
        asked = tuple((wording, samples) for wording, _ in evaluation.asked)
        wanted = EvaluationPlan.model_validate(evaluation.model_dump() | {"asked": asked})
        cell = self.cell.model_copy(update={"evaluations": (wanted,)})
        holder = Holder(driver, "s", dead=frozenset(self.dead))
        try:
            asyncio.run(generate_stage(cell, store, lambda t: CountingEndpoint(self.asked), holder))
        except (Crash, HeldElsewhere, LeaseLost) as ended:
            return type(ended).__name__
        except BaseExceptionGroup as group:
            if group.split(Crash)[1] is not None:
                raise
            return "Crash"
        finally:
            self.dead.add(driver)
        return "done"

    def crash(self) -> None:
        self.crashes += 1
        raise Crash

    def on_disk(self) -> list[Response]:
        """Every response in whole parts, recorded or not."""
        store, stream = Store(self.root), self.cell.evaluations[0].stream
        record = store.stream("responses", stream)
        parts = [*(record.parts if record else []), *store.unrecorded_parts("responses", stream)]
        return [r for part in parts for r in store.read_part("responses", stream, part, Response)]


def beside(work: Callable[[], str]) -> None:
    """Do `work` to its end in a thread of its own: an event loop runs in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


event = st.tuples(
    st.sampled_from(["crash", "overtake", "nothing"]),
    st.integers(min_value=1, max_value=12),  # at which operation
    st.sampled_from(SAMPLES),
    st.sampled_from(SAMPLES),
)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> CellPlan:
    return plan(tmp_path_factory.mktemp("spec"), variants=[{"name": "none"}]).cells[0]


@pytest.mark.parametrize("kind", ["folder", "memory"])
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(events=st.lists(event, max_size=5))
def test_every_key_is_counted_once_whatever_happens(
    kind: str, cell: CellPlan, tmp_path: Path, events: list[tuple[str, int, int, int]]
) -> None:
    name = uuid4().hex
    world = World(f"memory://{name}" if kind == "memory" else str(tmp_path / name), cell)
    for event, at, samples, others in events:
        before = {response.key for response in world.on_disk()}
        what: dict[str, Callable[[], Any]] = {
            "crash": world.crash,
            "overtake": lambda o=others: beside(lambda: world.pass_over(o, do=NOTHING)),
            "nothing": NOTHING,
        }
        world.pass_over(samples, at=at, do=what[event])
        assert before <= {response.key for response in world.on_disk()}  # nothing whole is lost
        visible = Store(world.root).read_stream("responses", cell.evaluations[0].stream, Response)
        assert len({response.key for response in visible}) == len(visible)
    whole = {response.key for response in world.on_disk()}
    asked_before = world.asked.total()
    assert world.pass_over(max(SAMPLES), do=NOTHING) == "done"
    stream = cell.evaluations[0].stream
    found = Store(world.root).read_stream("responses", stream, Response)
    expected = {(w.key, i) for w, _ in cell.evaluations[0].asked for i in range(max(SAMPLES))}
    assert Counter((r.wording_key, r.index) for r in found) == dict.fromkeys(expected, 1)
    assert whole <= {response.key for response in found}
    assert world.asked.total() - asked_before == len(expected) - len(whole)  # only what was lost
    wording = {w.key: w.text for w, _ in cell.evaluations[0].asked}
    assert all(r.answer.startswith(f"answer to {wording[r.wording_key]}") for r in found)
    disturbed = sum(kind != "nothing" for kind, *_ in events)
    repeated = world.asked.total() - len(world.asked)
    assert repeated <= disturbed * PARTS_AT_ONCE * part_size(len(expected)) * 2
    again = world.asked.total()
    assert world.pass_over(max(SAMPLES), do=NOTHING) == "done"
    assert world.asked.total() == again
