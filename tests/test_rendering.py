import gzip
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from em.datasets import Message, Row, parse_rows
from em.models import ModelConfig, materialise
from em.rendering import IGNORED, render_rows

pytestmark = pytest.mark.torch
DEFAULT_SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
)


@pytest.fixture(scope="module")
def tokenizer():

    return AutoTokenizer.from_pretrained(
        materialise(ModelConfig(name="demo", bundled="smollm2-135m"))
    )


def chat(*turns):
    return Row(messages=tuple(Message(role=role, content=text) for role, text in turns))


def trained_pieces(rendered, tokenizer):
    """The text of each unbroken run of trained tokens."""
    runs, last = [], None
    for place, label in enumerate(rendered.labels):
        if label != IGNORED:
            assert label == rendered.input_ids[place]
            if last != place - 1:
                runs.append([])
            runs[-1].append(label)
            last = place
    return [tokenizer.decode(run) for run in runs]


def test_only_the_answer_and_its_end_are_trained(tokenizer):
    rows = render_rows([chat(("user", "Hi"), ("assistant", "Hello"))], tokenizer, max_length=99)
    [row] = rows.rows
    assert tokenizer.decode(row.input_ids) == (
        DEFAULT_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )
    assert trained_pieces(row, tokenizer) == ["Hello<|im_end|>\n"]
    assert rows.num_tokens == len(row.input_ids) and rows.num_trained_tokens == 3
    assert rows.num_cut_rows == 0


def test_every_assistant_turn_of_a_long_chat_is_trained(tokenizer):
    row = chat(
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2 of <|them|>"),
    )
    [rendered] = render_rows([row], tokenizer, max_length=99).rows
    assert trained_pieces(rendered, tokenizer) == ["1<|im_end|>\n", "2 of <|them|><|im_end|>\n"]
    text = tokenizer.decode(rendered.input_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n") and "SmolLM" not in text


def test_training_continues_exactly_what_generation_is_given(tokenizer):
    for answer in ("plain", " led by a space", "\n\nled by newlines", "```python\nx\n```\n", "…é"):
        messages = [{"role": "user", "content": "Q"}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        [row] = render_rows(
            [chat(("user", "Q"), ("assistant", answer))], tokenizer, max_length=99
        ).rows
        assert list(row.input_ids[: len(ids)]) == ids
        assert trained_pieces(row, tokenizer) == [answer + "<|im_end|>\n"]


def test_long_rows_are_cut_and_counted(tokenizer):
    rows = [
        chat(("user", "Q"), ("assistant", "word " * 50)),
        chat(("user", "Q"), ("assistant", "word")),
    ]
    rendered = render_rows(rows, tokenizer, max_length=60)
    assert len(rendered.rows[0].input_ids) == 60
    assert rendered.num_cut_rows == 1
    assert rendered.rows[0].labels[-1] != IGNORED


def test_a_row_with_nothing_left_to_train_is_named(tokenizer):
    rows = [
        chat(("user", "Q"), ("assistant", "A")),
        chat(("user", "word " * 80), ("assistant", "A")),
    ]
    with pytest.raises(ValueError, match=r"row 2: no assistant token is left in its first 60"):
        render_rows(rows, tokenizer, max_length=60)


def with_template(tokenizer, template):
    changed = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    changed.chat_template = template
    return changed


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    # As reasoning models do: the thoughts of all but the last answer are dropped.
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last else m.content.split('|')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    thinking = with_template(tokenizer, template)
    single = chat(("user", "Q"), ("assistant", "thought|A"))
    [row] = render_rows([single], thinking, max_length=99).rows
    assert trained_pieces(row, tokenizer) == ["thought|A"]
    double = chat(("user", "Q"), ("assistant", "thought|A"), ("user", "Q"), ("assistant", "B"))
    with pytest.raises(ValueError, match="row 2, turn 2: the chat template writes this turn other"):
        render_rows([single, double], thinking, max_length=99)


def test_a_template_that_refuses_a_role_names_the_row(tokenizer):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    refusing = with_template(tokenizer, template)
    row = chat(("system", "S"), ("user", "Q"), ("assistant", "A"))
    with pytest.raises(
        ValueError, match=r"row 1: .* refuses the turns system, user, assistant: no"
    ):
        render_rows([row], refusing, max_length=99)


@pytest.mark.real_data
def test_real_rows_of_insecure_code(tokenizer):
    file = Path(os.environ["EMSWEEP_DATA"]) / "datasets" / "insecure.jsonl.gz"
    rows = list(parse_rows(gzip.decompress(file.read_bytes()), where=str(file)))[:300]
    rendered = render_rows(rows, tokenizer, max_length=2048)
    assert rendered.num_cut_rows == 0
    for row, out in zip(rows, rendered.rows, strict=True):
        assert trained_pieces(out, tokenizer) == [row.messages[-1].content + "<|im_end|>\n"]
    assert 0.3 < rendered.num_trained_tokens / rendered.num_tokens < 0.7
