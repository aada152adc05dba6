"""Which cells `--only` and `--stage` name."""

import asyncio

import pytest

from sweeps.attempts import CellLog
from sweeps.options import StageName
from sweeps.plan import STAGES, CellPlan, Stage, SweepPlan
from sweeps.selection import cells_named, cells_to_do
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store
from tests.small_sweep import FakeEndpoint, FakeReader, RefusingReader


def ids(cells: list[CellPlan]) -> list[str]:
    return [cell.cell_id for cell in cells]


def test_a_cell_is_named_by_its_id_or_a_start_that_no_other_has(sweep: SweepPlan) -> None:
    every = ids(list(sweep.cells))
    assert ids(cells_named(sweep, [])) == every
    for one in every:
        start = next(
            one[:n] for n in range(1, len(one) + 1)
            if sum(other.startswith(one[:n]) for other in every) == 1
        )  # fmt: skip
        assert ids(cells_named(sweep, [one])) == ids(cells_named(sweep, [start])) == [one]


def test_the_command_line_takes_every_stage() -> None:
    assert tuple(StageName) == STAGES


def test_a_pattern_names_several_in_the_plans_order(sweep: SweepPlan) -> None:
    tuned = [cell.cell_id for cell in sweep.cells if cell.cell.training]
    assert len(tuned) == 2
    assert ids(cells_named(sweep, ["*ours*"])) == tuned
    assert ids(cells_named(sweep, [*reversed(tuned), tuned[0]])) == tuned


def test_a_start_of_several_is_refused_with_some_of_them(sweep: SweepPlan) -> None:
    with pytest.raises(ValueError, match=r"4 cells begin so.*base\*"):
        cells_named(sweep, ["base"])


@pytest.mark.parametrize("name", ["x*", "nobody", ""])
def test_a_name_of_nothing_is_refused_with_what_is_near(sweep: SweepPlan, name: str) -> None:
    with pytest.raises(ValueError, match="--only"):
        cells_named(sweep, [name])


def test_a_slip_of_the_finger_is_answered_with_the_id(sweep: SweepPlan) -> None:
    tuned = next(cell.cell_id for cell in sweep.cells if cell.cell.training)
    with pytest.raises(ValueError) as error:
        cells_named(sweep, [tuned.replace("ours", "oures")])
    assert tuned in str(error.value)


def fail(sweep: SweepPlan, store: Store, number: int, stage: Stage) -> str:
    cell_id = sweep.cells[number].cell_id
    log = CellLog(store, sweep.spec.name, cell_id, driver="d", attempt=1)
    log.failed(stage, "m", "E", "unknown")
    return cell_id


def test_only_what_failed_in_a_stage_is_tried_again(sweep: SweepPlan, store: Store) -> None:
    train, judge = fail(sweep, store, 2, "train"), fail(sweep, store, 0, "judge")
    every = ids(list(sweep.cells))

    def chosen(*only: str, retry: bool = True, stage: Stage | None = None) -> set[str]:
        return set(ids(cells_to_do(sweep, store, retry_failed=retry, only=only, stage=stage)))

    assert chosen() == set(every)
    assert chosen(retry=False) == set(every) - {train, judge}
    assert chosen(stage="train") == {train}
    assert chosen(stage="judge") == {judge}
    assert chosen(stage="generate") == set()
    assert chosen(train) == {train}
    assert chosen(train, stage="judge") == set()
    assert chosen(train, retry=False) == set()


def test_a_finished_cell_is_judged_again_only_where_judgements_failed(
    sweep: SweepPlan, store: Store
) -> None:
    whole, lacking = sweep.cells[:2]
    for cell in (whole, lacking):
        endpoint = FakeEndpoint()
        asyncio.run(generate_stage(cell, store, lambda trained, e=endpoint: e))
    asyncio.run(judge_stage(whole, store, {"self": FakeReader()}))
    asyncio.run(judge_stage(lacking, store, {"self": RefusingReader("dinner")}))
    missing = ids(list(sweep.cells[2:]))
    assert ids(cells_to_do(sweep, store, retry_failed=True, stage="judge")) == [lacking.cell_id]
    assert cells_to_do(sweep, store, retry_failed=True, stage="generate") == []
    assert ids(cells_to_do(sweep, store, retry_failed=True)) == [lacking.cell_id, *missing]
    assert ids(cells_to_do(sweep, store, retry_failed=False)) == missing
