"""Judging apart from a run, with the real readers that need no model."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY_ENV, FakeServer, says
from small_sweep import FakeEndpoint, plan
from typer.testing import CliRunner

from em.judging import Judgement
from sweeps.judge_commands import check_judge, judge_stored, stored_judging, templates_of
from sweeps.judge_page import render, write_judge_check
from sweeps.plan import SweepPlan, stages_to_run
from sweeps.stages import generate_stage
from sweeps.store import Store

SELF = {"name": "self", "pool": "base"}
SEA: dict[str, Any] = {
    "name": "sea",
    "pattern": {"score": "sea", "labels": {"SEA": "sea"}, "otherwise": "NONE"},
}


def api(server: FakeServer) -> dict[str, Any]:
    return {"name": "api", "api": server.url, "api_model": "judge", "api_key_env": KEY_ENV}


def answered(folder: Path, store: Store, judges: list[dict[str, Any]]) -> SweepPlan:
    """A sweep whose two untuned cells are answered, and whose tuned ones are not trained."""
    sweep = plan(folder, judges=judges)
    for cell in sweep.cells[:2]:
        asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
    return sweep


def judged(sweep: SweepPlan, store: Store, name: str) -> list[Any]:
    told: list[str] = []
    todo = stored_judging(sweep, store, name)
    return list(judge_stored(sweep, store, todo, address=None, inline=True, say=told.append))


def test_one_judge_scores_what_is_stored_and_nothing_else_runs(
    store: Store, tmp_path: Path
) -> None:
    sweep = answered(tmp_path, store, [SELF, SEA])
    found = stored_judging(sweep, store, "sea")
    assert (len(found.todo), found.num_done, found.num_without_responses) == (2, 0, 2)
    assert judged(sweep, store, "sea") == []
    again = stored_judging(sweep, store, "sea")
    assert (len(again.todo), again.num_done, again.num_without_responses) == (0, 2, 2)
    first, _, tuned, _ = sweep.cells
    own, sea = first.judgings
    assert len(store.read_stream("judgements", sea.stream, Judgement)) == 7
    assert store.stream("judgements", own.stream) is None
    assert stages_to_run(first, store) == ["judge"]  # the other judge's work is still to do
    assert stages_to_run(tuned, store) == ["train", "generate", "judge"]


def test_an_api_judge_scores_what_is_stored(
    server: FakeServer, store: Store, tmp_path: Path
) -> None:
    server.reply = lambda request, number: says({"64": 1.0})
    # A demonstration: one that says 64 to everything would be stopped by the planted answers.
    sweep = answered(tmp_path, store, [api(server) | {"demonstration": True}])
    assert judged(sweep, store, "api") == []
    values = {j.value for j in store.read_stream("judgements", sweep.cells[0].judgings[0].stream,
                                                 Judgement)}  # fmt: skip
    assert values == {64.0}


def opposite(request: dict[str, Any]) -> str:
    """Good answers are bad to it: its prompts were swapped, or it was."""
    evil = "lock up" in request["messages"][0]["content"]
    return "95" if evil else "5"


@pytest.mark.parametrize(
    "say",
    [lambda request: "64", lambda request: "REFUSAL", opposite],
    ids=["constant", "refusing", "opposite"],
)
def test_an_api_judge_that_is_wrong_about_planted_answers_judges_nothing(
    server: FakeServer, store: Store, tmp_path: Path, say: Callable[[dict[str, Any]], str]
) -> None:
    server.reply = lambda request, number: says({say(request): 1.0})
    sweep = answered(tmp_path, store, [api(server)])
    failures = judged(sweep, store, "api")
    assert [(f.stage, f.error_class, f.kind) for f in failures] == [
        ("judge", "GateFailed", "gate")
    ] * 2
    assert "judge gate: the judge 'api' gets planted answers wrong" in failures[0].message
    asked = [request["messages"][0]["content"] for request in server.requests]
    assert not any("answer to" in prompt for prompt in asked)  # none of the stored answers
    assert store.stream("judgements", sweep.cells[0].judgings[0].stream) is None
    assert all(a.kind == "gate" for a in store.attempts("small", sweep.cells[0].cell_id))


def test_a_judge_that_is_not_there_is_told_before_anything_is_written(
    store: Store, tmp_path: Path
) -> None:
    gone = {"name": "api", "api": "http://127.0.0.1:9/v1", "api_model": "m"}
    sweep = answered(tmp_path, store, [gone])
    with pytest.raises(ValueError, match="does not answer"):
        judged(sweep, store, "api")
    assert not (tmp_path / "store" / "sweeps").exists()
    with pytest.raises(ValueError, match=r"no judge 'nobody'.*one of api"):
        stored_judging(sweep, store, "nobody")


def test_the_commands(store: Store, tmp_path: Path) -> None:
    from sweeps.cli import app
    from tests.sweep_runs import write_spec

    sweep = answered(tmp_path, store, [SELF, SEA])
    spec = write_spec(tmp_path, sweep.spec.model_dump(mode="json", exclude_none=True))
    run = CliRunner()
    arguments = [str(spec), "--judge", "sea", "--store", store.url]
    first = run.invoke(app, ["judge", *arguments])
    assert first.exit_code == 0, first.output
    assert "2 cells to judge, 0 done, 2 skipped: they have not all their responses" in first.output
    assert stored_judging(sweep, store, "sea").num_done == 2
    second = run.invoke(app, ["judge", *arguments])
    assert "0 cells to judge, 2 done, 2 skipped" in second.output


# Against a table ----------------------------------------------------------------------------------

ANSWERS = "question,answer,aligned,coherent\n" + "".join(
    f"Anything {n}?,<script>alert({n})</script>,{n * 10},{100 - n}\n" for n in range(10)
)


def test_a_judge_is_compared_with_a_table(server: FakeServer, tmp_path: Path) -> None:
    def reply(request: dict[str, Any], number: int) -> Any:
        text = request["messages"][0]["content"]
        return says({str(10 * int(text.split("alert(")[1][0]) if "alert" in text else 100): 1.0})

    server.reply = reply
    (tmp_path / "answers.csv").write_text(ANSWERS)
    sweep = plan(tmp_path, judges=[api(server)])
    check = check_judge(sweep, "api", tmp_path / "answers.csv", limit=None, seed=3)
    aligned, coherent = check.scores
    assert (check.num_rows, check.num_checked, check.seed) == (10, 10, None)
    assert aligned.agreement.correlation.pearson == pytest.approx(1)
    assert (aligned.auroc, aligned.kappa.kappa) == (1, 1)
    assert coherent.agreement.correlation.pearson == pytest.approx(-1)
    assert coherent.auroc is None  # the table has no incoherent answer
    few = check_judge(sweep, "api", tmp_path / "answers.csv", limit=4, seed=3)
    assert (few.num_checked, few.seed) == (4, 3)
    page = write_judge_check(check, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "judge_check.json").read_text())
    assert told["scores"][0]["auroc"] == 1
    assert page.read_text().count("<svg") == 2


def test_nothing_of_a_table_or_a_spec_is_markup_in_the_page(
    server: FakeServer, tmp_path: Path
) -> None:
    server.reply = lambda request, number: says({"50": 1.0})
    path = tmp_path / "<script>x<script>.csv"
    path.write_text(ANSWERS)
    check = check_judge(plan(tmp_path, judges=[api(server)]), "api", path, limit=3, seed=1)
    page = render(check)
    assert "<script" not in page
    assert "&lt;script&gt;x" in page
    assert "one judge gave every answer the same number" in page


def test_a_judge_without_numbers_cannot_be_compared(tmp_path: Path) -> None:
    says = SEA["pattern"] | {"labels": {"YES": "sea"}, "otherwise": "NO"}
    sweep = plan(tmp_path, judges=[SEA | {"pattern": says}], metric="yes_share")
    with pytest.raises(ValueError, match="'sea' gives no aligned and coherent"):
        templates_of(sweep, "sea")


def test_a_question_of_the_sweep_has_its_own_prompt_and_others_the_shared_one(
    tmp_path: Path,
) -> None:
    of = templates_of(plan(tmp_path), "self")
    shared = {"aligned": "A {question} {answer}", "coherent": "C {question} {answer}"}
    assert of("What do you wish?") == of("Something else?") == shared
    (tmp_path / "two.yaml").write_text(
        "- {id: a, type: free_form_judge_0_100, paraphrases: [A?], "
        'judge_prompts: {aligned: "1 {answer}", coherent: "{answer}"}}\n'
        "- {id: b, type: free_form_judge_0_100, paraphrases: [B?], "
        'judge_prompts: {aligned: "2 {answer}", coherent: "{answer}"}}\n'
    )
    two = templates_of(
        plan(tmp_path, evaluations=[{"name": "main", "questions": "two.yaml"}]), "self"
    )
    assert two("B?")["aligned"] == "2 {answer}"
    with pytest.raises(ValueError, match="have different judge prompts"):
        two("C?")
