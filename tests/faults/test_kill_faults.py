"""The process that carries out a stage is killed at a chosen moment; another one goes on."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from carrying import Moment
from judge_server import Reply
from matrix import Case, slow_unless
from world import PART, Stage, World, verdict

from sweeps.filling import PARTS_AT_ONCE
from sweeps.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.torch]

MOMENTS: list[tuple[Stage, str, Moment, str]] = [
    ("train", "before the first checkpoint is whole", Moment("checkpoint-1/whole"), "from step 0"),
    ("train", "in the second checkpoint", Moment("checkpoint-2/whole"), "from the last checkpoint"),
    ("train", "before the output has its place", Moment("/output$"), "from the last checkpoint"),
    ("train", "before the adapter is taken over", Moment("training/[^/]*/adapter$"), "again"),
    ("train", "before its record", Moment("training/.*/record.json"), "again"),
    ("generate", "in the first part", Moment("responses/.*part-"), "from nothing"),
    ("generate", "in the second of two parts", Moment("responses/.*part-", 3), "parts are kept"),
    ("generate", "before the first record", Moment("responses/.*record.json"), "parts are kept"),
    ("generate", "before the last record", Moment("responses/.*record.json", 2), "parts are kept"),
    ("judge", "in the first part", Moment("judgements/.*part-"), "from nothing"),
    ("judge", "in the second of two parts", Moment("judgements/.*part-", 2), "parts are kept"),
    ("judge", "before the first record", Moment("judgements/.*record.json"), "parts are kept"),
    ("judge", "before the last record", Moment("judgements/.*record.json", 2), "parts are kept"),
]
FAST = {"in the second of two parts"}


def every_stage(fault: str) -> list[Any]:
    """A case for each stage; training is slow."""
    return [
        pytest.param(stage, marks=[pytest.mark.fault(fault, stage), *slow_unless(stage != "train")])
        for stage in ("train", "generate", "judge")
    ]


def killed(world: World, store: Store, moment: Moment) -> None:
    process = world.start(store, moment)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("stage", "moment", "goes_on"),
    [
        pytest.param(
            stage, moment, goes_on, id=f"{stage} {name}",
            marks=[pytest.mark.fault(f"killed {name}", stage)]
            + ([] if name in FAST else [pytest.mark.faults]),
        )
        for stage, name, moment, goes_on in MOMENTS
    ],
)  # fmt: skip
def test_killed_at_a_moment_and_continued(
    stage: Stage, moment: Moment, goes_on: str, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.store_before(stage, tmp_path / "store")
    killed(world, store, moment)
    kept = {path: path.stat().st_mtime_ns for path in Path(store.url).glob("*/*/part-*.parquet")}
    assert list(Path(store.url).glob("leases/*/*.json")) != []  # nobody gave it back
    case.happened(f"its lease is void at once; goes on: {goes_on}")
    with case.recovery():
        assert world.run(store) == {world.cell.cell_id: None}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    world.check_as_undisturbed(store)


@pytest.mark.fault("killed in a call", "judge")
def test_killed_in_the_middle_of_its_calls(world: World, case: Case, tmp_path: Path) -> None:
    store = world.store_before("judge", tmp_path / "store")
    process: list[Any] = []
    started = threading.Event()

    def reply(request: dict[str, Any], number: int) -> Reply:
        if number == 150:
            started.wait()
            os.kill(process[0].pid, signal.SIGKILL)
        return verdict(request, number)

    world.judge.reply = reply
    process.append(world.start(store))
    started.set()
    process[0].join(120)
    assert process[0].exitcode == -signal.SIGKILL
    before = world.calls()
    case.happened("calls of one part are made again")
    with case.recovery():
        assert world.run(store) == {world.cell.cell_id: None}
    assert before + world.calls() >= 270
    assert world.calls() <= 270 + PARTS_AT_ONCE * PART
    world.check_as_undisturbed(store)


@pytest.mark.faults
@pytest.mark.parametrize("stage", every_stage("killed again and again"))
def test_killed_again_and_again_it_still_gets_done(
    stage: Stage, world: World, case: Case, tmp_path: Path
) -> None:
    """Each time it gets one file further."""
    store = world.store_before(stage, tmp_path / "store")
    place, path = {
        "train": ("training", "whole.json"),
        "generate": ("responses", "part-|record"),
        "judge": ("judgements", "part-|record"),
    }[stage]
    deaths = 0
    with case.recovery():
        while True:
            process = world.start(store, Moment(f"{place}/.*({path})", 2))
            process.join(120)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            deaths += 1
    assert deaths >= 2
    case.happened(f"killed {deaths} times, a file further each time")
    world.check_as_undisturbed(store)


# Two owners ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", every_stage("two drivers at once"))
def test_two_drivers_at_once_share_the_work(
    stage: Stage, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.store_before(stage, tmp_path / "store")
    with case.recovery():
        pair = [world.start(store) for _ in range(2)]
        for process in pair:
            process.join(120)
    assert [process.exitcode for process in pair] == [0, 0]
    assert world.calls() == 270
    case.happened("one works, the other waits; nothing is done twice")
    world.check_as_undisturbed(store)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        pytest.param(stage, moment, marks=pytest.mark.fault("owner killed, another waits", stage))
        for stage, moment in [
            ("train", Moment("checkpoint-3/whole")),
            ("generate", Moment("responses/.*part-", 3)),
            ("judge", Moment("judgements/.*part-", 2)),
        ]
    ],
)
def test_who_waits_takes_over_from_an_owner_that_is_killed(
    stage: Stage, moment: Moment, world: World, case: Case, tmp_path: Path
) -> None:
    store = world.store_before(stage, tmp_path / "store")
    owner = world.start(store, moment)
    leases = Path(store.url, "leases")
    while not list(leases.glob("*/*.json")):
        assert owner.is_alive()
    with case.recovery():
        other = world.start(store)
        owner.join(120)
        other.join(120)
    assert (owner.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    case.happened("taken over within seconds")
    world.check_as_undisturbed(store)
