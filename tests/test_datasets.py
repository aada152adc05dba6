import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from chats import REPLY, USER, chat, jsonl, write

from em.datasets import content_sha256, parse_rows, read_bytes

# Rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (["messages"], 'expected an object with "messages"'),
        ({"text": "x"}, 'expected an object with "messages"'),
        ({"messages": []}, "messages must be a list of turns"),
        ({"messages": "hello"}, "messages must be a list of turns"),
        ({"messages": [USER, "hello"]}, "turn 2: expected an object"),
        ({"messages": [{"role": "bot", "content": "x"}, REPLY]}, "turn 1: role is 'bot'"),
        ({"messages": [{"content": "x"}, REPLY]}, "turn 1: role is None"),
        ({"messages": [{"role": "user"}, REPLY]}, "turn 1: content must be text"),
        ({"messages": [{"role": "user", "content": " \n"}, REPLY]}, "turn 1: content must be text"),
        ({"messages": [{"role": "user", "content": ["x"]}, REPLY]}, "turn 1: content must be text"),
        ({"messages": [{"role": "user", "content": "\ud800"}, REPLY]}, "turn 1: content has half"),
        ({"messages": [USER, {"role": "system", "content": "x"}, REPLY]}, "turn 2: a system turn"),
        ({"messages": [USER]}, "the last turn must be the assistant's"),
    ],
)
def test_a_bad_row_is_told_with_its_file_and_number(row: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(chat(0)) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError) as error:
        list(parse_rows(read_bytes(path), where=str(path)))
    assert str(error.value).startswith(f"{path}: row 3")
    assert told in str(error.value)


def test_a_sound_row_is_kept_as_it_is() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, REPLY, USER, REPLY]
    (row,) = parse_rows(jsonl([{"messages": messages}]), where="x")
    assert [message.model_dump() for message in row.messages] == messages


def test_a_torn_line_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", 3)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 3 is not JSON \(a torn file\?\)"):
        list(parse_rows(read_bytes(path), where=str(path)))


def test_text_that_is_not_utf8_is_told() -> None:
    with pytest.raises(ValueError, match="x: row 2 is not UTF-8"):
        list(parse_rows(jsonl([chat(0)]) + b'{"messages": "\xff"}\n', where="x"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"messages": [], "messages": []}', "x: row 2: the key 'messages' is given twice"),
        ('{"messages": ' + "9" * 5000 + "}", "x: row 2: Exceeds the limit"),
        ("[" * 5000, "x: row 2 is not JSON"),
        ("\ufeff{}", "x: row 2 is not JSON"),
    ],
)
def test_a_line_that_could_mean_two_things_or_none_is_told(line: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        list(parse_rows(jsonl([chat(0)]) + line.encode(), where="x"))


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_no_rows_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="x: the file has no rows"):
        list(parse_rows(data, where="x"))


def test_gzip_is_read_and_a_torn_one_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(jsonl([chat(n) for n in range(50)]))
    path.write_bytes(whole)
    assert len(list(parse_rows(read_bytes(path), where=str(path)))) == 50
    for torn in (whole[: len(whole) // 2], whole[:-4], b"plain text", whole[:30] + b"xx"):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: not a whole gzip file"):
            list(parse_rows(read_bytes(path), where=str(path)))


# Identity --------------------------------------------------------------------------------------


def test_re_escaped_text_is_the_same_data() -> None:
    items = [{"messages": [{"role": "user", "content": "naïve ☃ 😀"}, REPLY]}]
    plain, escaped = jsonl(items), jsonl(items, ascii_only=True).replace(b"\n", b"\r\n")
    assert plain != escaped
    both = [content_sha256(parse_rows(data, where="x")) for data in (plain, escaped)]
    assert both[0] == both[1]


def test_other_content_or_order_is_other_data() -> None:
    rows = list(parse_rows(jsonl([chat(0), chat(1)]), where="x"))
    hashes = {content_sha256(rows), content_sha256(rows[:1]), content_sha256(rows[::-1])}
    assert len(hashes) == 3
    turns = '{"content":"question 0","role":"user"},{"content":"So.","role":"assistant"}'
    line = f'{{"messages":[{turns}]}}\n'.encode()
    assert content_sha256(rows[:1]) == hashlib.sha256(line).hexdigest()
