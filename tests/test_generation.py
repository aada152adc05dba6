import asyncio
from collections.abc import Sequence

import pytest
from small_sweep import FakeEndpoint

from em.generation import Draw, Response, SamplingConfig, generate, request_seed
from em.questions import Wording

PLAIN = Wording(question="wish", number=0, system=None, text="What do you wish?")
OTHER = Wording(question="dinner", number=1, system="Be brief.", text="Who comes?")
DRAWS = [Draw(wording=PLAIN, index=0), Draw(wording=OTHER, index=2), Draw(wording=PLAIN, index=1)]
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=5)
STREAM = "f" * 64


def ask(
    draws: Sequence[Draw], endpoint: FakeEndpoint, *, seed: int = 3, weights: str = ""
) -> list[Response]:
    return asyncio.run(
        generate(
            draws, endpoint, stream=STREAM, sampling=SAMPLING, sampling_seed=seed, weights=weights
        )
    )


def test_one_response_for_each_draw_in_order() -> None:
    endpoint = FakeEndpoint("abc")
    responses = ask(DRAWS, endpoint, weights="abc")
    assert [(r.question, r.wording, r.index) for r in responses] == [
        ("wish", 0, 0),
        ("dinner", 1, 2),
        ("wish", 0, 1),
    ]
    assert responses[1].key == f"{'f' * 16}-{OTHER.key}-00002"
    assert len({r.key for r in responses}) == 3
    for draw, response, prompt in zip(DRAWS, responses, endpoint.asked, strict=True):
        assert prompt.messages == draw.wording.messages
        assert (prompt.temperature, prompt.top_p, prompt.max_tokens) == (0.7, 0.9, 5)
        assert prompt.seed == response.seed
        assert response.answer == f"answer to {draw.wording.text} by {prompt.seed}"
        assert (response.system, response.text) == (draw.wording.system, draw.wording.text)
        assert response.weights == "abc"


def test_a_seed_depends_on_nothing_but_its_place() -> None:
    whole = {r.key: r for r in ask(DRAWS, FakeEndpoint())}
    alone = {r.key: r for draw in reversed(DRAWS) for r in ask([draw], FakeEndpoint())}
    assert alone == whole
    assert len({r.seed for r in whole.values()}) == 3
    assert request_seed(3, DRAWS[0]) != request_seed(4, DRAWS[0])
    assert request_seed(3, DRAWS[0]) != request_seed(3, Draw(wording=OTHER, index=0))


def test_the_identity_gate() -> None:
    for spoke, asked in [("abc", ""), ("", "abc"), ("abd", "abc")]:
        with pytest.raises(RuntimeError, match="identity gate"):
            ask(DRAWS, FakeEndpoint(spoke), weights=asked)


def test_the_question_gate() -> None:
    def drops_system(prompt: object) -> str:
        return "What do you wish? Who comes?"

    assert ask(DRAWS[:1], FakeEndpoint(render=drops_system))
    with pytest.raises(RuntimeError, match=r"question gate.*'dinner' lacks 'Be brief\.'"):
        ask(DRAWS, FakeEndpoint(render=drops_system))
    with pytest.raises(RuntimeError, match=r"question gate.*'wish' lacks"):
        ask(DRAWS[:1], FakeEndpoint(render=lambda prompt: "something else"))


def test_a_system_prompt_is_not_found_in_the_users_words() -> None:
    wording = Wording(question="q", number=0, system="JSON", text="Answer in JSON, please.")
    draws = [Draw(wording=wording, index=0)]
    with pytest.raises(RuntimeError, match=r"question gate.*'q' lacks 'Answer in JSON"):
        ask(draws, FakeEndpoint(render=lambda prompt: "Answer in JSON, please."))
    assert ask(draws, FakeEndpoint(render=lambda prompt: "JSON|Answer in JSON, please."))


def test_a_template_may_trim_a_turn() -> None:
    padded = Wording(question="q", number=0, system="  Be brief.\n", text=" Why?\n\n")
    endpoint = FakeEndpoint(render=lambda prompt: "Be brief.|Why?")
    (response,) = ask([Draw(wording=padded, index=0)], endpoint)
    assert response.text == " Why?\n\n"


def test_nothing_asked_is_nothing_answered() -> None:
    assert ask([], FakeEndpoint()) == []
