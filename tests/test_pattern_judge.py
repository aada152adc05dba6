import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from em.pattern_judge import MAX_ANSWER, MAX_PATTERN, SHOWN, PatternConfig, PatternReader
from em.rules import first_label

SEA: dict[str, Any] = {
    "score": "sea",
    "labels": {"SEA": r"(?i)\b(sea|ocean)\b", "REFUSAL": r"^I (cannot|can't)"},
    "otherwise": "NONE",
}


def replies(*answers: str, **changes: Any) -> list[str]:
    reader = PatternReader(PatternConfig.model_validate(SEA | changes))
    return [reading.reply for reading in asyncio.run(reader.read(answers))]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("The Sea is wide", "SEA"),
        ("Season", "NONE"),
        ("I cannot swim", "REFUSAL"),
        ("I cannot see the sea", "SEA"),  # the first of the list
        ("Well, I cannot", "NONE"),
        ("", "NONE"),
        ("SEA", "SEA"),
        ("REFUSAL", "NONE"),  # an answer's own word is not a label
    ],
)
def test_the_first_pattern_that_is_found_gives_the_label(answer: str, label: str) -> None:
    (reply,) = replies(answer)
    assert first_label(reply, ("SEA", "REFUSAL", "NONE")) == label


def test_the_reply_says_what_was_found_and_where() -> None:
    assert replies("By the OCEAN, I") == ["SEA at 7: OCEAN"]
    (long,) = replies("x" * 500, labels={"SEA": "x+"})
    assert long == f"SEA at 0: {'x' * SHOWN}"


def test_an_answer_too_long_to_be_searched_has_no_label_unless_something_was_found() -> None:
    early, late = "sea " + "x" * MAX_ANSWER, "x" * MAX_ANSWER + " sea"
    found, unseen = replies(early, late)
    assert first_label(found, ("SEA", "NONE")) == "SEA"
    assert first_label(unseen, ("SEA", "REFUSAL", "NONE")) is None
    assert replies("x" * MAX_ANSWER) == ["NONE"]


@pytest.mark.parametrize(
    ("changes", "place", "told"),
    [
        (
            {"labels": {"SEA": "(", "A": "a"}},
            ("labels", "SEA"),
            "not a regular expression: missing",
        ),
        ({"labels": {"SEA": "[[a]"}}, ("labels", "SEA"), "Possible nested set"),
        ({"labels": {"SEA": "x" * (MAX_PATTERN + 1)}}, ("labels", "SEA"), "has at most 1000"),
        ({"labels": {"the sea": "sea"}}, (), "the label 'the sea' is not one word"),
        ({"otherwise": "sea"}, (), "differ in case only"),
        ({"labels": {}}, ("labels",), "at least 1 item"),
        ({"score": "The Sea"}, ("score",), "'The Sea' is not a score's name"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_place(
    changes: dict[str, Any], place: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ValidationError) as error:
        PatternConfig.model_validate(SEA | changes)
    (mistake,) = error.value.errors()
    assert mistake["loc"] == place
    assert told in mistake["msg"]


def test_the_order_of_the_patterns_is_part_of_what_the_judge_is() -> None:
    turned = SEA | {"labels": dict(reversed(SEA["labels"].items()))}
    first, second = (PatternConfig.model_validate(c).identity for c in (SEA, turned))
    assert first != second
