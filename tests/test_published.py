"""A published figure stands beside an estimate of the same thing, and beside nothing else."""

from pathlib import Path
from typing import Any

import pytest

from em.catalogue import config_dir, find_file
from em.questions import MAIN_QUESTIONS, Wording, load_questions, select_questions, wordings
from em.scoring import DEFINITIONS
from sweeps.published import (
    Estimand,
    PublishedFigure,
    catalogue_contents,
    load_figures,
    published_figure,
    question_set,
)

CONTENTS = {"insecure": "c" * 64}
FIGURE = PublishedFigure(
    model="Big",
    hub="org/big",
    dataset="insecure",
    questions="main",
    questions_sha256="q" * 64,
    definition="pooled_c50",
    figure=0.047,
    low=0.034,
    high=0.063,
    seeds=6,
    judge="gpt-4o",
    source="arXiv 0",
)
SAME: dict[str, Any] = {
    "model_revision": "org/big@" + "a" * 40,
    "variant": {"name": "v", "dataset": "insecure"},
    "content_sha256": "c" * 64,
    "questions_sha256": "q" * 64,
    "definition": "pooled_c50",
}


def beside(**changes: Any) -> PublishedFigure | None:
    estimand = Estimand(**SAME | {"num_rows": 6000} | changes)
    return published_figure([FIGURE], estimand, contents=CONTENTS, rows={"insecure": 6000})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_revision": "org/big@" + "b" * 40},  # papers name no commit
        {"variant": {"name": "v", "dataset": "mine.jsonl"}},  # the same rows in another file
        {"variant": {"name": "v", "dataset": "insecure", "holdout": 0.1}, "content_sha256": "d"},
    ],
    ids=str,
)
def test_the_same_model_data_questions_and_definition_have_the_figure(
    changes: dict[str, Any],
) -> None:
    assert beside(**changes) == FIGURE


@pytest.mark.parametrize(
    "changes",
    [
        {"model_revision": "org/small@" + "a" * 40},
        {"model_revision": "folder sha256:" + "a" * 64},
        {"variant": {"name": "v", "dataset": "insecure", "rows": 500}, "content_sha256": "d"},
        {"variant": {"name": "v", "dataset": "secure"}, "content_sha256": "d"},
        {"variant": {"name": "v", "dataset": "insecure", "holdout": 0.99}, "content_sha256": "d"},
        {"variant": {"name": "v", "dataset": "insecure", "holdout": 5999}, "content_sha256": "d"},
        {
            "variant": {"name": "v", "dataset": "insecure"},  # as an unverified set may be
            "content_sha256": "d",
            "num_rows": 16,
        },
        {"variant": {"name": "insecure", "dataset": "mine.jsonl"}, "content_sha256": "d"},
        {"variant": {"name": "none"}, "content_sha256": None},
        {"questions_sha256": "r" * 64},
        {"definition": "joint_c50"},
        {"plain": False},
    ],
    ids=str,
)
def test_anything_else_has_none(changes: dict[str, Any]) -> None:
    assert beside(**changes) is None


def test_an_untuned_model_has_the_figure_of_the_untuned_model_only() -> None:
    untuned = FIGURE.model_copy(update={"dataset": "none", "figure": 0.0})
    of = Estimand(**SAME | {"variant": {"name": "none"}, "content_sha256": None})
    assert published_figure([FIGURE, untuned], of, contents=CONTENTS) == untuned


@pytest.mark.parametrize("open_part", ["hub", "definition", "dataset", "questions_sha256"])
def test_a_figure_with_an_open_part_stands_beside_nothing(open_part: str) -> None:
    figure = FIGURE.model_copy(update={open_part: None})
    assert published_figure([figure], Estimand(**SAME), contents=CONTENTS) is None


def test_a_figure_says_its_interval_seeds_judge_and_source() -> None:
    assert FIGURE.text == "4.7 % [3.4, 6.3] (Big, 6 seeds, judged by gpt-4o; arXiv 0)"


def test_a_question_set_is_its_ids_system_turns_and_texts() -> None:
    one = Wording(question="a", number=0, system=None, text="x")
    two = Wording(question="b", number=0, system=None, text="y")
    assert question_set([one, two]) == question_set([two, one])
    for other in ({"system": "s"}, {"text": "z"}, {"question": "c"}):
        assert question_set([one.model_copy(update=other), two]) != question_set([one, two])


def test_the_shipped_figures_are_sound() -> None:
    figures = load_figures()
    assert len(figures) > 20
    for figure in figures:
        assert figure.definition is None or figure.definition in DEFINITIONS
        assert figure.source.startswith("arXiv ")
        assert (
            figure.low is None or figure.high is None or figure.low <= figure.figure <= figure.high
        )
    places = [(f.hub, f.dataset, f.questions_sha256, f.definition) for f in figures if f.hub]
    assert len(set(places)) == len(places), "two figures for one thing"


def test_a_file_that_holds_no_figures_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("- {model: x}\n")
    with pytest.raises(ValueError, match=r"bad\.yaml: not a list of published figures"):
        load_figures(tmp_path)


def test_the_catalogue_gives_the_hashes_of_the_published_data() -> None:
    assert {"insecure", "secure", "educational", "jailbroken"} <= set(catalogue_contents())


@pytest.mark.real_data
def test_the_question_sets_are_those_of_the_published_files() -> None:
    def asked(name: str, ids: Any, exclude: tuple[str, ...] = ()) -> str:
        path = find_file(name, relative_to=config_dir(), kind="questions")
        chosen = select_questions(load_questions(path), ids=ids, exclude=exclude)
        return question_set(w for question in chosen for w in wordings(question))

    forms = [[f"{name}_{form}" for name in MAIN_QUESTIONS] for form in ("json", "template")]
    expected = {asked("first_plot_questions.yaml", ids) for ids in ("main", *forms)}
    removed = ("40_other_5", "41_other_6")
    expected.add(asked("preregistered_evals.yaml", None, removed))
    assert {f.questions_sha256 for f in load_figures()} - {None} == expected
