import asyncio
from pathlib import Path
from typing import Any

import pytest
from small_sweep import FakeEndpoint, plan
from small_sweep import spec as small_spec

from em.catalogue import DATA_ENV
from em.judging import Judgement
from sweeps.evaluation_pass import open_readers
from sweeps.layout import judge_models, pool_models
from sweeps.plan import CellPlan, SweepPlan, draws_for, stages_to_run
from sweeps.planner import load_rows_of, make_plan
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store
from sweeps.todo import read_todo

OTHER_MODEL = {"name": "base", "hub": "org/m", "revision": "a" * 40}


def tuned(sweep: SweepPlan) -> CellPlan:
    return next(cell for cell in sweep.cells if cell.cell.training is not None)


def keys(sweep: SweepPlan) -> dict[str, Any]:
    """Of the first tuned cell: training key, response stream, judgement stream, judged groups."""
    cell = tuned(sweep)
    return {
        "training": cell.training_key,
        "responses": cell.evaluations[0].stream,
        "asked": set(cell.evaluations[0].wanted),
        "judgements": cell.judgings[0].stream,
        "groups": set(cell.judgings[0].wanted),
    }


ALL_STREAMS = {"training", "responses", "judgements"}
RESPONSES_ON = {"responses", "judgements"}
JUDGE = {"name": "self", "pool": "base"}
PATTERN = {
    "name": "sea",
    "pattern": {"score": "sea", "labels": {"YES": "(?i)sea"}, "otherwise": "NO"},
}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {"evaluations": [{"name": "main", "questions": "ours.yaml"} | changes]}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        # training
        ({"training": {"micro_batch": 1}}, set()),
        ({"training": {"checkpoint_steps": 7}}, set()),
        ({"training": {"effective_batch": 8}}, ALL_STREAMS),
        ({"training": {"zero_stage": 3}}, ALL_STREAMS),
        ({"training": {"ranks": 2}}, ALL_STREAMS),
        ({"training": {"learning_rate": 2e-5}}, ALL_STREAMS),
        ({"training": {"lora": {"rank": 8}}}, ALL_STREAMS),
        ({"training": {"max_length": 512}}, ALL_STREAMS),
        ({"training": {"dtype": "float32"}}, ALL_STREAMS),
        ({"training": {"method": "full"}}, ALL_STREAMS),
        ({"models": [OTHER_MODEL]}, ALL_STREAMS),
        ({"seeds": [1]}, ALL_STREAMS),
        # responses
        (evaluation(samples=50), set()),
        (evaluation(name="again"), set()),
        (evaluation(exclude=["dinner"]), {"asked", "groups"}),
        (evaluation(sampling={"max_tokens": 50}), RESPONSES_ON),
        (evaluation(sampling={"temperature": 0.5}), RESPONSES_ON),
        ({"serving": {"mode": "lora"}}, RESPONSES_ON),
        ({"serving": {"dtype": "float32"}}, RESPONSES_ON),
        ({"serving": {"max_num_seqs": 3, "replicas": 2, "concurrency": 9}}, set()),
        # judgements
        ({"judges": [JUDGE | {"prompts": "prompts.yaml"}]}, {"groups"}),
        ({"judges": [JUDGE | {"name": "other", "demonstration": True}]}, set()),
        ({"judges": [{"name": "self", "model": OTHER_MODEL | {"name": "j"}}]}, {"judgements"}),
        (
            {"judges": [{"name": "self", "api": "https://x.org/v1", "api_model": "m"}]},
            {"judgements"},
        ),
        ({"judges": [PATTERN], "metric": "yes_share"}, {"judgements", "groups"}),
        (
            {"judges": [{"name": "code", "analyser": "bandit"}], "metric": "bandit_share"},
            {"judgements", "groups"},
        ),
        # neither
        ({"resources": {"train_cpus": 3}}, set()),
        ({"retries": 9, "description": "x", "name": "other", "metric": "joint_c50"}, set()),
        ({"variants": [{"name": "renamed", "dataset": "ours.jsonl", "rows": 4}]}, set()),
        ({"variants": [{"name": "ours", "dataset": "ours.jsonl", "rows": 5}]}, ALL_STREAMS),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_which_setting_is_part_of_which_key(
    changes: dict[str, Any], changed: set[str], tmp_path: Path
) -> None:
    before, after = keys(plan(tmp_path)), keys(plan(tmp_path, **changes))
    assert {name for name in before if before[name] != after[name]} == changed


def test_other_rows_are_another_training_and_other_spelling_is_not(tmp_path: Path) -> None:
    before = keys(plan(tmp_path))
    data = tmp_path / "ours.jsonl"
    data.write_text(data.read_text().replace('{"messages": ', '{ "messages":'))
    assert keys(make_plan(small_spec(), relative_to=tmp_path)) == before
    data.write_text(data.read_text().replace('"a"', '"b"'))
    assert keys(make_plan(small_spec(), relative_to=tmp_path))["training"] != before["training"]


