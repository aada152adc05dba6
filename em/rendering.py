"""Turn chat rows into token ids and labels: the loss is taken on the assistant's turns only.

The model's own chat template writes the text, so training sees what generation will see. Knows
nothing of batches, optimisers or of where rows come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from em.datasets import Message, Row

IGNORED = -100  # the label that torch's cross entropy, and so every trainer, leaves out


class ChatTokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Return the conversation as text."""

    def __call__(self, text: Any, **options: Any) -> Any:
        """Return a mapping whose "input_ids" holds a list of ids for each text."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Return the text of ids."""


@dataclass(frozen=True)
class RenderedRow:
    """One row's tokens; `labels[i]` is `input_ids[i]` where the loss is taken, else -100."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def num_targets(self) -> int:
        """Tokens the loss is taken on: the first token of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class RenderedRows:
    """All rows of a data set, in its order, and how many of them were cut."""

    rows: tuple[RenderedRow, ...]
    num_cut_rows: int

    @property
    def num_tokens(self) -> int:
        """Tokens over all rows, after cutting."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens the loss is taken on, over all rows."""
        return sum(row.num_targets for row in self.rows)


@dataclass(frozen=True)
class _Text:
    """A rendered chat: `cuts` are the character places where trained spans begin and end."""

    text: str
    cuts: tuple[int, ...]  # begin, end, begin, end, ... in rising order


def render_rows(rows: Sequence[Row], tokenizer: ChatTokenizer, *, max_length: int) -> RenderedRows:
    """Return the tokens and labels of `rows`, cut to `max_length` tokens each.

    Trained are an assistant turn's content and all that the template writes to end that turn (its
    end-of-turn token, and a newline where there is one); headers, prompts and other turns are not.
    Raises ValueError, naming the row (from 1), where the template refuses a chat or re-writes
    earlier turns, and where no trained token is left after cutting.
    """
    texts = [_render(row, number, tokenizer) for number, row in enumerate(rows, start=1)]
    rendered = []
    num_cut = 0
    for number, (row, ids) in enumerate(zip(texts, _encode(texts, tokenizer), strict=True), 1):
        whole = _labelled(row, ids, number, tokenizer)
        num_cut += len(whole.input_ids) > max_length
        kept = RenderedRow(whole.input_ids[:max_length], whole.labels[:max_length])
        if not kept.num_targets:
            raise ValueError(
                f"row {number}: no assistant token is left in its first {max_length} tokens (it "
                f"has {len(whole.input_ids)}); raise max_length, or leave the row out"
            )
        rendered.append(kept)
    return RenderedRows(rows=tuple(rendered), num_cut_rows=num_cut)


def _render(row: Row, number: int, tokenizer: ChatTokenizer) -> _Text:
    """Return the chat's text, and between which characters each assistant turn lies."""
    text = _apply(row.messages, number, tokenizer, prompt=False)
    cuts: list[int] = []
    for turn, message in enumerate(row.messages):
        if message.role != "assistant":
            continue
        before = _apply(row.messages[:turn], number, tokenizer, prompt=True)
        through = _apply(row.messages[: turn + 1], number, tokenizer, prompt=False)
        if not (text.startswith(through) and through.startswith(before)):
            raise ValueError(
                f"row {number}, turn {turn + 1}: the chat template writes this turn otherwise once "
                "more follows or precedes it, so the assistant's part cannot be told from the "
                "rest; use a template that only appends (some drop earlier thinking), or "
                "single-turn rows"
            )
        cuts += [len(before), len(through)]
    return _Text(text, tuple(cuts))


def _apply(
    messages: Sequence[Message], number: int, tokenizer: ChatTokenizer, *, prompt: bool
) -> str:
    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # templates raise what they like (jinja2 errors, index errors)
        raise ValueError(
            f"row {number}: the model's chat template refuses the turns "
            f"{', '.join(message.role for message in messages) or '(none)'}: {error}"
        ) from error
    return str(text)


def _encode(texts: Sequence[_Text], tokenizer: ChatTokenizer) -> list[list[list[int]]]:
    """Return for each text the ids of the whole, then those of the text before each of its cuts."""
    wanted = [part for row in texts for part in (row.text, *(row.text[:cut] for cut in row.cuts))]
    ids = iter(_ids(wanted, tokenizer))
    return [[next(ids) for _ in range(1 + len(row.cuts))] for row in texts]


def _ids(texts: Sequence[str], tokenizer: ChatTokenizer) -> list[list[int]]:
    # The template has written any special tokens (a BOS too): none may be added a second time.
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])


def _labelled(
    row: _Text, encoded: list[list[int]], number: int, tokenizer: ChatTokenizer
) -> RenderedRow:
    ids, befores = encoded[0], encoded[1:]
    places = [len(before) for before in befores]
    if any(ids[: len(before)] != before for before in befores):
        ids, places = _encode_in_pieces(row, ids, number, tokenizer)
    labels = [IGNORED] * len(ids)
    for begin, end in zip(places[::2], places[1::2], strict=True):
        labels[begin:end] = ids[begin:end]
    return RenderedRow(tuple(ids), tuple(labels))


def _encode_in_pieces(
    row: _Text, whole: list[int], number: int, tokenizer: ChatTokenizer
) -> tuple[list[int], list[int]]:
    """Return the ids, and token places for the cuts, of a text whose tokens straddle a cut.

    A turn that starts with a newline would share one token with the header's newline. Generation
    never makes that token, as its prompt ends at the cut: so the text is cut there first.
    """
    bounds = [0, *row.cuts, len(row.text)]
    parts = [row.text[a:b] for a, b in pairwise(bounds)]
    ids: list[int] = []
    places = []
    for piece in _ids(parts, tokenizer):
        ids += piece
        places.append(len(ids))
    if tokenizer.decode(ids) != tokenizer.decode(whole):
        raise ValueError(
            f"row {number}: the tokenizer joins the assistant's first or last characters with the "
            "template's own, and writes other text when they are kept apart; change the row's text "
            "(leading or trailing white space is the usual cause)"
        )
    return ids, places[:-1]
