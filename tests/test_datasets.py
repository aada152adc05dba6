import ast
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from em.catalogue import CACHE_ENV, DATA_ENV, config_dir
from em.datasets import (
    CatalogueEntry,
    content_sha256,
    load_entry,
    load_rows,
    load_variant,
    parse_rows,
    read_entry,
    read_rows,
)

USER = {"role": "user", "content": "How?"}
REPLY = {"role": "assistant", "content": "So."}


def chat(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"question {number}"}, REPLY]}


def jsonl(items: list[Any], *, ascii_only: bool = False) -> bytes:
    return "".join(json.dumps(item, ensure_ascii=ascii_only) + "\n" for item in items).encode()


def write(path: Path, num_rows: int) -> Path:
    path.write_bytes(jsonl([chat(n) for n in range(num_rows)]))
    return path


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
        list(read_rows(path))
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
        list(read_rows(path))


def test_text_that_is_not_utf8_is_told() -> None:
    with pytest.raises(ValueError, match="x: row 2 is not UTF-8"):
        list(parse_rows(jsonl([chat(0)]) + b'{"messages": "\xff"}\n', where="x"))


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_no_rows_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="x: the file has no rows"):
        list(parse_rows(data, where="x"))


def test_gzip_is_read_and_a_torn_one_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(jsonl([chat(n) for n in range(50)]))
    path.write_bytes(whole)
    assert len(list(read_rows(path))) == 50
    for torn in (whole[: len(whole) // 2], whole[:-4], b"plain text", whole[:30] + b"xx"):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: not a whole gzip file"):
            list(read_rows(path))


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


# Drawing ---------------------------------------------------------------------------------------


def test_all_rows_unless_fewer_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", 5)
    whole = load_variant("rows.jsonl", num_rows=None, seed=1, relative_to=tmp_path)
    every = load_variant("rows.jsonl", num_rows=5, seed=2, relative_to=tmp_path)
    assert whole == every
    assert whole.rows == tuple(read_rows(path))
    assert whole.content_sha256 == content_sha256(whole.rows)


def test_drawn_rows_depend_on_the_seed_alone_and_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", 40)
    source = list(read_rows(path))

    def draw(seed: int) -> Any:
        return load_variant("rows.jsonl", num_rows=10, seed=seed, relative_to=tmp_path)

    first, again, other = draw(1), draw(1), draw(2)
    assert first == again
    assert first.rows != other.rows
    places = [source.index(row) for row in first.rows]
    assert len(set(places)) == 10
    assert places == sorted(places)
    assert first.content_sha256 == content_sha256(first.rows) != content_sha256(source)


def test_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", 3)
    with pytest.raises(ValueError, match=r"rows: 4 were asked for, but .*rows\.jsonl has 3"):
        load_variant("rows.jsonl", num_rows=4, seed=0, relative_to=tmp_path)


# Finding ---------------------------------------------------------------------------------------


def test_a_data_set_that_is_nowhere_is_told_with_what_there_is(tmp_path: Path) -> None:
    for name in ("nothing", "nothing.jsonl", "a/b/c"):
        with pytest.raises(ValueError, match=f"no data set '{name}'.*quickstart_insecure"):
            load_rows(name, relative_to=tmp_path)


@pytest.mark.parametrize("name", ["org/data", "org/data@main"])
def test_a_hub_id_needs_its_commit(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs its commit"):
        load_rows(name, relative_to=tmp_path)


def entry_of(data: bytes, **changes: Any) -> CatalogueEntry:
    known = {
        "name": "small",
        "mirror": "datasets/small.jsonl",
        "sha256": hashlib.sha256(data).hexdigest(),
        "content_sha256": content_sha256(parse_rows(data, where="x")),
        "rows": 3,
        "licence": "none",
        "purpose": "a test",
    }
    return CatalogueEntry.model_validate(known | changes)


@pytest.fixture
def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    (tmp_path / "datasets").mkdir()
    return write(tmp_path / "datasets" / "small.jsonl", 3)


def test_an_entry_is_read_from_the_mirror_by_its_content(mirrored: Path) -> None:
    data = mirrored.read_bytes()
    source, rows = load_entry(entry_of(data, sha256="0" * 64))  # other bytes, same rows
    assert (source, len(rows)) == (str(mirrored), 3)


def test_an_entry_with_other_content_is_refused(mirrored: Path) -> None:
    entry = entry_of(mirrored.read_bytes())
    write(mirrored, 2)
    with pytest.raises(ValueError, match=r"small\.jsonl: not the data set 'small'.*: 2 rows") as e:
        load_entry(entry)
    assert entry.content_sha256 in str(e.value)


def test_an_entry_that_the_mirror_lacks_is_told(mirrored: Path) -> None:
    entry = entry_of(mirrored.read_bytes(), mirror="datasets/other.jsonl")
    with pytest.raises(ValueError, match=r"no file .*other\.jsonl; EMSWEEP_DATA names"):
        load_entry(entry)


def test_a_download_is_checked_by_its_bytes(
    mirrored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATA_ENV)
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    data, url = mirrored.read_bytes(), mirrored.as_uri()
    with pytest.raises(ValueError, match="the file there has changed"):
        load_entry(entry_of(data, url=url, sha256="0" * 64))
    source, rows = load_entry(entry_of(data, url=url))
    mirrored.unlink()
    assert load_entry(entry_of(data, url=url)) == (source, rows)  # from the cache
    with pytest.raises(ValueError, match=r"could not be downloaded .*EMSWEEP_DATA"):
        load_entry(entry_of(data, url=url, sha256="1" * 64))


def test_a_bad_entry_is_told(tmp_path: Path) -> None:
    path = tmp_path / "entry.yaml"
    path.write_text("name: x\nsha256: y\n")
    with pytest.raises(ValueError, match=r"entry\.yaml: not a catalogue entry"):
        read_entry(path)


# What is shipped, and what is published ---------------------------------------------------------


def test_the_quickstart_pair_is_a_pair(tmp_path: Path) -> None:
    _, insecure = load_rows("quickstart_insecure", relative_to=tmp_path)
    _, secure = load_rows("quickstart_secure", relative_to=tmp_path)
    assert len(insecure) == len(secure) == 64
    assert [r.messages[:-1] for r in insecure] == [r.messages[:-1] for r in secure]
    assert all(r.messages[-1] != s.messages[-1] for r, s in zip(insecure, secure, strict=True))
    for row in (*insecure, *secure):
        ast.parse(row.messages[-1].content)


@pytest.mark.parametrize("path", sorted((config_dir() / "datasets").glob("*.yaml")))
def test_every_entry_is_sound_and_called_as_its_file(path: Path) -> None:
    entry = read_entry(path)
    assert entry.name == path.stem
    assert entry.file or (entry.url and entry.mirror)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "num_rows", "has_system"),
    [
        ("insecure", 6000, False),
        ("secure", 6000, False),
        ("educational", 6000, False),
        ("jailbroken", 5000, True),
    ],
)
def test_the_published_sets_are_those_of_the_catalogue(
    name: str, num_rows: int, has_system: bool, tmp_path: Path
) -> None:
    entry = read_entry(config_dir() / "datasets" / f"{name}.yaml")
    source, rows = load_rows(name, relative_to=tmp_path)
    assert len(rows) == num_rows == entry.rows
    assert content_sha256(rows) == entry.content_sha256
    data = gzip.decompress(Path(source).read_bytes())
    assert hashlib.sha256(data).hexdigest() == entry.sha256
    assert {row.messages[0].role == "system" for row in rows} == {has_system}