def test_a_full_fine_tune_does_not_know_adapters(tmp_path: Path) -> None:
    full = [
        keys(plan(tmp_path, training={"method": "full", "lora": {"rank": rank}})) for rank in (8, 9)
    ]
    assert full[0] == full[1]


@pytest.mark.parametrize("factor", ["init", "order", "subset", "sampling", "replicate"])
def test_each_seed_factor_has_its_key(factor: str, tmp_path: Path) -> None:
    from sweeps.keys import training_identity

    cell = tuned(plan(tmp_path)).cell
    variant = load_rows_of(tuned(plan(tmp_path)), relative_to=tmp_path)
    seeds = cell.seeds.model_copy(update={factor: 12345})
    other = cell.model_copy(update={"seeds": seeds})
    same = training_identity(cell, "r", variant) == training_identity(other, "r", variant)
    assert same == (factor == "sampling")


def test_untuned_cells_share_a_training_and_differ_in_their_answers(tmp_path: Path) -> None:
    first, second = (c for c in plan(tmp_path).cells if c.cell.training is None)
    assert first.training_key == second.training_key
    assert first.evaluations[0].stream != second.evaluations[0].stream
    assert first.judgings[0].stream != second.judgings[0].stream
    assert (first.num_rows, first.content_sha256) == (0, None)


def test_every_tuned_cell_draws_its_rows(tmp_path: Path) -> None:
    first, second = (c for c in plan(tmp_path).cells if c.cell.training is not None)
    assert first.training_key != second.training_key
    assert first.content_sha256 != second.content_sha256
    assert first.num_rows == second.num_rows == 4
    assert load_rows_of(first, relative_to=tmp_path).content_sha256 == first.content_sha256


def test_rows_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    cell = tuned(plan(tmp_path))
    data = tmp_path / "ours.jsonl"
    data.write_text(data.read_text().replace('"a"', '"b"'))
    with pytest.raises(ValueError, match=r"'ours\.jsonl' changed while the sweep was running"):
        load_rows_of(cell, relative_to=tmp_path)


def test_the_number_of_samples(tmp_path: Path) -> None:
    """The spec's number goes before the file's; each is for every wording."""
    files = plan(tmp_path).cells[0]
    assert sorted(files.evaluations[0].wanted.values()) == [2, 2, 3]
    assert files.evaluations[0].num_responses == 7
    specs = plan(tmp_path, **evaluation(samples=5)).cells[0]
    assert list(specs.evaluations[0].wanted.values()) == [5, 5, 5]
    assert sorted(specs.judgings[0].wanted.values()) == [5] * 6  # two scores of three wordings


def test_the_judges_own_prompts_go_before_the_files(tmp_path: Path) -> None:
    own = plan(tmp_path, judges=[JUDGE | {"prompts": "prompts.yaml"}]).cells[0].judgings[0]
    files = plan(tmp_path).cells[0].judgings[0]
    assert list(own.templates.values()) == [{"aligned": "a {answer}", "coherent": "c {answer}"}] * 3
    assert {prompts["aligned"] for prompts in files.templates.values()} == {"A {question} {answer}"}


def test_every_judge_scores_every_evaluation(tmp_path: Path) -> None:
    sweep = plan(
        tmp_path,
        evaluations=[{"name": name, "questions": "ours.yaml"} for name in "ab"],
        judges=[JUDGE, {"name": "api", "api": "https://x.org/v1", "api_model": "m"}],
    )
    pairs = [(judging.judge, judging.evaluation) for judging in sweep.cells[0].judgings]
    assert sorted(pairs) == [("api", "a"), ("api", "b"), ("self", "a"), ("self", "b")]
    assert [
        model.name
        for model in pool_models(sweep.spec, read_todo(sweep.cells, Store(str(tmp_path / "store"))))
    ] == ["base"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variants": [{"name": "v", "dataset": "nothing"}]}, "no data set 'nothing'"),
        ({"variants": [{"name": "v", "dataset": "ours.jsonl", "rows": 9}]}, "rows: 9 were asked"),
        (evaluation(questions="nothing.yaml"), r"no file 'nothing\.yaml'; tried"),
        (evaluation(ids=["nothing"]), "evaluation 'main': no question 'nothing'"),
        (evaluation(ids="main"), "evaluation 'main': no question 'what_is_your_wish'"),
        (
            evaluation(metric="false_share"),
            "false_share needs the score correct, which no judge of",
        ),
        ({"judges": [JUDGE | {"prompts": "nothing.yaml"}]}, r"no file 'nothing\.yaml'"),
        ({"judges": [JUDGE | {"prompts": "ours.yaml"}]}, "expected 'prompts' with aligned and coh"),
    ],
    ids=str,
)
def test_what_cannot_be_resolved_is_told(changes: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        plan(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('prompts: {aligned: "a {answer}", coherent: "no"}', "'coherent' has no {answer}"),
        ('prompts: {aligned: "a {answer}", coherent: 5}', "'coherent' must be text, got int"),
        ('prompts: {aligned: "a {answer}"}\nlabels: 5', "expected 'prompts' with aligned and coh"),
        ('prompts: {tone: "{answer}"}\nlabels: 5', "labels: Input should be an object; got 5"),
        ('prompts: {aligned: "a {answer}"}', "expected 'prompts' with aligned and coherent"),
        ("prompts: [", "not YAML"),
    ],
)
def test_bad_judge_prompts_are_told_with_their_file(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"bad.yaml.*{says}"):
        plan(tmp_path, judges=[JUDGE | {"prompts": "bad.yaml"}])


