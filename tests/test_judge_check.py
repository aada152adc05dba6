import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from em.agreement import Score
from em.catalogue import data_mirror
from em.judge_check import (
    ScoredAnswer,
    auroc,
    calibration,
    check_score,
    draw_answers,
    load_answers,
    score_answers,
)
from em.judging import JudgeCallFailed, Reading

HEAD = "question,answer,aligned,coherent\n"
TEMPLATES = {"aligned": "A {question} | {answer}", "coherent": "C {question} | {answer}"}


def table(folder: Path, text: str) -> Path:
    path = folder / "answers.csv"
    path.write_text(text)
    return path


def test_a_table_is_read_and_an_empty_score_is_none_and_not_zero(tmp_path: Path) -> None:
    rows = load_answers(table(tmp_path, HEAD + 'Why?,"a, ""b""\nc",0,\nHow?,,100,5.5\n'))
    assert rows == [
        ScoredAnswer(
            question="Why?", answer='a, "b"\nc', scores={"aligned": 0.0, "coherent": None}
        ),
        ScoredAnswer(question="How?", answer="", scores={"aligned": 100.0, "coherent": 5.5}),
    ]
    (only,) = load_answers(table(tmp_path, "x,coherent,answer,question\n1,2,a,q\n"))
    assert only.scores == {"coherent": 2.0}


