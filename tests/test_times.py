"""Where the time of a sweep went, and how long the rest may take."""

from pathlib import Path

import pytest
from small_sweep import plan

from sweeps.artefacts import DriverBeat, Provenance
from sweeps.estimate import REFERENCE, estimate
from sweeps.plan import CellPlan
from sweeps.store import Store
from sweeps.times import overhead, union_length
from sweeps.todo import read_todo
from sweeps.work import work_done


def made(started: float, seconds: float) -> Provenance:
    return Provenance(
        commit=None, versions={}, host="h", started=started, seconds=seconds, device="d"
    )


def answered(cell: CellPlan, store: Store, *, started: float, seconds: float) -> None:
    for evaluation in cell.evaluations:
        store.finish_stream(
            "responses",
            evaluation.stream,
            evaluation.identity,
            parts=[],
            covers={key: range(samples) for key, samples in evaluation.wanted.items()},
            provenance=made(started, seconds),
        )


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(1, 3)], 2), ([(1, 3), (2, 5)], 4), ([(1, 9), (2, 3)], 8), ([(4, 5), (1, 2)], 2)],
)
def test_time_that_overlaps_counts_once(spans: list[tuple[float, float]], length: float) -> None:
    assert union_length(spans) == length


def test_overhead_is_what_neither_stages_nor_starts_cover(store: Store, tmp_path: Path) -> None:
    sweep = plan(tmp_path)
    first, second = sweep.cells[:2]
    answered(first, store, started=120, seconds=40)
    answered(second, store, started=130, seconds=50)  # beside it: together 120 to 180
    beat = DriverBeat(
        driver="d", host="h", pid=1, started=100, updated=200, finished=True,
        starts={"Ray": (100, 110), "pool": (115, 125)},
    )  # fmt: skip
    store.write_record("sweeps/small/drivers/d.json", beat)
    found = overhead(sweep, store)
    assert (found.wall, found.stage_work, found.starts) == (100, 60, 15)
    assert found.per_cell == (100 - 60 - 15) / 2


def test_streams_that_two_evaluations_share_are_counted_once(store: Store, tmp_path: Path) -> None:
    asked = [{"name": name, "questions": "ours.yaml"} for name in "ab"]
    cell = plan(tmp_path, evaluations=asked).cells[0]
    answered(cell, store, started=0, seconds=5)
    assert len(work_done(cell, store)["generate"]) == 2  # two records of one stream
    assert len({e.stream for e in cell.evaluations}) == 1


def test_rates_are_those_of_this_store_where_it_has_some(store: Store, tmp_path: Path) -> None:
    sweep = plan(tmp_path)
    fresh = estimate(read_todo(sweep.cells, store), sweep.cells, store, train_slots=1)
    tokens = 7 * sweep.cells[0].evaluations[0].sampling.max_tokens
    assert fresh.by_stage["generate"] == pytest.approx(4 * tokens * REFERENCE["generate"])
    answered(sweep.cells[0], store, started=0, seconds=70)
    known = estimate(read_todo(sweep.cells[1:2], store), sweep.cells, store, train_slots=1)
    assert known.by_stage["generate"] == pytest.approx(70)
    assert "generate" in known.basis


def test_a_sweep_that_grew_takes_the_time_of_the_difference(store: Store, tmp_path: Path) -> None:
    small = plan(tmp_path, evaluations=[{"questions": "ours.yaml", "samples": 3}])
    answered(small.cells[0], store, started=0, seconds=1)
    grown = plan(tmp_path, evaluations=[{"questions": "ours.yaml", "samples": 12}])
    cell, other = grown.cells[:2]
    part = estimate(read_todo([cell], store), grown.cells, store, train_slots=1).by_stage[
        "generate"
    ]
    whole = estimate(read_todo([other], store), grown.cells, store, train_slots=1).by_stage[
        "generate"
    ]
    assert part == pytest.approx(whole * 9 / 12)