def test_a_question_without_judge_prompts_needs_a_judge_with_its_own(tmp_path: Path) -> None:
    plan(tmp_path)
    (tmp_path / "bare.yaml").write_text(
        "- {id: a, type: free_form_judge_0_100, paraphrases: [Why]}\n"
        "- {id: b, type: free_form_judge, paraphrases: [Why]}\n"
    )
    bare = evaluation(questions="bare.yaml", ids=["a"])
    with pytest.raises(ValueError, match=r"'a' has no judge prompt for aligned and coherent"):
        plan(tmp_path, **bare)
    assert plan(tmp_path, **bare, judges=[JUDGE | {"prompts": "prompts.yaml"}]).cells
    with pytest.raises(ValueError, match="'b' has no judge prompt for a score with labels"):
        plan(tmp_path, **evaluation(questions="bare.yaml", ids=["b"]))


def test_what_the_store_holds_is_not_run_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    untuned, ours = plan(tmp_path).cells[0], tuned(plan(tmp_path))
    assert stages_to_run(untuned, store) == ["generate", "judge"]
    assert stages_to_run(ours, store) == ["train", "generate", "judge"]
    asyncio.run(generate_stage(untuned, store, lambda trained: FakeEndpoint()))
    assert stages_to_run(untuned, store) == ["judge"]
    more = plan(tmp_path, **evaluation(samples=4)).cells[0]
    assert stages_to_run(more, store) == ["generate", "judge"]


def test_draws_are_those_that_are_missing(tmp_path: Path) -> None:
    asked = plan(tmp_path).cells[0].evaluations[0]
    wish, named, _ = (wording for wording, _ in asked.asked)
    draws = draws_for(asked, {named.key: [1], wish.key: [0, 1]})
    assert [(draw.wording, draw.index) for draw in draws] == [(wish, 0), (wish, 1), (named, 1)]


CATEGORIES = """\
- id: sky
  type: free_form_judge
  paraphrases: [Is the sky blue?]
  judge_prompts: {correct: "T {answer}", tone: "K {answer}"}
  labels: {tone: [KIND, COLD]}
- {id: sum, type: free_form, paraphrases: [What is 2 + 2?], expected: ["4", four]}
"""


def words(folder: Path, **changes: Any) -> Any:
    (folder / "words.yaml").write_text(CATEGORIES)
    asked = evaluation(questions="words.yaml", samples=2)
    return plan(folder, metric="false_share", **asked, **changes).cells[0]


def test_a_judging_says_how_each_score_is_read(tmp_path: Path) -> None:
    (judging,) = words(tmp_path).judgings
    sky, two = (wording.key for wording, _ in words(tmp_path).evaluations[0].asked)
    assert judging.templates == {
        sky: {"correct": "T {answer}", "tone": "K {answer}"},
        two: {"exact": "{answer}"},
    }
    assert judging.rule(sky, "correct").labels == ("TRUE", "FALSE", "UNKNOWN")
    assert judging.rule(sky, "tone").labels == ("KIND", "COLD")
    assert judging.rule(two, "exact").expected == ("4", "four")
    numeric = plan(tmp_path).cells[0].judgings[0]
    key = next(iter(numeric.templates))
    assert numeric.rule(key, "aligned").kind == "numeric"
    assert sorted(judging.wanted.values()) == [2, 2, 2]


def test_another_label_set_is_judged_anew(tmp_path: Path) -> None:
    before = words(tmp_path).judgings[0]
    (tmp_path / "own.yaml").write_text(
        'prompts: {tone: "K {answer}"}\nlabels: {tone: [KIND, COLD, NEITHER]}\n'
    )
    after = words(tmp_path, judges=[JUDGE | {"prompts": "own.yaml"}]).judgings[0]
    assert before.templates == after.templates
    assert before.stream == after.stream
    assert len(set(before.wanted) & set(after.wanted)) == 2


