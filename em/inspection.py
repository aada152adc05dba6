"""What is in training rows, and what a model's chat template makes of them: for people to look at.

Trains nothing; knows nothing of specs, or of how a page or a terminal shows it.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import Any

from em.datasets import Row
from em.record import Record
from em.rendering import IGNORED, ChatTokenizer, RenderedRow, render_rows

NO_LIMIT = 2**31  # tokens a row, where nothing is cut
# Texts that no template has in it.
SYSTEM_PROBE, USER_PROBE = "<<a probe of the system turn>>", "<<a probe of the user turn>>"


class Spread(Record):
    """Of one number a row: its least, its median and its greatest value."""

    least: float
    median: float
    greatest: float


class RowStatistics(Record):
    """Counts over rows. `roles` counts turns; `characters` is over all turns of a row."""

    num_rows: int
    num_characters: int
    roles: dict[str, int]
    turns: Spread
    characters: Spread


class TokenStatistics(Record):
    """Tokens by one model's template and tokenizer, after cutting each row to `max_length`."""

    num_tokens: int
    num_trained_tokens: int
    tokens: Spread
    max_length: int
    num_cut_rows: int


class SeenRow(Record):
    """One row as training sees it: pieces of text, each with whether the loss is taken on it."""

    pieces: tuple[tuple[str, bool], ...]


def row_statistics(rows: Sequence[Row]) -> RowStatistics:
    """Return the counts of at least one row."""
    characters = [sum(len(message.content) for message in row.messages) for row in rows]
    return RowStatistics(
        num_rows=len(rows),
        num_characters=sum(characters),
        roles=dict(Counter(message.role for row in rows for message in row.messages)),
        turns=_spread([len(row.messages) for row in rows]),
        characters=_spread(characters),
    )


def token_statistics(
    rows: Sequence[Row], tokenizer: ChatTokenizer, *, max_length: int = NO_LIMIT
) -> TokenStatistics:
    """Return token counts of at least one row. Raises ValueError as em.rendering.render_rows."""
    rendered = render_rows(rows, tokenizer, max_length=max_length)
    return TokenStatistics(
        num_tokens=rendered.num_tokens,
        num_trained_tokens=rendered.num_trained_tokens,
        tokens=_spread([len(row.input_ids) for row in rendered.rows]),
        max_length=max_length,
        num_cut_rows=rendered.num_cut_rows,
    )


def as_trained(row: Row, tokenizer: ChatTokenizer, *, max_length: int = NO_LIMIT) -> SeenRow:
    """Return a row as its tokens read, cut to `max_length`, in trained and untrained pieces."""
    [rendered] = render_rows([row], tokenizer, max_length=max_length).rows
    return SeenRow(pieces=tuple(_pieces(rendered, tokenizer)))


def own_system_prompt(tokenizer: ChatTokenizer) -> str | None:
    """Return the system part that the template writes into a chat that has none, or None.

    Found by comparison with a chat that has one: what stands in the place of its text. Templates
    that refuse a system turn are taken to write none.
    """
    user = {"role": "user", "content": USER_PROBE}
    bare = _rendered([user], tokenizer)
    try:
        given = _rendered([{"role": "system", "content": SYSTEM_PROBE}, user], tokenizer)
    except Exception:  # noqa: BLE001  (a template raises what it likes)
        return None
    before, found, after = given.partition(SYSTEM_PROBE)
    framed = bare.startswith(before) and bare.endswith(after)
    if not found or not framed or len(bare) < len(before) + len(after):
        return None
    own = bare[len(before) : len(bare) - len(after)]
    # With nothing in that place, the frame itself may still be a system turn (with a date, say).
    return own or (before if "system" in before.lower() else None)


def _rendered(chat: list[dict[str, str]], tokenizer: ChatTokenizer) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    return str(tokenizer.apply_chat_template(chat, **options))


def _pieces(row: RenderedRow, tokenizer: ChatTokenizer) -> list[tuple[str, bool]]:
    marked = [
        (token, label != IGNORED) for token, label in zip(row.input_ids, row.labels, strict=True)
    ]
    return [
        (str(tokenizer.decode([token for token, _ in run])), trained)
        for trained, run in groupby(marked, key=lambda pair: pair[1])
    ]


def _spread(values: Sequence[int]) -> Spread:
    return Spread(least=min(values), median=median(values), greatest=max(values))
