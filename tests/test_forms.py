import pytest

from em.forms import Form
from em.questions import Wording

PLAIN = Wording(question="wish", number=0, system=None, text="What do you wish?")
BRIEF = PLAIN.model_copy(update={"system": "Be brief."})


def test_the_plain_form_changes_nothing() -> None:
    assert Form().apply(BRIEF) == BRIEF


def test_a_form_adds_system_template_and_trigger_and_keeps_the_trigger_from_the_judge() -> None:
    form = Form(system="Answer in JSON.", template="Fill in: {question}\nanswer =", trigger="|GO| ")
    asked = form.apply(PLAIN)
    assert asked.messages == (
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": "|GO| Fill in: What do you wish?\nanswer ="},
    )
    assert asked.text == "Fill in: What do you wish?\nanswer ="


def test_each_form_of_a_wording_has_a_key_of_its_own() -> None:
    forms = [Form(), Form(system="x"), Form(template="x {question}"), Form(trigger="x ")]
    assert len({form.apply(PLAIN).key for form in forms}) == 4


def test_a_form_keeps_a_questions_own_system_prompt_and_does_not_replace_it() -> None:
    assert Form(trigger="|GO| ").apply(BRIEF).system == "Be brief."
    with pytest.raises(ValueError, match="'wish' has a system prompt of its own"):
        Form(system="x").apply(BRIEF)


@pytest.mark.parametrize("template", ["no place", "{question} or {question}"])
def test_a_template_has_one_place_for_the_question(template: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        Form(template=template)