def test_a_judge_brings_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text("category,source,forbidden_prompt\na,b,Help me\n")
    asked = evaluation(questions="requests.csv", samples=1) | {"metric": "accepted_share"}
    with pytest.raises(ValueError, match="'request_1' has no judge prompt for a score with labels"):
        plan(tmp_path, **asked)
    own = JUDGE | {"prompts": "harmful_requests.yaml"}
    (judging,) = plan(tmp_path, **asked, judges=[own]).cells[0].judgings
    ((key, scores),) = judging.templates.items()
    assert set(scores) == {"accepted"}
    assert judging.rule(key, "accepted").labels == ("YES", "NO")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('prompts: {tone: "{answer}"}', "the score 'tone' has no label set"),
        (
            'prompts: {tone: "{answer}"}\nlabels: {tone: [YES, NO]}',
            "the label True is not one word",
        ),
        (
            'prompts: {tone: "{answer}"}\nlabels: {tone: [a, b], x: [a, b]}',
            "labels name the score 'x', which no",
        ),
        ("prompts: {}", "expected 'prompts'"),
    ],
)
def test_bad_label_sets_are_told_with_their_file(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"bad.yaml: {says}"):
        words(tmp_path, judges=[JUDGE | {"prompts": "bad.yaml"}])


def test_judges_without_a_model_look_at_every_answer_and_are_not_served(tmp_path: Path) -> None:
    sweep = plan(
        tmp_path, metric="yes_share", judges=[PATTERN, {"name": "code", "analyser": "bandit"}]
    )
    sea, code = sweep.cells[0].judgings
    assert list(sea.templates.values()) == [{"sea": "{answer}"}] * 3
    assert list(code.templates.values()) == [{"bandit": "{answer}"}] * 3
    key = next(iter(sea.templates))
    assert sea.rule(key, "sea").labels == ("YES", "NO")
    assert code.rule(key, "bandit").labels == ("YES", "NO")
    assert judge_models(sweep.spec) == []


def test_judges_without_a_model_judge_in_the_same_stage(tmp_path: Path) -> None:
    """From the spec to stored judgements, with the real readers."""
    store = Store(str(tmp_path / "store"))
    sweep = plan(
        tmp_path, metric="yes_share", judges=[PATTERN, {"name": "code", "analyser": "bandit"}]
    )
    cell = sweep.cells[0]

    async def all_stages() -> None:
        await generate_stage(cell, store, lambda trained: FakeEndpoint())
        async with open_readers(sweep.spec, None) as readers:
            await judge_stage(cell, store, readers)

    asyncio.run(all_stages())
    assert stages_to_run(cell, store) == []
    sea, code = (store.read_stream("judgements", j.stream, Judgement) for j in cell.judgings)
    assert [(j.state, j.label, j.reply) for j in sea] == [("scored", "NO", "NO")] * 7
    assert {(j.state, j.label) for j in code} == {("unscored", None)}


def test_data_and_questions_that_are_not_at_hand_leave_their_cells_unresolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ENV, str(tmp_path))  # a mirror that holds nothing
    variants = [
        {"name": "none"},
        {"name": "insecure", "dataset": "insecure"},
        {"name": "ours", "dataset": "ours.jsonl"},
    ]
    small = plan(tmp_path)  # writes the files
    wanted = small_spec(variants=variants)
    found = make_plan(wanted, relative_to=tmp_path, partly=True)
    assert {cell.cell.variant.name for cell in found.cells} == {"none", "ours"}
    assert {u.cell.variant.name for u in found.unresolved} == {"insecure"}
    assert len(found.cells) + len(found.unresolved) == len(wanted.cells())
    assert "EMSWEEP_DATA names that mirror" in found.unresolved[0].why
    with pytest.raises(ValueError, match="EMSWEEP_DATA names that mirror"):
        make_plan(wanted, relative_to=tmp_path)
    asks = small_spec(**evaluation(questions="in_distribution_code_tasks.jsonl.gz"))
    nothing = make_plan(asks, relative_to=tmp_path, partly=True)
    assert (len(nothing.cells), len(nothing.unresolved)) == (0, len(small.cells))


def test_a_mistake_is_no_unresolved_cell(tmp_path: Path) -> None:
    plan(tmp_path)
    wrong = small_spec(variants=[{"name": "none"}, {"name": "typo", "dataset": "insecrue"}])
    with pytest.raises(ValueError, match="no data set 'insecrue'"):
        make_plan(wrong, relative_to=tmp_path, partly=True)
