"""Two drivers on one store: what one does the other waits for, and takes over where it dies."""

import asyncio
from pathlib import Path

import pytest
from small_sweep import FakeEndpoint, FakeReader, plan

from sweeps.artefacts import DriverBeat
from sweeps.attempts import CellLog, statuses
from sweeps.failures import Elsewhere, attempt_cell
from sweeps.leases import HeldElsewhere, Holder, Signs, holding
from sweeps.plan import SweepPlan, stages_to_run
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store
from sweeps.waiting import Others

ME, YOU = Holder("me", "small"), Holder("you", "small")


@pytest.fixture
def sweep(tmp_path: Path, store: Store) -> SweepPlan:
    """Two untuned cells; a driver `you` on another machine lives."""
    sign_of_life(store, 1)
    return plan(tmp_path, variants=[{"name": "none"}])


def sign_of_life(store: Store, count: int) -> None:
    beat = DriverBeat(
        driver="you", host="far", place="far", pid=1, started=0.0, updated=0.0, count=count
    )
    store.write_record(store.driver_path("small", "you"), beat)


def whole(sweep: SweepPlan, store: Store, number: int, holder: Holder) -> FakeEndpoint:
    """Do all of one cell as `holder`; return who was asked."""
    cell, endpoint = sweep.cells[number], FakeEndpoint()
    asyncio.run(generate_stage(cell, store, lambda trained: endpoint, holder))
    asyncio.run(judge_stage(cell, store, {"self": FakeReader()}, holder))
    return endpoint


def test_what_another_driver_is_at_work_on_is_left_to_it(sweep: SweepPlan, store: Store) -> None:
    cell, endpoint = sweep.cells[0], FakeEndpoint()

    def work(on_stage: object) -> None:
        asyncio.run(generate_stage(cell, store, lambda trained: endpoint, ME))

    with holding(store, [cell.evaluations[0].stream], YOU):
        for _ in range(2):
            outcome = attempt_cell(store, "small", cell.cell_id, "me", work, first_stage="generate")
            assert outcome == Elsewhere(cell_id=cell.cell_id, stage="generate")
    assert endpoint.asked == []
    [waiting] = store.attempts("small", cell.cell_id)
    assert (waiting.state, waiting.attempt) == ("waiting", 1)
    assert [s.attempts for s in statuses(sweep, store)] == [0, 0]  # waiting is no attempt
    assert attempt_cell(store, "small", cell.cell_id, "me", work, first_stage="generate") is None
    assert [a.state for a in store.attempts("small", cell.cell_id)] == ["finished"]


def test_the_wait_ends_when_the_other_is_done(sweep: SweepPlan, store: Store) -> None:
    said: list[str] = []
    steps = iter([lambda: sign_of_life(store, 2), lambda: whole(sweep, store, 0, YOU)])
    others = Others(store, said.append, sleep=lambda seconds: next(steps)() and None)
    with holding(store, [sweep.cells[1].evaluations[0].stream], YOU):
        lease = holding(store, [sweep.cells[0].judgings[0].stream], YOU)
        with lease:
            free = others.wait_for(sweep.cells, ME)
        assert free.done == [sweep.cells[0]]
        assert free.still_waiting == [sweep.cells[1]]
        assert (free.todo, free.failed, free.dead) == ([], [], frozenset())
    assert len(said) == 1
    assert others.wait_for([sweep.cells[1]], ME).todo == [sweep.cells[1]]
    assert len(said) == 1  # told once


def test_a_driver_without_a_sign_of_life_is_given_up(sweep: SweepPlan, store: Store) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 40

    cell = sweep.cells[0]
    killed = holding(store, [cell.evaluations[0].stream], YOU)
    killed.__enter__()
    others = Others(store, lambda text: None, signs=Signs(store, lambda: now[0]), sleep=sleep)
    free = others.wait_for([cell], ME)
    assert (free.todo, free.dead) == ([cell], {"you"})
    endpoint = FakeEndpoint()
    with pytest.raises(HeldElsewhere):  # who has not waited does not know
        asyncio.run(generate_stage(cell, store, lambda trained: endpoint, ME))
    knows = Holder("me", "small", dead=free.dead)
    asyncio.run(generate_stage(cell, store, lambda trained: endpoint, knows))
    assert "generate" not in stages_to_run(cell, store)


def test_a_driver_that_was_only_paused_is_waited_for_again(sweep: SweepPlan, store: Store) -> None:
    now, beats = [0.0], [10]

    def sleep(seconds: float) -> None:
        now[0] += 40
        if now[0] > 200:
            beats[0] += 1
            sign_of_life(store, beats[0])
        if now[0] > 400:
            lease.__exit__(None, None, None)

    cell = sweep.cells[0]
    lease = holding(store, [cell.evaluations[0].stream], YOU)
    lease.__enter__()
    others = Others(store, lambda text: None, signs=Signs(store, lambda: now[0]), sleep=sleep)
    given_up = others.wait_for([cell], ME)
    assert given_up.dead == {"you"}
    now[0] = 200.0
    sign_of_life(store, beats[0])
    free = others.wait_for([cell], Holder("me", "small", dead=given_up.dead))
    assert now[0] > 400  # waited until it let go
    assert (free.todo, free.dead) == ([cell], frozenset())


def test_what_the_other_failed_meanwhile_stays_failed(sweep: SweepPlan, store: Store) -> None:
    cell = sweep.cells[0]
    log = CellLog(store, "small", cell.cell_id, driver="you", attempt=1)
    lease = holding(store, [cell.evaluations[0].stream], YOU)
    lease.__enter__()

    def fail(seconds: float) -> None:
        log.failed("generate", "the gate adapter", "GateFailed", "gate")
        lease.__exit__(None, None, None)

    log.write("generate", "running")
    free = Others(store, lambda text: None, sleep=fail).wait_for([cell], ME)
    assert [(c, attempt.error) for c, attempt in free.failed] == [(cell, "the gate adapter")]
    assert (free.todo, free.done) == ([], [])


def test_what_the_other_let_go_of_is_free(sweep: SweepPlan, store: Store) -> None:
    cell = sweep.cells[0]
    lease = holding(store, [cell.evaluations[0].stream], YOU)
    lease.__enter__()
    others = Others(
        store, lambda text: None, sleep=lambda seconds: lease.__exit__(None, None, None) and None
    )
    free = others.wait_for([cell], ME)
    assert (free.todo, free.failed, free.done) == ([cell], [], [])


def test_status_shows_a_cell_that_waits_as_running(sweep: SweepPlan, store: Store) -> None:
    import time

    cell = sweep.cells[0]
    beat = store.driver("small", "you")
    assert beat is not None
    store.write_record(
        store.driver_path("small", "you"), beat.model_copy(update={"updated": time.time()})
    )
    CellLog(store, "small", cell.cell_id, driver="you", attempt=1).write("generate", "waiting")
    assert [s.state for s in statuses(sweep, store)] == ["running", "missing"]
