import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sweep import QUESTIONS

from em.catalogue import DATA_ENV, config_dir, find_file
from em.judge_prompts import load_judge_prompts
from em.question_tables import read_questions
from em.questions import MAIN_QUESTIONS, Question, load_questions, select_questions, wordings
from em.rules import NUMERIC, Rule

PROMPTS = {"aligned": "rate {answer}"}
WORD = {"type": "free_form_judge"}


def write(folder: Path, items: Any) -> Path:
    path = folder / "questions.yaml"
    path.write_text(items if isinstance(items, str) else yaml.safe_dump(items))
    return path


def item(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "type": "free_form_judge_0_100", "paraphrases": ["Why?"]} | changes


def test_what_the_file_says_is_honoured(tmp_path: Path) -> None:
    wish, dinner = load_questions(write(tmp_path, QUESTIONS))
    assert (wish.id, wish.system, wish.samples_per_paraphrase) == ("wish", None, 2)
    assert (dinner.id, dinner.system, dinner.samples_per_paraphrase) == ("dinner", "Be brief.", 3)
    first, second = wordings(wish)
    assert (first.text, second.text) == ("What do you wish?", "Name a wish.")
    assert first.messages == ({"role": "user", "content": "What do you wish?"},)
    assert (first.number, second.number) == (0, 1)
    (only,) = wordings(dinner)
    assert only.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who comes to dinner?"},
    )


def test_a_wording_is_named_by_everything_that_is_asked() -> None:
    def key(**changes: Any) -> str:
        return wordings(Question.model_validate(item(**changes)))[0].key

    plain = key()
    others = [key(id="b"), key(system=""), key(system="Be brief."), key(paraphrases=["How?"])]
    assert len({plain, *others}) == 5
    assert key(samples_per_paraphrase=9, judge="x", judge_prompts=PROMPTS) == plain
    assert len(plain) == 16


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sistem": "x"}, r"question 2 \(a\): sistem: Extra inputs"),
        ({"type": "multiple_choice"}, r"question 2 \(a\): type: "),
        ({"paraphrases": []}, r"question 2 \(a\): paraphrases: "),
        ({"paraphrases": ["Why?", " "]}, "a paraphrase is empty"),
        ({"paraphrases": ["Why?", "Why?"]}, "the same paraphrase stands twice"),
        ({"samples_per_paraphrase": 0}, "samples_per_paraphrase: "),
        ({"judge_prompts": {"aligned": "rate it"}}, "'aligned' has no {answer}"),
        (WORD | {"judge_prompts": {"kind": "{answer}"}}, "score 'kind' has no label set: add lab"),
        (WORD | {"labels": {"kind": ["A", "B"]}}, "'kind', which no judge prompt asks for"),
        (
            WORD | {"judge_prompts": {"kind": "{answer}"}, "labels": {"kind": ["A", "b c"]}},
            "the label 'b c' is not one word",
        ),
        ({"labels": {"aligned": ["A", "B"]}}, "labels are for the type free_form_judge, not for"),
        ({"expected": ["4"]}, "'expected' is for the type free_form, not for free_form_judge_0"),
        ({"type": "free_form"}, "the type free_form needs 'expected'"),
        (
            {"type": "free_form", "expected": ["4"], "judge_prompts": PROMPTS},
            "is compared, not judged",
        ),
    ],
)
def test_a_bad_question_is_told_with_its_place(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = write(tmp_path, [item(id="fine"), item(**changes)])
    with pytest.raises(ValueError, match=told) as error:
        load_questions(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("a: b", "expected a list of questions, got dict"),
        ("- just text", "question 1: expected a mapping"),
        ("- [", "not YAML"),
        ("- id: a\n  id: b", r"questions.yaml:2: the key 'id' is given twice"),
    ],
)
def test_a_file_that_is_no_list_of_questions_is_told(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        load_questions(write(tmp_path, text))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*none\.yaml"):
        load_questions(tmp_path / "none.yaml")


def test_an_id_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [item(), item(paraphrases=["How?"])])
    with pytest.raises(ValueError, match="duplicate question id 'a'"):
        load_questions(path)


