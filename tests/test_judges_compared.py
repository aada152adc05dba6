"""Two judges of the same answers: each one's own rate, and the rates of what both count."""

import asyncio
from pathlib import Path

from em.definitions import DEFINITIONS
from em.generation import Response
from em.scoring import Scored
from sweeps.answers import Gathering, Place, Scores
from sweeps.conditions import conditions
from sweeps.judges_compared import compare_judges
from sweeps.report import make_report
from sweeps.results import ScoredResponse
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store
from tests import small_sweep
from tests.made_up import cell
from tests.small_sweep import FakeEndpoint, FakeReader

CELL = "model.insecure.s0"


def row(judge: str, key: str, aligned: float | None, coherent: float = 90) -> ScoredResponse:
    response = Response(
        key=key, question="q", wording=0, wording_key="w", index=0, seed=0, system=None, text="t",
        answer="a", finish_reason="stop", num_tokens=1, prompt_tokens=1, prompt_sha256="p",
        weights="",
    )  # fmt: skip
    values = {"coherent": coherent} | ({} if aligned is None else {"aligned": aligned})
    return ScoredResponse(
        cell_id=CELL,
        evaluation="main",
        judge=judge,
        response=response,
        scored=Scored(
            response=key,
            question="q",
            states={"aligned": "unscored" if aligned is None else "scored", "coherent": "scored"},
            values=values,
        ),
    )


def gathered(rows: list[ScoredResponse]) -> dict[Place, Scores]:
    gathering = Gathering()
    for judge in dict.fromkeys(row.judge for row in rows):
        mine = [row for row in rows if row.judge == judge]
        gathering.add(mine, DEFINITIONS["pooled_c50"])
    return gathering.scores()


def test_rates_of_what_both_count_leave_out_what_one_judge_does_not_count() -> None:
    cells = [cell(0.5, judge="x"), cell(0.25, judge="y")]
    rows = [
        row("x", "1", 10), row("y", "1", 80),  # counted by both
        row("x", "2", 10), row("y", "2", 10),  # counted by both
        row("x", "3", 10), row("y", "3", None),  # unscored by y
        row("x", "4", 90, 10), row("y", "4", 10),  # incoherent to x
    ]  # fmt: skip
    (found,) = compare_judges(conditions(cells), cells, gathered(rows))
    assert (found.first, found.second, found.num_both) == ("x", "y", 2)
    assert (found.first_of_both, found.second_of_both) == (1.0, 0.5)
    assert (found.first_rate, found.second_rate) == (0.5, 0.25)


def test_one_judge_is_compared_with_nobody() -> None:
    cells = [cell(0.5)]
    assert compare_judges(conditions(cells), cells, gathered([row("judge", "1", 10)])) == []


def test_an_unfinished_cell_has_no_part() -> None:
    cells = [cell(None, judge=judge, state="failed") for judge in ("x", "y")]
    rows = [row(judge, "1", 10) for judge in ("x", "y")]
    (found,) = compare_judges(conditions(cells), cells, gathered(rows))
    assert (found.num_both, found.first_of_both) == (0, None)


def test_the_report_compares_every_pair_of_every_condition(tmp_path: Path) -> None:
    judges = [{"name": name, "pool": "base", "prompts": "prompts.yaml"} for name in ("x", "y")]
    del judges[0]["prompts"]
    plan = small_sweep.plan(tmp_path, judges=judges)
    store = Store(str(tmp_path / "store"))
    for one in plan.cells[:2]:
        asyncio.run(generate_stage(one, store, lambda trained: FakeEndpoint()))
        asyncio.run(judge_stage(one, store, {"x": FakeReader(80), "y": FakeReader(55)}))
    report, _ = make_report(plan, store)
    none, ours = report.judges_compared
    assert (none.num_both, none.first_of_both, none.second_of_both) == (14, 0.0, 0.0)
    assert (ours.num_both, ours.first_rate) == (0, None)


def test_a_cell_that_one_judge_has_not_finished_has_no_part() -> None:
    cells = [cell(0.5, judge="x"), cell(None, judge="y", state="failed")]
    rows = [row("x", "1", 10), row("y", "1", 10)]
    (found,) = compare_judges(conditions(cells), cells, gathered(rows))
    assert (found.num_both, found.second_of_both) == (0, None)
