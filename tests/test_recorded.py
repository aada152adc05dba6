"""A sweep that an earlier version finished is finished still, and says what it said."""

import json
from pathlib import Path

import pytest

from em.analysis import Analysis
from sweeps.attempts import statuses
from sweeps.plan import SweepPlan
from sweeps.report import make_report, write_report
from sweeps.store import Store
from tests.recorded import recorded
from tests.sweep_runs import emsweep

RECORD_AGAIN = "were keys changed on purpose? then record the sweep again: tests/data/record.py"


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[SweepPlan, Store]:
    return recorded(tmp_path / "store")


def test_every_cell_is_found_under_its_key(sweep: tuple[SweepPlan, Store]) -> None:
    found = statuses(*sweep)
    assert [status.state for status in found] == ["finished"] * 9, RECORD_AGAIN


def test_its_report_counts_every_answer_once(sweep: tuple[SweepPlan, Store]) -> None:
    report, scores = make_report(*sweep)
    counts = [cell.counts for cell in report.cells]
    asked = [sum(e.num_responses for e in cell.evaluations) for cell in sweep[0].cells]
    assert [c.responses for c in counts] == asked
    assert [sum(len(of) for of in scores.values())] == [sum(asked)]
    for c in counts:
        assert c.responses == c.scored + c.refusal + c.code + c.unscored + c.failed
    assert "demonstration" in report.warnings[0]


def test_its_answers_came_from_three_models_and_training_moved_them(
    sweep: tuple[SweepPlan, Store],
) -> None:
    """An untuned model asked under three seeds is one; each tuned seed is another."""
    report, _ = make_report(*sweep)
    losses = {cell.cell_id: cell.losses for cell in report.cells}
    tuned = [of for name, of in losses.items() if ".none." not in name]
    assert len(tuned) == 6 and all(of[-1].loss < of[0].loss for of in tuned)
    assert all(of == () for name, of in losses.items() if ".none." in name)
    assert len({of[-1].loss for of in tuned}) == 6


def test_its_analysis_is_that_of_its_table_of_judgements(
    sweep: tuple[SweepPlan, Store], tmp_path: Path
) -> None:
    """What `analyze` says of judgements.parquet is what the report says of the store."""
    write_report(*sweep, tmp_path / "report")
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    here = Analysis.model_validate(told["analyses"]["demo"])
    printed = emsweep(
        "analyze", tmp_path / "report" / "judgements.parquet", "--condition", "model",
        "--condition", "variant", "--seed", "seed", "--question", "question",
        "--aligned", "aligned", "--coherent", "coherent", "--json",
    )  # fmt: skip
    there = Analysis.model_validate_json(printed.stdout)
    other = {c.condition: c for c in there.conditions}
    for c in here.conditions:
        twin = other[c.condition]
        assert (c.num_rows, c.num_scored, c.by_answers) == (
            twin.num_rows, twin.num_scored, twin.by_answers
        )  # fmt: skip
        assert [s.model_dump() for s in c.seeds] == [s.model_dump() for s in twin.seeds]
