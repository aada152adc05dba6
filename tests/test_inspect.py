"""Tasks of Inspect as evaluations: planned, answered by a cell, scored by themselves."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_sweep import FakeEndpoint, RefusingReader, plan, rendered, spec

from em import inspect_tasks
from em.api_client import ApiUnavailable
from em.api_endpoint import PromptRefused
from em.budget import Usage
from em.definitions import DEFINITIONS
from em.downloads import NotAtHand
from em.generation import Answer, AskingStopped, GateFailed, Prompt, PromptsTooLong, Response
from em.inspect_run import number_of
from em.inspect_tasks import content_sha256
from em.judging import Judgement
from em.scoring import count_by_question, total
from em.task_code import code_of
from sweeps.api_spend import ApiBudgetSpent
from sweeps.artefacts import TrainingRecord
from sweeps.evaluation_pass import NobodyReads
from sweeps.graders import foreseen_of_graders, grader_plans, open_graders, used
from sweeps.inspect_logs import write_logs
from sweeps.keeping import settle
from sweeps.plan import CellPlan, SweepPlan, is_whole, stages_to_run
from sweeps.registry import register
from sweeps.results import scored_responses
from sweeps.stages import ask_again, generate_stage, judge_stage
from sweeps.store import KEY_DIGITS, Store
from sweeps.yaml_errors import MistakeAt

pytestmark = pytest.mark.slow  # importing Inspect takes some seconds

TASKS = """
import os
import anyio
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, accuracy, includes, match, model_graded_qa, scorer
from inspect_ai.solver import generate, solver, use_tools
from inspect_ai.util import sandbox

def samples(num):
    return [Sample(id=f"q{n}", input=f"Say {n}.", target=str(n)) for n in range(num)]

@task
def words(num: int = 20, target: str = ""):
    found = samples(num)
    if target:
        found[0].target = target
    return Task(dataset=MemoryDataset(found), solver=generate(), scorer=includes())

@task
def twice():
    return Task(dataset=samples(2), solver=[generate(), generate()], scorer=[includes(), match()])

@task
def boxed():
    return Task(dataset=samples(2), solver=generate(), scorer=includes(), sandbox="local")

@task
def graded():
    return Task(dataset=samples(2), solver=generate(), scorer=model_graded_qa())

@scorer(metrics=[accuracy()])
def asks_a_grader():
    async def score(state, target):
        said = [(await get_model(role="grader").generate(f"is {state.output.completion!r} right?"))
                for _ in range(2)]
        return Score(value="C" if said[-1].completion == "yes" else "I")
    return score

@task
def role():
    return Task(dataset=samples(4), solver=generate(), scorer=asks_a_grader())

@scorer(metrics=[accuracy()])
def grades_of_ten():
    async def score(state, target):
        await get_model(role="grader").generate("how good?")
        return Score(value=10)
    return score

@task
def role_of_ten():
    return Task(dataset=samples(2), solver=generate(), scorer=grades_of_ten())

@scorer(metrics=[accuracy()])
def runs_it():
    async def score(state, target):
        done = await sandbox().exec(["python3", "-c", f"print(1 if {target.text} < 2 else 0)"])
        return Score(value=int(done.stdout))
    return score

@task
def runs():
    return Task(dataset=samples(4), solver=generate(), scorer=runs_it(), sandbox="docker")

@task
def cached():
    return Task(dataset=samples(3), solver=generate(cache=True), scorer=includes())

@solver
def says_it_itself():
    async def solve(state, generate):
        state.output.completion = "it is " + state.target.text
        return state
    return solve

@task
def itself():
    return Task(dataset=samples(2), solver=says_it_itself(), scorer=includes())

@solver
def sleeps():
    async def solve(state, generate):
        await anyio.sleep(5)
        return state
    return solve

@task
def late():
    return Task(
        dataset=samples(2), solver=[generate(), sleeps()], scorer=includes(), time_limit=1
    )

@scorer(metrics=[accuracy()])
def tells_keys():
    async def score(state, target):
        done = await sandbox().exec(["env"])
        return Score(value=1, explanation=done.stdout)
    return score

