"""The judge misbehaves in the middle of judging: the table is that of an undisturbed run."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import CLOSES, HALF, Reply, completion
from matrix import Case, slow_unless
from world import World, verdict

from em.api_client import TIMEOUT_S
from sweeps.failures import CellFailure

pytestmark = [pytest.mark.slow, pytest.mark.torch]

WHOLE = 135 * 2  # calls of an undisturbed judging: responses, scores
BROKEN: dict[str, Reply] = {
    "429": (429, {"error": {"message": "slow down"}}),
    "500": (500, {"error": {"message": "oh"}}),
    "503 in plain words": (503, b"no server is available"),
    "half a body": HALF,
    "connection closed": CLOSES,
    "401": (401, {"error": {"message": "who are you?"}}),
    "400": (400, {"error": {"message": "not this prompt"}}),
    "nonsense": (200, b"<html>welcome</html>"),
    "no log-probabilities": completion(None, "80"),
}
FAST = {"429", "half a body", "401", "nonsense"}
Answer = Callable[[dict[str, Any], int], Reply]


def broken(reply: Reply, first: int, last: int) -> Answer:
    """A judge that answers `reply` from its call `first` to its call `last`."""
    return lambda request, number: reply if first <= number <= last else verdict(request, number)


def cases(*names: str) -> list[Any]:
    return [
        pytest.param(
            name,
            marks=[pytest.mark.fault(f"judge: {name}", "judge"), *slow_unless(name in FAST)],
            id=name,
        )
        for name in names
    ]


@pytest.mark.parametrize(
    "name", cases("429", "500", "503 in plain words", "half a body", "connection closed")
)
def test_what_passes_is_asked_again_by_itself(
    name: str, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.store_before("judge", tmp_path / "store")
    world.judge.reply = broken(BROKEN[name], 100, 105)
    with case.recovery():
        assert world.run(store) == {world.cell.cell_id: None}
    case.happened("six calls are made again; nothing fails")
    assert world.calls() == WHOLE + 6
    world.check_as_undisturbed(store)


@pytest.mark.faults
@pytest.mark.fault("judge: hangs", "judge")
def test_calls_that_hang_are_given_up_and_made_again(
    world: World, case: Case, tmp_path: Path
) -> None:
    store = world.store_before("judge", tmp_path / "store")
    ended = threading.Event()

    def reply(request: dict[str, Any], number: int) -> Reply:
        if 100 <= number <= 105:
            ended.wait(10 * TIMEOUT_S)
            return CLOSES
        return verdict(request, number)

    world.judge.reply = reply
    try:
        with case.recovery():
            assert world.run(store) == {world.cell.cell_id: None}
    finally:
        ended.set()
    case.happened("six calls are given up after a minute and made again")
    assert world.calls() == WHOLE + 6
    world.check_as_undisturbed(store)


@pytest.mark.fault("judge: 500 for long", "judge")
def test_a_cell_whose_judge_is_gone_for_long_is_tried_again(
    world: World, case: Case, tmp_path: Path
) -> None:
    """It is gone until the cell was tried twice, the second time in vain from the start."""
    store = world.store_before("judge", tmp_path / "store")

    def reply(request: dict[str, Any], number: int) -> Reply:
        prompts = [r["messages"][0]["content"] for r in world.judge.requests]
        checks = sum(prompt.startswith("Repeat") for prompt in prompts)
        return BROKEN["500"] if number >= 100 and checks <= 4 else verdict(request, number)

    world.judge.reply = reply
    with case.recovery():
        assert world.run(store, tries=3) == {world.cell.cell_id: None}
    assert len(store.attempts("faults", world.cell.cell_id)) == 3
    case.happened("the cell is tried again by itself; what was judged is kept")
    world.check_as_undisturbed(store)


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        pytest.param("401", "data", "refuses us", marks=pytest.mark.fault("judge: 401", "judge")),
        pytest.param(
            "500", "judge unavailable", "does not answer",
            marks=[pytest.mark.fault("judge: 500 from then on", "judge"), pytest.mark.faults],
        ),
    ],
)  # fmt: skip
def test_a_judge_that_answers_no_more_fails_the_cell_and_resume_judges_the_rest(
    name: str, kind: str, told: str, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.store_before("judge", tmp_path / "store")
    world.judge.reply = broken(BROKEN[name], 100, 10_000)
    (failure,) = world.run(store, tries=2).values()
    assert isinstance(failure, CellFailure)
    assert failure.kind == kind and told in failure.message
    assert len(store.attempts("faults", world.cell.cell_id)) == (1 if kind == "data" else 2)
    case.happened("the cell fails by name; resume pays for the rest only")
    world.judge.reply = verdict
    world.judge.requests.clear()
    with case.recovery():
        assert world.run(store) == {world.cell.cell_id: None}
    # Of the 99 answers before, some were about planted answers.
    assert WHOLE - 99 <= world.calls() <= WHOLE - 60
    world.check_as_undisturbed(store)


@pytest.mark.parametrize("name", cases("400", "nonsense", "no log-probabilities"))
def test_failed_judgements_are_counted_and_asked_again_by_resume(
    name: str, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.store_before("judge", tmp_path / "store")
    world.judge.reply = broken(BROKEN[name], 100, 109)
    assert world.run(store) == {world.cell.cell_id: None}
    first = world.calls()
    assert first == WHOLE
    case.happened("ten judgements failed, counted; resume asks those ten")
    with case.recovery():
        assert world.run(store, again=True) == {world.cell.cell_id: None}
    assert world.calls() == first + 10
    world.check_as_undisturbed(store)