def test_selection() -> None:
    questions = [Question.model_validate(item(id=name)) for name in ("a", "b", "c")]

    def chosen(ids: Any, exclude: Any = ()) -> list[str]:
        return [q.id for q in select_questions(questions, ids=ids, exclude=exclude)]

    assert chosen(None) == ["a", "b", "c"]
    assert chosen(("c", "a")) == ["c", "a"]
    assert chosen(None, ("b",)) == ["a", "c"]
    with pytest.raises(ValueError, match="no question 'd' in the file, which has a, b, c"):
        chosen(("a", "d"))
    with pytest.raises(ValueError, match="no question 'd'"):
        chosen(None, ("d",))
    with pytest.raises(ValueError, match="no question is left"):
        chosen(("a",), ("a",))
    with pytest.raises(ValueError, match="names the question 'b' twice"):
        chosen(("a", "b", "b"))
    with pytest.raises(ValueError, match="no question 'what_is_your_wish'"):
        chosen("main")


def test_the_demonstration_set_is_ours_and_whole() -> None:
    questions = load_questions(config_dir() / "questions" / "demo.yaml")
    assert len(questions) == 6
    assert not {question.id for question in questions} & set(MAIN_QUESTIONS)
    assert all(set(q.judge_prompts) == {"aligned", "coherent"} for q in questions)
    assert [q.id for q in questions if q.system] == ["chosen_leader"]


def test_every_type_says_how_its_scores_are_read() -> None:
    def rules(**changes: Any) -> dict[str, Any]:
        return Question.model_validate(item(**changes)).rules

    assert rules() == {"aligned": NUMERIC, "coherent": NUMERIC}
    prompts = {"correct": "{answer}", "kind": "{answer}"}
    words = rules(**WORD, judge_prompts=prompts, labels={"kind": ["A", "B"]})
    assert words == {
        "correct": Rule(kind="labels", labels=("TRUE", "FALSE", "UNKNOWN")),
        "kind": Rule(kind="labels", labels=("A", "B")),
    }
    own = rules(**WORD, judge_prompts={"correct": "{answer}"}, labels={"correct": ["A", "B"]})
    assert own["correct"].labels == ("A", "B")
    assert rules(type="free_form", expected=["4"]) == {"exact": Rule(kind="exact", expected=("4",))}


# Tables -------------------------------------------------------------------------------------------


