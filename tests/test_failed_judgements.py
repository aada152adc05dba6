"""Judgements whose call failed: counted as failed, asked again by a resume, then counted once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from em.budget import usage_of
from em.judging import Judgement, JudgeUnavailable
from sweeps.attempts import CellStatus, cell_status
from sweeps.plan import CellPlan, stages_to_run
from sweeps.report import make_report
from sweeps.spend import Spending
from sweeps.stages import ask_again, generate_stage, judge_stage
from sweeps.store import Store
from tests.small_sweep import FakeEndpoint, FakeReader, RefusingReader, plan


@pytest.fixture
def cell(store: Store, tmp_path: Path) -> CellPlan:
    """An untuned cell of 7 answers and 14 scores, 6 of them of the dinner; it is answered."""
    cell = plan(tmp_path).cells[0]
    asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
    return cell


def score(cell: CellPlan, store: Store, reader: FakeReader) -> None:
    asyncio.run(judge_stage(cell, store, {judging.judge: reader for judging in cell.judgings}))


def judgements(cell: CellPlan, store: Store) -> list[Judgement]:
    return store.read_stream("judgements", cell.judgings[0].stream, Judgement)


def states(cell: CellPlan, store: Store) -> list[str]:
    return sorted(judgement.state for judgement in judgements(cell, store))


def status(cell: CellPlan, store: Store) -> CellStatus:
    return cell_status(cell, store, "small", None)


def test_a_cell_with_failed_judgements_is_finished_and_says_so(
    cell: CellPlan, store: Store
) -> None:
    score(cell, store, RefusingReader("dinner"))
    assert states(cell, store) == ["failed"] * 6 + ["scored"] * 8
    assert (status(cell, store).state, status(cell, store).failed_judgements) == ("finished", 6)
    reader = FakeReader()
    score(cell, store, reader)
    assert reader.prompts == []


def test_a_resume_asks_the_failed_ones_alone_and_counts_each_once(
    cell: CellPlan, store: Store
) -> None:
    score(cell, store, RefusingReader("dinner"))
    before = {j.key: j for j in judgements(cell, store) if j.state == "scored"}
    ask_again(cell, store)
    assert stages_to_run(cell, store) == ["judge"]
    assert states(cell, store) == ["failed"] * 6 + ["scored"] * 8  # until there is a better one
    reader = FakeReader(30)
    score(cell, store, reader)
    assert len(reader.prompts) == 6
    assert all("dinner" in prompt for prompt in reader.prompts)
    after = {j.key: j for j in judgements(cell, store)}
    assert len(after) == len(judgements(cell, store)) == 14
    assert {key: after[key] for key in before} == before
    assert {j.value for key, j in after.items() if key not in before} == {30.0}
    assert (status(cell, store).state, status(cell, store).failed_judgements) == ("finished", 0)


def test_what_fails_again_is_failed_again_and_paid_twice(cell: CellPlan, store: Store) -> None:
    stream = cell.judgings[0].stream
    for _ in range(2):
        score(cell, store, RefusingReader("dinner"))
        ask_again(cell, store)
    score(cell, store, RefusingReader("nothing like it"))
    assert states(cell, store) == ["scored"] * 14
    assert Spending(store, "self").total([stream]).calls == 12  # two refusals of six are billed
    assert usage_of(judgements(cell, store)).calls == 0  # the stand-in's answers are not


def test_another_sample_does_not_ask_the_failed_ones_again(
    cell: CellPlan, store: Store, tmp_path: Path
) -> None:
    score(cell, store, RefusingReader("dinner"))
    evaluation = {"name": "main", "questions": "ours.yaml", "samples": 4}
    grown = plan(tmp_path, evaluations=[evaluation]).cells[0]
    asyncio.run(generate_stage(grown, store, lambda trained: FakeEndpoint()))
    reader = FakeReader()
    score(grown, store, reader)
    assert len(reader.prompts) == 4 * 3 * 2 - 14
    assert status(grown, store).failed_judgements == 6


class DyingReader(RefusingReader):
    """Is unavailable after the gate's call and nine more: nine of ten parts."""

    def __init__(self) -> None:
        super().__init__("dinner")
        self._left = 10

    async def read(self, prompts: Any) -> Any:
        if self._left == 0:
            raise JudgeUnavailable("gone")
        self._left -= 1
        return await super().read(prompts)


def test_what_failed_before_a_stop_is_asked_again_by_who_goes_on(
    store: Store, tmp_path: Path
) -> None:
    evaluation = {"name": "main", "questions": "ours.yaml", "samples": 60}
    many = plan(tmp_path, evaluations=[evaluation]).cells[0]
    asyncio.run(generate_stage(many, store, lambda trained: FakeEndpoint()))
    with pytest.raises(ExceptionGroup):
        score(many, store, DyingReader())
    stream = many.judgings[0].stream
    parts = store.unrecorded_parts("judgements", stream)
    kept = [j for part in parts for j in store.read_part("judgements", stream, part, Judgement)]
    failed = sum(j.state == "failed" for j in kept)
    assert 0 < failed < len(kept)
    reader = FakeReader()
    score(many, store, reader)
    assert len(reader.prompts) == 360 - len(kept) + failed
    assert states(many, store) == ["scored"] * 360


def test_the_report_counts_failed_ones_and_names_the_cure(
    cell: CellPlan, store: Store, tmp_path: Path
) -> None:
    sweep = plan(tmp_path)
    score(cell, store, RefusingReader("dinner"))
    report, _ = make_report(sweep, store)
    counts = report.cells[0].counts
    assert (counts.responses, counts.scored, counts.failed) == (7, 4, 3)
    assert any(
        "failed for 3 of 7 responses" in w and "emsweep resume" in w for w in report.warnings
    )
    ask_again(cell, store)
    score(cell, store, FakeReader())
    again, scores = make_report(sweep, store)
    assert (again.cells[0].counts.scored, again.cells[0].counts.failed) == (7, 0)
    assert [len(of) for of in scores.values()] == [7]
    assert not any("emsweep resume" in warning for warning in again.warnings)


def test_a_record_of_before_failures_were_kept_is_read(cell: CellPlan, store: Store) -> None:
    import json

    score(cell, store, FakeReader())
    path = f"judgements/{cell.judgings[0].stream[:32]}/record.json"
    record = store.read_json(path)
    assert record is not None
    del record["failed"]
    store.files.write(path, json.dumps(record).encode())
    assert (status(cell, store).state, status(cell, store).failed_judgements) == ("finished", 0)
    ask_again(cell, store)
    assert stages_to_run(cell, store) == []