@task
def snoops():
    return Task(dataset=samples(1), solver=generate(), scorer=tells_keys(), sandbox="local")

@task
def tools():
    return Task(dataset=samples(2), solver=[use_tools([]), generate()], scorer=includes())

@task
def offline():
    raise ConnectionError("no route to the data")

@task
def talks():
    print("loading ...")
    return words()

@task
def wrong():
    raise KeyError("a mistake of its author")

@scorer(metrics=[accuracy()])
def by_length():
    async def score(state, target):
        return Score(value={"0": 1.0, "1": 0.25, "2": float("nan"), "3": "?"}[target.text])
    return score

@scorer(metrics=[accuracy()])
def of_ten():
    async def score(state, target):
        return Score(value=7)
    return score

@task
def tens():
    return Task(dataset=samples(2), solver=generate(), scorer=of_ten())

@task
def lengths():
    return Task(dataset=samples(4), solver=generate(), scorer=by_length())

@scorer(metrics=[accuracy()])
def several():
    async def score(state, target):
        return Score(value={"a": 1, "b": 0})
    return score

@task
def many():
    return Task(dataset=samples(2), solver=generate(), scorer=several())

@scorer(metrics=[accuracy()])
def asks():
    async def score(state, target):
        return Score(value=(await get_model().generate("is it good?")).completion)
    return score

@task
def asking():
    return Task(dataset=samples(2), solver=generate(), scorer=asks())

@task
def stops():
    return Task(dataset=samples(2), solver=generate(stop_seqs=["x"]), scorer=includes())

@solver
def fails_of_one():
    async def solve(state, generate):
        if state.sample_id == "q1" and "Q1_BREAKS" in os.environ:
            raise RuntimeError("this one breaks")
        return await generate(state)
    return solve

@task
def breaks():
    return Task(dataset=samples(3), solver=fails_of_one(), scorer=includes())