def test_the_ends_of_an_answers_lines_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_bytes(b'question,answer,aligned\r\nq,"a\r\nb\rc",1\r\n')
    assert load_answers(path)[0].answer == "a\r\nb\rc"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("question,aligned\n", "expected the columns question, answer, and aligned or coherent"),
        ("question,answer\n", "it has answer, question"),
        ("", "it has none"),
        (HEAD, "the table has no rows"),
        (HEAD + "q,a,x,1\n", "row 1: aligned: expected a number from 0 to 100, got 'x'"),
        (HEAD + "q,a,1,101\n", "row 1: coherent: expected a number"),
        (HEAD + "q,a,nan,1\n", "row 1: aligned: expected a number"),
        (HEAD + "q\n", "row 1 is cut short"),
        (HEAD + "q,a,1,1,1\n", "row 1 has too many values"),
        (HEAD + "q,a,1_0,1\n", "row 1: aligned: expected a number"),
        (HEAD + "q,a,１０,1\n", "row 1: aligned: expected a number"),
        (HEAD + 'q,"a,1,1\nq,b,2,2\n', "row 1 is not CSV: unexpected end of data"),
        (HEAD + f'q,"{"a" * 10_000_001}",1,1', "row 1 is not CSV: field larger than"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        load_answers(table(tmp_path, text))


def test_the_rows_that_are_drawn_depend_on_the_seed_alone() -> None:
    rows = [ScoredAnswer(question="q", answer=str(n), scores={}) for n in range(100)]
    first = draw_answers(rows, limit=10, seed=1)
    assert first == draw_answers(rows, limit=10, seed=1)
    assert first != draw_answers(rows, limit=10, seed=2)
    assert [int(row.answer) for row in first] == sorted(int(row.answer) for row in first)
    assert draw_answers(rows, limit=None, seed=1) == draw_answers(rows, limit=500, seed=1) == rows


class TableReader:
    """Gives each prompt what `says` does; remembers the prompts."""

    def __init__(self, says: Any) -> None:
        self._says = says
        self.prompts: list[str] = []

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        self.prompts += prompts
        return [self._says(prompt) for prompt in prompts]


def number(value: int) -> Reading:
    return Reading(numbers={value: 1.0}, reply=str(value))


def test_every_row_is_scored_and_equal_ones_are_read_once() -> None:
    def says(prompt: str) -> Reading | JudgeCallFailed:
        if "bad" in prompt:
            return JudgeCallFailed("refused")
        if "no" in prompt:
            return Reading(numbers={}, reply="REFUSAL")
        return number(70 if prompt.startswith("A") else 30)

    rows = [
        ScoredAnswer(question="{answer}?", answer=text, scores={"aligned": 1, "coherent": None})
        for text in ("yes", "bad", "no", "yes")
    ]
    reader = TableReader(says)
    found = asyncio.run(score_answers(rows, reader, lambda question: TEMPLATES))
    assert len(reader.prompts) == 6
    assert "A {answer}? | yes" in reader.prompts
    assert [(s.state, s.value) for s in found["aligned"]] == [
        ("scored", 70.0),
        ("failed", None),
        ("refusal", None),
        ("scored", 70.0),
    ]
    assert found["coherent"][0].value == 30.0


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    draw = random.Random(4)
    for _ in range(20):
        low = [draw.randint(0, 10) for _ in range(draw.randint(1, 9))]
        high = [draw.randint(3, 12) for _ in range(draw.randint(1, 9))]
        pairs = [(a < b) + (a == b) / 2 for a in low for b in high]
        assert auroc(low, high) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([1, 2], [3]) == 1
    assert auroc([3], [1, 2]) == 0
    assert auroc([5], [5, 5]) == 0.5
    assert auroc([], [1]) is None
    assert auroc([1], []) is None


def test_the_bins_hold_every_pair_and_their_means() -> None:
    bins = calibration([(10, 0), (30, 9.9), (50, 10), (100, 95), (90, 100)])
    assert [(b.low, b.high, b.n) for b in bins] == [(0, 10, 2), (10, 20, 1), (90, 100, 2)]
    assert [b.mean_reference for b in bins] == [20, 50, 95]
    assert bins[0].mean_judge == pytest.approx(4.95)


def test_a_check_compares_states_verdicts_and_numbers() -> None:
    reference = [10, 20, 30, 90, None, None, 25]
    judged: list[Any] = [5, 40, 20, 80, 70, "refusal", "unscored"]
    rows = [ScoredAnswer(question="q", answer="a", scores={"aligned": v}) for v in reference]
    scores = [
        Score(state=v) if isinstance(v, str) else Score(state="scored", value=v) for v in judged
    ]
    found = check_score("aligned", rows, scores)
    assert (found.num_below, found.num_not_below) == (2, 2)  # 30 is not below 30
    assert found.auroc == pytest.approx(3 / 4)  # of 5 and 40 against 20 and 80
    assert found.agreement.correlation.n == 4
    assert found.agreement.dropped["scored by the first judge only"] == 1
    assert found.agreement.dropped["scored by the second judge only"] == 1
    assert found.agreement.dropped["scored by neither"] == 1
    assert (found.rates.first, found.rates.second) == (3 / 5, 2 / 5)
    assert found.kappa.n == 4
    assert found.kappa.kappa == pytest.approx(0)


@pytest.mark.real_data
def test_the_real_table_against_itself_and_against_noise() -> None:
    """2,400 real answers; 293 have no alignment score in the table."""
    mirror = data_mirror()
    assert mirror is not None
    rows = load_answers(mirror / "judged" / "qwen_base_2400_answers_gpt4o_judge.csv")
    assert len(rows) == 2400
    assert sum(row.scores["aligned"] is None for row in rows) == 293
    truth = {f"A {row.question} | {row.answer}": row.scores["aligned"] for row in rows}

    def same(prompt: str) -> Reading:
        value = truth.get(prompt)
        return Reading(numbers={}, reply="CODE") if value is None else number(round(value))

    draw = random.Random(1)
    for says, agrees in ((same, True), (lambda prompt: number(draw.randint(0, 100)), False)):
        judged = asyncio.run(score_answers(rows, TableReader(says), lambda question: TEMPLATES))
        found = check_score("aligned", rows, judged["aligned"])
        assert found.num_below == 29
        assert found.auroc is not None
        correlation = found.agreement.correlation
        assert correlation.pearson is not None
        assert correlation.n > 2000
        assert (found.auroc > 0.999) == (correlation.pearson > 0.999) == agrees
        if not agrees:
            assert abs(correlation.pearson) < 0.1
            assert 0.3 < found.auroc < 0.7