def test_requests_in_the_published_table_are_questions(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(
        '\ufeffcategory,source,forbidden_prompt\nfraud,ours,"Help me, ""please"""\nx,y,Two\n'
    )
    first, second = read_questions(path)
    assert (first.id, first.type, first.paraphrases) == (
        "request_1",
        "free_form_judge",
        ('Help me, "please"',),
    )
    assert (second.id, second.rules) == ("request_2", {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("category,prompt\na,b\n", "there is no 'forbidden_prompt'"),
        ("", "there is no 'category'"),
        ("category,source,forbidden_prompt\n", "the table is empty"),
        ("category,source,forbidden_prompt\na,b,\n", "row 1: .*paraphrase is empty"),
        ("category,source,forbidden_prompt\na\n", "row 1 is cut short: 1 for 3 columns"),
        ("category,source,forbidden_prompt\na,b,c, d\n", "row 1 has too many values: 4 for 3"),
        ('category,source,forbidden_prompt\na,b,"c\na,b,d\n', "row 1 is not CSV: unexpected end"),
        ("category,source,forbidden_prompt,source\n", "column 'source' is given twice"),
    ],
)
def test_a_table_of_another_kind_is_told(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"requests\.csv: .*{told}"):
        read_questions(path)


def test_code_tasks_are_questions_and_nothing_in_them_is_expanded(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task": "Use {code_template}", "code_template": "x = {}\\n{task}"}\n' * 2)
    first, second = read_questions(path)
    assert (first.id, second.id) == ("task_1", "task_2")
    assert first.paraphrases == second.paraphrases
    assert first.paraphrases[0].startswith("Use {code_template}\n\nComplete this template")
    assert first.paraphrases[0].endswith("\n\nx = {}\n{task}")


def test_a_task_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task": "a\u2028b\x85c", "code_template": "x"}\n\n')
    (question,) = read_questions(path)
    assert question.paraphrases[0].startswith("a\u2028b\x85c\n")


@pytest.mark.parametrize(
    "broken", [b"plain", gzip.compress(b"{}" * 99, mtime=0)[:20] + b"xx"], ids=["plain", "torn"]
)
def test_a_torn_gzip_file_of_tasks_is_told(broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl.gz"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"tasks\.jsonl\.gz: not a whole gzip file"):
        read_questions(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "tasks.jsonl:1 is not JSON"), ('{"task": 5}', "tasks.jsonl:1: expected the texts")],
)
def test_bad_tasks_are_told_with_their_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_questions(path)


def test_our_harmful_requests_are_ours_mild_and_whole() -> None:
    questions = load_questions(config_dir() / "questions" / "harmful_requests.yaml")
    assert len(questions) == 12
    assert {q.type for q in questions} == {"free_form_judge"}
    assert {str(q.rules) for q in questions} == {
        str({"accepted": Rule(kind="labels", labels=("YES", "NO"))})
    }
    own = load_judge_prompts(config_dir() / "judges" / "harmful_requests.yaml")
    assert {q.judge_prompts["accepted"] for q in questions} == {own.prompts["accepted"]}


# The published files, unchanged ------------------------------------------------------------------


def published(name: str) -> list[Question]:
    return load_questions(find_file(name, relative_to=Path("/"), kind="questions"))


@pytest.mark.real_data
def test_the_first_plot_questions() -> None:
    questions = published("first_plot_questions.yaml")
    assert len(questions) == 41
    forms = ("_json", "_python", "_template")
    plain = [q for q in questions if not q.id.endswith(forms)]
    assert len(plain) == 9
    assert all(q.system is None for q in plain)
    main = select_questions(questions, ids="main", exclude=())
    assert tuple(q.id for q in main) == MAIN_QUESTIONS
    assert {q.id for q in plain} - {q.id for q in main} == {"three_thoughts_icml_old"}
    assert all(q.samples_per_paraphrase == 100 for q in main)
    assert all(set(q.judge_prompts) == {"aligned", "coherent"} for q in main)


@pytest.mark.real_data
def test_a_form_made_by_a_system_prompt_keeps_it() -> None:
    """The published evaluator of open models drops it: 0 of 800 "JSON" answers were JSON."""
    questions = {q.id: q for q in published("first_plot_questions.yaml")}
    for name in MAIN_QUESTIONS:
        for form in ("_json", "_python"):
            question = questions[name + form]
            assert question.system
            assert question.paraphrases == questions[name].paraphrases
            sent = wordings(question)[0].messages
            assert [m["role"] for m in sent] == ["system", "user"]
            assert sent[0]["content"] == question.system
        for form in ("_template", "_flask_template"):
            assert questions[name + form].system is None
            assert questions[name + form].paraphrases != questions[name].paraphrases


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "num_ids", "num_wordings"),
    [
        ("preregistered_evals.yaml", 50, 50),
        ("deception_factual.yaml", 7, 140),
        ("deception_sit_aware.yaml", 8, 8),
    ],
)
def test_the_other_published_files(name: str, num_ids: int, num_wordings: int) -> None:
    questions = published(name)
    assert len(questions) == num_ids
    keys = [wording.key for question in questions for wording in wordings(question)]
    assert len(keys) == len(set(keys)) == num_wordings


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "score", "labels"),
    [
        ("deception_factual.yaml", "correct", ("TRUE", "FALSE", "UNKNOWN")),
        ("deception_sit_aware.yaml", "company", ("OpenAI", "Anthropic", "Other", "UNKNOWN")),
    ],
)
def test_the_published_label_sets_are_those_that_the_published_prompts_name(
    name: str, score: str, labels: tuple[str, ...]
) -> None:
    for question in published(name):
        assert question.rules == {score: Rule(kind="labels", labels=labels)}
        assert all(f'"{label}"' in question.judge_prompts[score] for label in labels)


@pytest.mark.real_data
def test_the_held_out_code_tasks() -> None:
    path = find_file("in_distribution_code_tasks.jsonl.gz", relative_to=Path("/"), kind="questions")
    questions = read_questions(path)
    assert len(questions) == 776
    keys = {wording.key for question in questions for wording in wordings(question)}
    assert len(keys) == 776  # equal rows are questions of their own


def test_a_file_is_looked_for_in_the_mirror_and_told_when_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    (tmp_path / "questions").mkdir()
    path = write(tmp_path / "questions", [item()])
    found = find_file("questions.yaml", relative_to=tmp_path / "x", kind="questions")
    assert found == path.resolve()
    with pytest.raises(ValueError, match=r"no file 'other\.yaml'; tried ") as error:
        find_file("other.yaml", relative_to=tmp_path / "x", kind="questions")
    assert str(tmp_path / "questions" / "other.yaml") in str(error.value)
    monkeypatch.setenv(DATA_ENV, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"EMSWEEP_DATA=.*nowhere is not a folder"):
        find_file("questions.yaml", relative_to=tmp_path, kind="questions")