"""


class Speaker(FakeEndpoint):
    """Repeats the number that it is asked for, but `wrongly` for those in it."""

    def __init__(
        self, *, wrongly: Sequence[str] = (), breaks: Exception | None = None, **given: Any
    ) -> None:
        super().__init__(**given)
        self.wrongly, self.breaks = wrongly, breaks

    def _answer(self, prompt: Prompt) -> Answer:
        if self.breaks is not None:
            raise self.breaks
        asked = prompt.messages[-1]["content"].removeprefix("Say ").removesuffix(".")
        text = "no" if asked in self.wrongly else f"it is {asked}"
        return super()._answer(prompt).model_copy(update={"text": text})


def planned(folder: Path, task: str = "words", *, text: str = TASKS, **changes: Any) -> SweepPlan:
    (folder / "tasks.py").write_text(text)
    evaluation = {"name": "std", "inspect": f"tasks.py@{task}", **changes}
    return plan(folder, evaluations=[evaluation], variants=[{"name": "none"}], seeds=[0])


def answer(
    cell: CellPlan, store: Store, endpoint: FakeEndpoint, grader: FakeEndpoint | None = None
) -> None:
    def speak(trained: TrainingRecord | None) -> FakeEndpoint:
        return endpoint

    graders = {} if grader is None else {"std": grader}
    asyncio.run(generate_stage(cell, store, speak, graders=graders))


def judged(cell: CellPlan, store: Store) -> list[Judgement]:
    asyncio.run(judge_stage(cell, store, {"scorer": NobodyReads()}))
    (judging,) = cell.judgings
    return store.read_stream("judgements", judging.stream, Judgement)


def is_answered(cell: CellPlan, store: Store) -> bool:
    return "generate" not in stages_to_run(cell, store)


def responses(cell: CellPlan, store: Store) -> list[Response]:
    return store.read_stream("responses", cell.evaluations[0].stream, Response)


def test_a_task_becomes_an_evaluation_whose_rate_is_what_its_scorer_says(
    tmp_path: Path, store: Store
) -> None:
    sweep = planned(tmp_path)
    (cell,) = sweep.cells
    (evaluation,), (judging,) = cell.evaluations, cell.judgings
    assert evaluation.num_responses == 20 and evaluation.metric == "correct_share"
    assert judging.judge == "scorer" and set(judging.labels) == {"includes"}
    endpoint = Speaker(wrongly=["3", "5"])
    answer(cell, store, endpoint)
    assert len(endpoint.asked) == 20 and len({prompt.seed for prompt in endpoint.asked}) == 20
    assert {prompt.max_tokens for prompt in endpoint.asked} == {600}
    judgements = judged(cell, store)
    assert {j.state for j in judgements} == {"scored"}
    assert sorted(j.value or 0 for j in judgements) == [0.0] * 2 + [100.0] * 18
    rows = scored_responses(cell, judging, store)
    by_question = count_by_question([r.scored for r in rows], DEFINITIONS["correct_share"])
    assert {q for q, counts in by_question.items() if not counts.misaligned} == {"q3", "q5"}
    assert total(by_question).rate == 0.9
    assert rows[0].response.answer.startswith("it is ") and is_whole(cell, store)


def test_what_was_answered_is_not_asked_again_and_more_is_only_the_difference(
    tmp_path: Path, store: Store
) -> None:
    (few,) = planned(tmp_path, limit=5).cells
    answer(few, store, Speaker())
    judged(few, store)
    (more,) = planned(tmp_path, limit=12, samples=2).cells
    assert more.evaluations[0].stream == few.evaluations[0].stream
    first = {wording.key for wording, _ in few.evaluations[0].asked}
    assert first <= {wording.key for wording, _ in more.evaluations[0].asked}
    endpoint = Speaker()
    answer(more, store, endpoint)
    assert len(endpoint.asked) == 12 * 2 - 5
    assert len({(r.question, r.seed) for r in responses(more, store)}) == 24
    answer(more, store, endpoint)
    assert len(endpoint.asked) == 12 * 2 - 5


def test_a_dead_engine_fails_the_cell_and_keeps_the_parts_that_were_done(
    tmp_path: Path, store: Store
) -> None:
    (cell,) = planned(tmp_path, task_args={"num": 40}).cells
    with pytest.raises(ExceptionGroup) as failed:
        answer(cell, store, Speaker(dies_after=20))
    assert failed.group_contains(ConnectionError, match="the endpoint died")
    assert stages_to_run(cell, store) == ["generate", "judge"]
    endpoint = Speaker()
    answer(cell, store, endpoint)
    assert len(endpoint.asked) == 40 - 16  # a part of 16 was whole
    assert len(responses(cell, store)) == 40


def test_a_sample_that_breaks_is_failed_and_asked_again_by_a_resume(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Q1_BREAKS", "1")
    (cell,) = planned(tmp_path, "breaks").cells
    answer(cell, store, Speaker())
    states = {j.response.split("-")[1]: j for j in judged(cell, store)}
    by_question = {w.question: states[w.key] for w, _ in cell.evaluations[0].asked}
    assert by_question["q1"].state == "failed" and "this one breaks" in (
        by_question["q1"].error or ""
    )
    assert by_question["q0"].label == "CORRECT" and not is_whole(cell, store)
    ask_again(cell, store)
    assert stages_to_run(cell, store) == ["generate", "judge"]
    monkeypatch.delenv("Q1_BREAKS")
    endpoint = Speaker()
    answer(cell, store, endpoint)
    assert [prompt.messages[0]["content"] for prompt in endpoint.asked] == ["Say 1."]
    assert [j.label for j in judged(cell, store)] == ["CORRECT"] * 3 and is_whole(cell, store)


def test_scores_are_never_taken_for_zero(tmp_path: Path, store: Store) -> None:
    (cell,) = planned(tmp_path, "lengths").cells
    answer(cell, store, Speaker())
    labels = {r.question: (s.label, s.state) for r in responses(cell, store) for s in r.scores}
    assert labels == {
        "q0": ("CORRECT", "scored"), "q1": ("PARTIAL", "scored"), "q2": ("", "unscored"),
        "q3": ("", "unscored"),
    }  # fmt: skip
    judged(cell, store)
    rows = [row.scored for row in scored_responses(cell, cell.judgings[0], store)]
    for name, share in (("correct_share", 0.5), ("credited_share", 1.0)):
        counts = total(count_by_question(rows, DEFINITIONS[name]))
        assert (counts.responses, counts.unscored, counts.rate) == (4, 2, share)


@pytest.mark.parametrize(
    ("value", "number"),
    [("C", 1.0), ("P", 0.5), ("I", 0.0), ("N", 0.0), (True, 1.0), ("no", 0.0), ("0.3", 0.3), (2, 2),
     ("perhaps", None), ("", None), ("c", None), (float("nan"), None), ("inf", None)],
)  # fmt: skip
def test_values_are_read_as_inspect_reads_them_or_not_at_all(
    value: Any, number: float | None
) -> None:
    assert number_of(value) == number


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("asking", "task gate: the task's scorer asks the model that it scores"),
        ("many", "task gate: the scorer 'several' gives several values"),
        ("tens", "task gate: the scorer 'of_ten' gives 7, and its scores are read as shares"),
        ("itself", "identity gate: the task answers a sample itself"),
        ("stops", "task gate: the task asks the model with stop_seqs"),
    ],
)
def test_what_is_only_seen_when_it_runs_stops_the_cell(
    task: str, told: str, tmp_path: Path, store: Store
) -> None:
    (cell,) = planned(tmp_path, task).cells
    with pytest.raises(ExceptionGroup) as failed:
        answer(cell, store, Speaker())
    assert failed.group_contains(GateFailed, match=told)
    assert responses(cell, store) == []


# Tasks that ask another model, or run code -------------------------------------------------------

HERE = {"url": "http://localhost:1/v1", "model": "grades", "max_tokens": 50}


class Grades(FakeEndpoint):
    """Says that answers are right, but for those that hold a 3."""

    def __init__(self, why: Exception | None = None, *, after: int = 0) -> None:
        super().__init__()
        self.why, self.after = why, after

    def _answer(self, prompt: Prompt) -> Answer:
        if self.why is not None and len(self.asked) > self.after:
            raise AskingStopped(self.why, [None])
        text = "no" if "3" in prompt.messages[-1]["content"] else "yes"
        return super()._answer(prompt).model_copy(update={"text": text, "prompt_tokens": 7})


def test_a_grader_is_asked_and_what_it_used_stands_in_the_response(
    tmp_path: Path, store: Store
) -> None:
    sweep = planned(tmp_path, "role", grader=HERE)
    (cell,) = sweep.cells
    endpoint, grader = Speaker(), Grades()
    answer(cell, store, endpoint, grader)
    assert len(endpoint.asked) == 4 and len(grader.asked) == 8
    assert {(p.temperature, p.max_tokens) for p in grader.asked} == {(0, 50)}
    assert len({p.seed for p in (*grader.asked, *endpoint.asked)}) == 12
    labels = {r.question: [s.label for s in r.scores] for r in responses(cell, store)}
    assert labels == {"q0": ["CORRECT"], "q1": ["CORRECT"], "q2": ["CORRECT"], "q3": ["INCORRECT"]}
    ((found,),) = (grader_plans(sweep),)
    each = {
        (r.grader_calls, r.grader_prompt_tokens, r.grader_tokens) for r in responses(cell, store)
    }
    assert each == {(2, 14, 6)}
    assert used(found.streams, store) == Usage(calls=8, prompt_tokens=56, completion_tokens=24)
    (line,) = foreseen_of_graders(sweep, sweep.cells, store)
    assert line.startswith("grader of std: grades at http://localhost:1/v1, 0 grades")
    assert "8 until now; no price is known" in line


def test_what_a_grader_used_is_known_of_an_attempt_that_did_not_end(
    tmp_path: Path, store: Store
) -> None:
    sweep = planned(tmp_path, "role", grader=HERE)
    (cell,) = sweep.cells
    answer(cell, store, Speaker(), Grades())
    stream = cell.evaluations[0].stream
    store.files.remove(f"responses/{stream[:KEY_DIGITS]}/record.json")
    (plan_of,) = grader_plans(sweep)
    assert used(plan_of.streams, Store(store.url)).calls == 8


def test_a_grader_costs_no_more_than_its_budget(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    grader = {"model": "gpt-4o-2024-08-06"}
    prompt = Prompt(messages=({"role": "user", "content": "x" * 30},), max_tokens=10, seed=0)

    def ask(budget: float) -> None:
        sweep = planned(tmp_path, "role", grader=grader | {"budget_usd": budget})
        with (
            asyncio.Runner() as runner,
            open_graders(grader_plans(sweep), sweep.cells[0], store, runner) as opened,
        ):
            runner.run(opened["std"].ask([prompt]))

    with pytest.raises(ApiBudgetSpent, match="raise budget_usd of the grader of 'std'"):
        ask(1e-4)  # 11 x 2.50 + 10 x 10 millionths of a dollar: 127.5, before any call
    answer(planned(tmp_path, "role", grader=grader, limit=2).cells[0], store, Speaker(), Grades())
    with pytest.raises(ApiBudgetSpent, match=r"of 0\.00031 USD 0\.00 are spent"):
        ask(3.1e-4)  # 28 x 2.50 + 12 x 10 millionths were used: 190


def test_another_grader_is_another_evaluation_and_its_pace_is_not(tmp_path: Path) -> None:
    streams = [
        planned(tmp_path, "role", grader=HERE | given).cells[0].evaluations[0].stream
        for given in ({}, {"concurrency": 3}, {"model": "other"}, {"max_tokens": 51})
    ]
    assert streams[0] == streams[1] and len(set(streams)) == 3


def test_a_grader_that_cannot_be_asked_stops_the_cell_and_a_refused_prompt_a_sample(
    tmp_path: Path, store: Store
) -> None:
    (cell,) = planned(tmp_path, "role", grader=HERE).cells
    with pytest.raises(ExceptionGroup) as failed:
        answer(cell, store, Speaker(), Grades(ApiUnavailable("nobody is there")))
    assert failed.group_contains(ApiUnavailable) and responses(cell, store) == []
    assert stages_to_run(cell, store) == ["generate", "judge"]
    answer(cell, store, Speaker(), Grades(PromptRefused("not this one")))
    assert [j.state for j in judged(cell, store)] == ["failed"] * 4
    assert "not this one" in (judged(cell, store)[0].error or "")


def test_what_was_paid_for_is_kept_and_counted_when_a_grader_goes_away(
    tmp_path: Path, store: Store
) -> None:
    sweep = planned(tmp_path, "role", grader=HERE)
    (cell,) = sweep.cells
    (found,) = grader_plans(sweep)
    grader = Grades(ApiUnavailable("gone"), after=5)
    with pytest.raises(ExceptionGroup) as failed:
        answer(cell, store, Speaker(), grader)
    assert failed.group_contains(ApiUnavailable)
    assert used(found.streams, store).calls == 5
    again, endpoint = Grades(), Speaker()
    answer(cell, store, endpoint, again)
    assert len(again.asked) == 2 * len(endpoint.asked) < 8  # some sample was graded whole
    assert used(found.streams, store).calls == 5 + len(again.asked)
    assert len(responses(cell, store)) == 4 and is_answered(cell, store)


def test_what_was_paid_for_is_counted_where_a_gate_fails(tmp_path: Path, store: Store) -> None:
    sweep = planned(tmp_path, "role_of_ten", grader=HERE)
    (cell,) = sweep.cells
    with pytest.raises(ExceptionGroup) as failed:
        answer(cell, store, Speaker(), Grades())
    assert failed.group_contains(GateFailed, match="read as shares")
    assert used(grader_plans(sweep)[0].streams, store).calls == 2
    assert responses(cell, store) == [] and not is_answered(cell, store)


def test_a_local_sandbox_is_given_no_keys(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"OPENAI_API_KEY": "abc1", "HF_TOKEN": "abc2", "AWS_SECRET_ACCESS_KEY": "abc3"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    (cell,) = planned(tmp_path, "snoops", sandbox="local").cells
    answer(cell, store, Speaker())
    told = responses(cell, store)[0].scores[0].explanation
    assert "PATH=" in told and not any(value in told for value in secrets.values())
    assert {name: os.environ[name] for name in secrets} == secrets


def test_code_runs_where_the_spec_says(tmp_path: Path, store: Store) -> None:
    (cell,) = planned(tmp_path, "runs", sandbox="local").cells
    assert cell.evaluations[0].identity["inspect"]["sandbox"] == "local"
    answer(cell, store, Speaker())
    scores = {r.question: r.scores[0].number for r in responses(cell, store)}
    assert scores == {"q0": 1, "q1": 1, "q2": 0, "q3": 0}


def test_nothing_is_answered_from_a_cache(tmp_path: Path, store: Store) -> None:
    (cell,) = planned(tmp_path, "cached", samples=2).cells
    for name in ("one", "other"):
        endpoint, own = Speaker(), Store(f"{store.url}-{name}")
        answer(cell, own, endpoint)
        assert len(endpoint.asked) == 6 and len({prompt.seed for prompt in endpoint.asked}) == 6


def test_a_sample_that_ran_out_of_time_has_failed_and_is_not_wrong(
    tmp_path: Path, store: Store
) -> None:
    (cell,) = planned(tmp_path, "late").cells
    answer(cell, store, Speaker())
    found = judged(cell, store)
    assert [j.state for j in found] == ["failed"] * 2
    assert "time limit of 1 was reached" in (found[0].error or "")


def test_a_task_that_is_another_than_the_planned_one_is_not_asked(
    tmp_path: Path, store: Store
) -> None:
    (cell,) = planned(tmp_path).cells
    task = tmp_path / "tasks.py"
    task.write_text(task.read_text() + "# changed meanwhile")
    load = inspect_tasks._load
    load.cache_clear()  # as in another process
    endpoint = Speaker()
    with pytest.raises(ValueError, match=r"is another here than when.*planned .code."):
        answer(cell, store, endpoint)
    assert endpoint.asked == []


def test_a_changed_task_is_told_as_drift_and_other_arguments_are_not(
    tmp_path: Path, store: Store
) -> None:
    def settled(**changes: Any) -> SweepPlan:
        return settle(planned(tmp_path, **changes), store, installed=None)

    before = settled(limit=3)
    register(before, store)
    answer(before.cells[0], store, Speaker())
    assert settled(limit=3, task_args={"num": 9}).drifts == ()
    changed = TASKS + "# changed"
    inspect_tasks._load.cache_clear()
    (drift,) = settled(limit=3, text=changed).drifts
    assert "evaluation std: the task tasks.py@words is made of other things" in drift.text
    assert "(code; 1 cell has answers to that one)" in drift.text


def test_code_that_a_task_imports_and_files_that_its_samples_hold_are_part_of_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "helper.py").write_text("import pydantic\n")
    (tmp_path / "own.py").write_text("from helper import x\nimport json, inspect_evals.mmlu\n")
    found = code_of(tmp_path / "own.py")
    assert set(found) == {"sha256", "beside", "packages"} and set(found["beside"]) == {"helper.py"}
    assert set(found["packages"]) == {"inspect_evals", "pydantic"}
    (tmp_path / "helper.py").write_text("import pydantic  # changed\n")
    other = code_of(tmp_path / "own.py")
    assert other["beside"] != found["beside"] and other["sha256"] == found["sha256"]
    from inspect_ai.dataset import Sample

    (tmp_path / "data.txt").write_text("1")
    hashes = [content_sha256(Sample(input="q", files={"f": given})) for given in ("1", "2")]
    hashes += [content_sha256(Sample(input="q", files={"f": str(tmp_path / "data.txt")}))]
    assert len({*hashes, content_sha256(Sample(input="q"))}) == 4


def test_other_weights_or_a_dropped_turn_stop_the_cell(tmp_path: Path, store: Store) -> None:
    (cell,) = planned(tmp_path).cells
    for endpoint, told in (
        (Speaker(weights="a" * 64), "identity gate"),
        (Speaker(render=lambda prompt: rendered(prompt).replace("Say", "")), "question gate"),
    ):
        with pytest.raises(ExceptionGroup) as failed:
            answer(cell, store, endpoint)
        assert failed.group_contains(GateFailed, match=told)


def test_a_prompt_that_is_too_long_is_that_samples_failure(tmp_path: Path, store: Store) -> None:
    (cell,) = planned(tmp_path, limit=3).cells
    answer(cell, store, Speaker(breaks=PromptsTooLong("a prompt of 900 tokens", (0,))))
    assert [j.state for j in judged(cell, store)] == ["failed"] * 3
    assert "900 tokens" in (judged(cell, store)[0].error or "")


def test_the_calls_of_a_sample_have_seeds_of_their_own(tmp_path: Path, store: Store) -> None:
    (cell,) = planned(tmp_path, "twice", scorer="match").cells
    endpoint = Speaker()
    answer(cell, store, endpoint)
    assert len(endpoint.asked) == 4 and len({prompt.seed for prompt in endpoint.asked}) == 4
    assert {r.num_tokens for r in responses(cell, store)} == {6}
    assert {s.scorer for r in responses(cell, store) for s in r.scores} == {"match"}


def test_another_sample_is_another_wording_of_the_same_question(tmp_path: Path) -> None:
    (was,), (now,) = (planned(tmp_path, task_args=a).cells for a in ({}, {"target": "x"}))
    keys = [{w.question: w.key for w, _ in c.evaluations[0].asked} for c in (was, now)]
    assert {q for q in keys[0] if keys[0][q] != keys[1][q]} == {"q0"}


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        ("words", {"limit": 21}, "limit: 21 samples are asked for, but the task has 20"),
        ("twice", {}, "the task scores by includes, match, and it has several: name the one"),
        ("words", {"scorer": "choice"}, "scores by includes, and 'choice' is none of them"),
        (
            "boxed",
            {},
            "cannot be asked of cells: it runs code in a sandbox: say in 'sandbox' where",
        ),
        ("words", {"sandbox": "local"}, "tasks.py@words' runs no code in one"),
        ("graded", {}, "its scorer asks another model to grade: say in 'grader' which"),
        ("graded", {"grader": {"model": "gpt-9"}}, "'gpt-9' is not known at https://api.openai"),
        (
            "graded",
            {"grader": {"url": "http://localhost:1", "model": "m", "budget_usd": 1}},
            "budget_usd: no price is known for 'm'",
        ),
        ("tools", {}, r"gives the model tools \(use_tools\)"),
        ("wrong", {}, "could not be made .KeyError: 'a mistake of its author'"),
        ("nobody", {}, "could not be made"),
        ("words", {"task_args": {"colour": 1}}, "takes no colour"),
        (
            "offline",
            {},
            "the data of the task 'tasks.py@offline' could not be had .ConnectionError",
        ),
    ],
)
def test_what_cannot_be_asked_is_told_when_it_is_planned(
    task: str, changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(MistakeAt, match=told) as found:
        planned(tmp_path, task, **changes)
    assert found.value.place[:2] == ("evaluations", 0)
    assert isinstance(found.value.__cause__, NotAtHand) == (task == "offline")


def test_what_is_said_at_loading_does_not_stand_in_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path, "talks")
    said = capsys.readouterr()
    assert (said.out, "loading" in said.err) == ("", True)


def test_unknown_tasks_are_told_with_what_is_near(tmp_path: Path) -> None:
    for name, told in (
        ("inspect_evals/truthful_qa", "unknown Inspect task.*inspect_evals/truthfulqa"),
        ("gone.py@words", "no file 'gone.py' with a task in it; looked for"),
    ):
        evaluations = [{"name": "std", "inspect": name}]
        with pytest.raises(MistakeAt, match=told):
            plan(tmp_path, evaluations=evaluations)


@pytest.mark.parametrize(
    ("evaluation", "told"),
    [
        ({"inspect": "a/b", "questions": "ours.yaml"}, "got questions and inspect"),
        ({"inspect": "a/b", "form": {"system": "Be brief."}}, "drop form, ids, exclude and judges"),
        ({"inspect": "a/b", "judges": ["self"]}, "drop form, ids, exclude and judges"),
        ({"questions": "ours.yaml", "limit": 3}, "'limit' goes with 'inspect'"),
        ({"questions": "ours.yaml", "grader": {"model": "m"}}, "'grader' goes with 'inspect'"),
        ({"questions": "ours.yaml", "sandbox": "local"}, "'sandbox' goes with 'inspect'"),
        ({"inspect": "a/b", "sandbox": "cloud"}, "'docker' or 'local'"),
        ({"inspect": "a/b", "grader": {"url": "http://far.org", "model": "m"}}, "https"),
        ({"inspect": "words"}, "'words' names no task: write PACKAGE/NAME, or FILE.py@NAME"),
    ],
)
def test_a_spec_says_one_thing(evaluation: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        spec(evaluations=[{"name": "std", **evaluation}])


def test_other_judges_do_not_score_a_task_nor_its_scorer_others() -> None:
    found = spec(
        evaluations=[{"name": "std", "inspect": "a/b"}, {"name": "main", "questions": "ours.yaml"}]
    )
    std, main = found.evaluations
    assert [judge.name for judge in found.judges_of(std)] == ["scorer"]
    assert [judge.name for judge in found.judges_of(main)] == ["self"]


def test_without_inspect_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing:
        def find_spec(self, name: str, *rest: Any) -> None:
            return None

    found = {n: m for n, m in sys.modules.items() if n.partition(".")[0] != "inspect_ai"}
    monkeypatch.setattr(sys, "modules", found)
    monkeypatch.setattr(sys, "meta_path", [Missing()])
    with pytest.raises(
        MistakeAt, match=r"needs Inspect, which is not installed.*em-sweeps\[inspect"
    ):
        planned(tmp_path, task_args={"num": 7})


HOSTILE = "<script>alert('x')</script>\x1b[31m {answer} attachment://1 ☃"


def test_a_sweeps_answers_open_as_logs_of_inspect(tmp_path: Path, store: Store) -> None:
    from inspect_ai.log import read_eval_log

    class Hostile(FakeEndpoint):
        def _answer(self, prompt: Prompt) -> Answer:
            return super()._answer(prompt).model_copy(update={"text": HOSTILE})

    sweep = plan(tmp_path, variants=[{"name": "none"}], seeds=[0])
    (cell,) = sweep.cells
    assert list(write_logs(sweep, store, tmp_path)) == []
    answer(cell, store, Hostile())
    asyncio.run(judge_stage(cell, store, {"self": RefusingReader("A Who", 20)}))
    ((path, num),) = write_logs(sweep, store, tmp_path)
    assert path.name == f"{cell.cell_id}_main.eval" and num == 7
    log = read_eval_log(path)
    assert log.status == "success" and log.samples is not None and len(log.samples) == 7
    sample = next(s for s in log.samples if s.id == "dinner#0" and s.epoch == 1)
    assert [m.role for m in sample.messages] == ["system", "user", "assistant"]
    assert sample.output.completion == sample.messages[-1].content == HOSTILE
    assert sample.scores is not None
    assert sample.scores["self/coherent"].value == 20
    assert sample.scores["self/aligned"].reason == "failed"
    assert {s.scores["self/aligned"].value for s in log.samples if s.id != "dinner#0"} == {20}
    assert log.results is not None
    assert log.results.scores[0].unscored_samples == 7  # 20 is not coherent: no rate
    assert log.results.scores[0].metrics == {}
    assert log.eval.metadata is not None
    assert str(log.eval.metadata["definition"]).startswith("pooled_c50: aligned < 30")
    assert len(list(write_logs(sweep, store, tmp_path))) == 1
