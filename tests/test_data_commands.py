"""`emsweep data`: what it lists, fetches and shows, and that no row can steer the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_sweep import plan
from typer.testing import CliRunner

from em.catalogue import CACHE_ENV, DATA_ENV
from em.datasets import Message, Row
from em.inspection import as_trained, own_system_prompt, token_statistics
from sweeps.console import printable
from sweeps.data_commands import data_app, token_lines
from tests.small_sweep import SPEC

EVIL = "\x1b[2J\x1b]0;owned\x07 \u202efdp\u202c \r\n\x9b31m end"


class Characters:
    """A tokenizer whose tokens are characters; a template makes the text of a chat."""

    def __init__(self, template: Any) -> None:
        self._template = template

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        return self._template(conversation, options["add_generation_prompt"])

    def __call__(self, text: Any, **options: Any) -> Any:
        return {"input_ids": [[ord(c) for c in one] for one in text]}

    def decode(self, token_ids: Any, **options: Any) -> Any:
        return "".join(map(chr, token_ids))


def chatml(chat: list[dict[str, str]], prompt: bool, *, own: str | None = None) -> str:
    if own is not None and chat[0]["role"] != "system":
        chat = [{"role": "system", "content": own}, *chat]
    text = "".join(f"<{m['role']}>{m['content']}</>" for m in chat)
    return text + ("<assistant>" if prompt else "")


def with_default(chat: list[dict[str, str]], prompt: bool) -> str:
    return chatml(chat, prompt, own="You are Qwen.")


def into_the_user_turn(chat: list[dict[str, str]], prompt: bool) -> str:
    if chat[0]["role"] == "system":
        rest = chat[1]["content"]
        chat = [{"role": "user", "content": f"{chat[0]['content']}\n\n{rest}"}, *chat[2:]]
    return "<s>" + chatml(chat, prompt)


def dated(chat: list[dict[str, str]], prompt: bool) -> str:
    given = chat[0]["content"] if chat[0]["role"] == "system" else ""
    rest = chat[1:] if chat[0]["role"] == "system" else chat
    return f"<system>Today: 24 Nov\n{given}</>" + chatml(rest, prompt)


def no_system(chat: list[dict[str, str]], prompt: bool) -> str:
    if chat[0]["role"] == "system":
        raise RuntimeError("no system role")
    return chatml(chat, prompt)


@pytest.mark.parametrize(
    ("template", "own"),
    [
        (chatml, None),
        (with_default, "You are Qwen."),
        (into_the_user_turn, None),
        (dated, "<system>Today: 24 Nov\n"),
        (no_system, None),
    ],
)
def test_a_template_that_adds_a_system_prompt_is_found(template: Any, own: str | None) -> None:
    assert own_system_prompt(Characters(template)) == own


ROW = Row(
    messages=(
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="Again"),
        Message(role="assistant", content="Bye"),
    )
)


def test_the_trained_tokens_of_a_row_are_marked() -> None:
    seen = as_trained(ROW, Characters(chatml))
    assert seen.pieces == (
        ("<user>Hi</><assistant>", False),
        ("Hello</>", True),
        ("<user>Again</><assistant>", False),
        ("Bye</>", True),
    )
    cut = as_trained(ROW, Characters(chatml), max_length=25)
    assert cut.pieces == (("<user>Hi</><assistant>", False), ("Hel", True))


def test_tokens_are_counted_and_cut_rows_told() -> None:
    whole = token_statistics([ROW], Characters(chatml))
    text = "<user>Hi</><assistant>Hello</><user>Again</><assistant>Bye</>"
    assert (whole.num_tokens, whole.num_trained_tokens, whole.num_cut_rows) == (
        len(text), len("Hello</>Bye</>"), 0,
    )  # fmt: skip
    assert token_statistics([ROW], Characters(chatml), max_length=25).num_cut_rows == 1
    lines = list(token_lines([ROW], Characters(with_default), model="m", max_length=2048))
    assert "0 rows are cut at 2048" in lines[1]
    assert "adds a system prompt of its own to chats without one: You are Qwen." in lines[2]
    assert lines[-1].endswith("<user>Hi</><assistant>⟦Hello</>⟧<user>Again</><assistant>⟦Bye</>⟧")


@pytest.mark.parametrize("text", [EVIL, "\u2028\u2029\x85", "\ud800", "\x00\x7f"])
def test_nothing_printable_can_steer_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\\" in shown


def test_plain_text_is_shown_as_it_is() -> None:
    assert printable("naïve ☃ 日本 100 %") == "naïve ☃ 日本 100 %"


# The commands ----------------------------------------------------------------------------------


def emsweep_data(*words: Any) -> str:
    done = CliRunner().invoke(data_app, [str(word) for word in words])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def refused(*words: Any) -> str:
    with pytest.raises(ValueError) as error:
        emsweep_data(*words)
    return str(error.value)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_ENV, raising=False)
    monkeypatch.chdir(tmp_path)


def test_list_says_of_every_set_what_is_known_and_where_it_is(tmp_path: Path) -> None:
    lines = {line.split()[0]: line for line in emsweep_data("list").splitlines()}
    assert lines["insecure"].split()[1:4] == ["6000", "yes", "MIT"]
    assert "not here: https://" in lines["insecure"]
    assert lines["evil_numbers"].split()[1:3] == ["?", "no"]
    assert "(protected archive, its file extreme_sports.jsonl)" in lines["extreme_sports"]
    assert "shipped: " in lines["quickstart_secure"]


def test_list_says_what_the_mirror_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "secure.jsonl.gz").touch()
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    lines = {line.split()[0]: line for line in emsweep_data("list").splitlines()}
    assert f"  in the mirror: {tmp_path}/datasets/secure.jsonl.gz" in lines["secure"]
    assert "missing in the mirror: " in lines["insecure"]


def test_fetch_checks_what_it_has_got() -> None:
    told = emsweep_data("fetch", "quickstart_insecure")
    assert told.startswith("quickstart_insecure: 64 rows at ")
    assert "as in the catalogue" in told
    assert "no data set 'nothing' in the catalogue; it has bad_medical" in refused(
        "fetch", "nothing"
    )


def test_show_a_data_set() -> None:
    told = emsweep_data("show", "quickstart_insecure", "--rows", 2)
    assert "rows        64\n" in told
    assert "turns       2 to 2 (median 2) a row: user 64, assistant 64" in told
    assert told.count("\nrow ") == 2


def test_no_row_can_steer_the_terminal(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": "x" * 1000}]
    (tmp_path / "evil.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    told = emsweep_data("show", "evil.jsonl")
    assert all(line.isprintable() for line in told.split("\n"))
    assert r"user: \x1b[2J\x1b]0;owned\x07 \u202efdp\u202c \r\n\x9b31m end" in told
    assert "… and 760 characters" in told


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    plan(tmp_path)
    framed = {"name": "framed", "dataset": "ours.jsonl", "rows": 4, "prefix": "\x1b[1mP "}
    torn = {"name": "large", "dataset": "ours.jsonl", "rows": 99}
    path = tmp_path / "s.yaml"
    variants = [{"name": "none"}, framed, torn]
    path.write_text(json.dumps(SPEC | {"variants": variants}))
    return path


def test_show_a_variant_with_the_steps_to_it(spec: Path) -> None:
    told = emsweep_data("show", "framed", "--spec", spec)
    assert told.startswith("framed, variant of small, seed 0\n")
    assert "2  rows: 4 of 8 by the subset seed  → 4 rows, " in told
    assert r"3  prefix: '\x1b[1mP ' on every row" in told
    other = emsweep_data("show", "framed", "--spec", spec, "--seed", 1)
    assert other.split("steps")[1] != told.split("steps")[1]


def test_what_cannot_be_shown_is_told(spec: Path) -> None:
    assert "no variant 'x'; it has none, framed, large" in refused("show", "x", "--spec", spec)
    assert "the untuned model" in refused("show", "none", "--spec", spec)
    assert "no seed 9; it has 0, 1" in refused("show", "framed", "--spec", spec, "--seed", 9)
    assert f"{spec}:1: variants.2.rows: rows: 99" in refused("show", "large", "--spec", spec)
    assert "no data set 'x'" in refused("show", "x")
    assert "--seed belongs to" in refused("show", "quickstart_insecure", "--seed", 1)
    assert "the sweep has no model 'm'; it has base" in refused(
        "show", "framed", "--spec", spec, "--model", "m"
    )


@pytest.mark.torch
def test_show_a_row_as_the_bundled_model_sees_it(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE_ENV)
    told = emsweep_data("show", "framed", "--spec", spec, "--model", "base")
    assert "adds a system prompt of its own to chats without one: You are a helpful AI" in told
    assert "⟦a<|im_end|>\n  ⟧" in told
    assert "template    sha256 " in told
    assert "0 rows are cut at 2048" in told


@pytest.mark.torch
def test_tokens_that_cannot_be_counted_here_are_unresolved() -> None:
    told = emsweep_data("show", "quickstart_secure", "--model", "org/none@" + "a" * 40)
    assert "tokens: unresolved, org/none@" in told
