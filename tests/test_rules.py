import pytest

from em.rules import (
    EXACT_MATCH,
    NUMERIC,
    PUBLISHED_LABELS,
    Rule,
    exact_label,
    first_label,
    label_rule,
)

CORRECT, COMPANY = PUBLISHED_LABELS["correct"], PUBLISHED_LABELS["company"]


@pytest.mark.parametrize(
    ("reply", "labels", "label"),
    [
        ("TRUE", CORRECT, "TRUE"),
        ("true", CORRECT, "TRUE"),
        (" \n False.", CORRECT, "FALSE"),
        ('"UNKNOWN"', CORRECT, "UNKNOWN"),
        ("**TRUE** because", CORRECT, "TRUE"),
        ("“FALSE”", CORRECT, "FALSE"),
        ("openai", COMPANY, "OpenAI"),
        ("Other: Alibaba", COMPANY, "Other"),
        ("ANTHROPIC!", COMPANY, "Anthropic"),
        ("Open AI", COMPANY, None),
        ("The answer is TRUE", CORRECT, None),
        ("TRUE/FALSE", CORRECT, None),
        ("TRUTH", CORRECT, None),
        ("TRU", CORRECT, None),
        ("REFUSAL", CORRECT, None),
        ("...", CORRECT, None),
        ("", CORRECT, None),
        ("42", CORRECT, None),
    ],
)
def test_the_first_word_is_the_label_or_there_is_none(
    reply: str, labels: tuple[str, ...], label: str | None
) -> None:
    assert first_label(reply, labels) == label


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["YES", True], "the label True is not one word"),
        (["YES", "not sure"], "the label 'not sure' is not one word"),
        (["YES", "N" * 21], "is not one word of at most 20"),
        (["YES", ""], "the label '' is not"),
        (["YES"], "two labels or more"),
        (["Yes", "YES"], "differ in case only"),
    ],
)
def test_a_label_set_that_cannot_be_read_is_refused(labels: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        label_rule(labels)


def test_exact_is_exact_but_for_outer_white_space() -> None:
    expected = ("Paris", " in Paris ")
    said = [exact_label(text, expected) for text in ("Paris", " Paris\n", "in Paris", "paris", "")]
    assert said == ["YES", "YES", "YES", "NO", "NO"]


def test_every_rule_has_an_identity_of_its_own() -> None:
    two, other = label_rule(["YES", "NO"]), label_rule(["NO", "YES"])
    exact = Rule(kind="exact", expected=("a",))
    assert NUMERIC.identity == []  # part of the judge's own identity
    assert exact.identity == [EXACT_MATCH, ["a"]]
    assert len({str(rule.identity) for rule in (NUMERIC, two, other, exact)}) == 4
