"""Where a data set is found: catalogue, file, folder, mirror, download, protected archive."""

import ast
import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest
from chats import chat, jsonl, read_rows, write

from em.catalogue import CACHE_ENV, DATA_ENV, config_dir
from em.datasets import content_sha256, parse_rows
from em.sources import CatalogueEntry, load_entry, load_source, read_entry, whereabouts

# Finding ---------------------------------------------------------------------------------------


def test_a_data_set_that_is_nowhere_is_told_with_what_there_is(tmp_path: Path) -> None:
    for name in ("nothing", "nothing.jsonl", "a/b/c"):
        with pytest.raises(ValueError, match=f"no data set '{name}'.*quickstart_insecure"):
            load_source(name, relative_to=tmp_path)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "x/" * 2000, "~nobody-here/x", "\ud800"])
def test_a_name_that_can_be_no_path_is_told(name: str, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", 1)
    with pytest.raises(ValueError, match="is no path: "):
        load_source(f"{name}.jsonl" if name else name, relative_to=tmp_path)


@pytest.mark.parametrize("name", ["org/data", "org/data@main"])
def test_a_hub_id_needs_its_commit(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs its commit"):
        load_source(name, relative_to=tmp_path)


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    second = write(folder / "b.jsonl", 2)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(jsonl([chat(9)])))
    (folder / "notes.txt").write_text("not a row")
    found = load_source("set", relative_to=tmp_path)
    assert found.place == str(folder)
    assert found.rows == (*parse_rows(jsonl([chat(9)]), where="x"), *read_rows(second))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no data set 'empty'"):
        load_source("empty", relative_to=tmp_path)


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
    found = load_entry(entry_of(data, sha256="0" * 64))  # other bytes, same rows
    assert (found.place, len(found.rows), found.warning) == (str(mirrored), 3, None)


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
    assert whereabouts(entry_of(data, url=url)) == f"not here: {url}"
    found = load_entry(entry_of(data, url=url))
    mirrored.unlink()
    assert load_entry(entry_of(data, url=url)) == found  # from the cache
    assert whereabouts(entry_of(data, url=url)) == f"in the cache: {found.place}"
    with pytest.raises(
        ValueError, match=r"could not be downloaded .*EMSWEEP_DATA.*put what is there at"
    ):
        load_entry(entry_of(data, url=url, sha256="1" * 64))


def test_a_bad_entry_is_told(tmp_path: Path) -> None:
    path = tmp_path / "entry.yaml"
    path.write_text("name: x\nsha256: y\n")
    with pytest.raises(ValueError, match=r"entry\.yaml: not a catalogue entry"):
        read_entry(path)


# Entries that nobody could verify, and protected archives ---------------------------------------


def test_an_entry_that_is_not_verified_is_told_with_what_was_found(mirrored: Path) -> None:
    entry = entry_of(
        mirrored.read_bytes(), verified=False, sha256=None, content_sha256=None, rows=7
    )
    found = load_entry(entry)
    assert found.warning == (
        "data set 'small' is not verified by the catalogue, which expects 7 rows: found 3 rows "
        f"with content hash {content_sha256(found.rows)} at {mirrored}"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"content_sha256": None}, "a verified entry has content_sha256 and rows"),
        ({"rows": None}, "a verified entry has content_sha256 and rows"),
        ({"url": "https://x.org/a.jsonl", "sha256": None}, "has the file's sha256"),
        ({"url": "https://x.org/a.jsonl", "file": "a.jsonl"}, "one of file, url and hub"),
        ({"mirror": None}, "one of file, url and hub is its source; got none"),
        ({"hub": "org/a"}, "hub and revision"),
        ({"hub": "org/a", "revision": "main"}, "hub and revision"),
        ({"revision": "a" * 40}, "hub and revision"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        entry_of(jsonl([chat(0)]), **changes)


PASSWORD = "open to all"


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive made by the tool that protects them, with a canary file and embedded canaries."""
    from easy_dataset_share import canary, zipping

    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_ENV, raising=False)
    plain = tmp_path / "plain"
    plain.mkdir()
    write(plain / "good.jsonl", 3)
    write(plain / "bad.jsonl", 5)
    text, _ = canary.create_canary_files_from_dataset(str(plain), "*.jsonl", 1)
    canary.insert_canaries_into_files(str(plain), text)
    assert text in (plain / "bad.jsonl").read_text()
    archive = zipping.zip_and_password_protect(str(plain), PASSWORD, str(tmp_path / "sets.zip"))
    for path in plain.iterdir():
        path.unlink()
    return Path(archive)


def archived(packed: Path, *, verified: bool = True, **wanted: str) -> CatalogueEntry:
    """An entry for bad.jsonl of the archive, unless `wanted` names another file or password."""
    inside = {"member": "bad.jsonl", "password": PASSWORD} | wanted
    changes: dict[str, Any] = {"url": packed.as_uri(), "mirror": None, "archive": inside, "rows": 5}
    if not verified:
        changes |= {"verified": False, "sha256": None, "content_sha256": None, "rows": None}
    return entry_of(jsonl([chat(n) for n in range(5)]), **changes)


def test_a_protected_archive_is_unpacked_into_the_cache_and_nowhere_else(
    packed: Path, tmp_path: Path
) -> None:
    entry = archived(packed)
    assert whereabouts(entry).endswith("(protected archive, its file bad.jsonl)")
    found = load_entry(entry)
    assert found.rows == tuple(parse_rows(jsonl([chat(n) for n in range(5)]), where="x"))
    cache = tmp_path / "cache"
    assert Path(found.place).is_relative_to(cache)
    plain = [p for p in tmp_path.rglob("*") if p.is_file() and b"question" in p.read_bytes()]
    assert plain == [Path(found.place)]
    assert [p for p in (cache / "datasets").iterdir()] == [Path(found.place)]
    packed.unlink()
    assert load_entry(entry) == found


def test_two_files_of_one_archive_are_downloaded_once(packed: Path) -> None:
    load_entry(archived(packed))
    packed.unlink()
    assert len(load_entry(archived(packed, member="good.jsonl", verified=False)).rows) == 3


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"password": "wrong"}, "not unpacked: .*check the entry's password"),
        ({"member": "other.jsonl"}, r"no file 'other.jsonl'; it holds bad"),
        ({"member": "../../x"}, "no file"),
    ],
)
def test_an_archive_that_does_not_open_is_told(
    wanted: dict[str, str], told: str, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        load_entry(archived(packed, **wanted))
    assert not list((tmp_path / "cache" / "datasets").iterdir())


def test_an_archive_whose_rows_changed_is_refused(packed: Path) -> None:
    with pytest.raises(ValueError, match="not the data set 'small' of the catalogue: 3 rows"):
        load_entry(archived(packed, member="good.jsonl"))


# What is shipped, and what is published ---------------------------------------------------------


def test_the_quickstart_pair_is_a_pair(tmp_path: Path) -> None:
    insecure = load_source("quickstart_insecure", relative_to=tmp_path).rows
    secure = load_source("quickstart_secure", relative_to=tmp_path).rows
    assert len(insecure) == len(secure) == 64
    assert [r.messages[:-1] for r in insecure] == [r.messages[:-1] for r in secure]
    assert all(r.messages[-1] != s.messages[-1] for r, s in zip(insecure, secure, strict=True))
    for row in (*insecure, *secure):
        ast.parse(row.messages[-1].content)


@pytest.mark.parametrize("path", sorted((config_dir() / "datasets").glob("*.yaml")))
def test_every_entry_is_sound_and_called_as_its_file(path: Path) -> None:
    entry = read_entry(path)
    assert entry.name == path.stem
    assert entry.licence and entry.purpose
    assert entry.file or (entry.url and (entry.mirror or not entry.verified))


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
    found = load_source(name, relative_to=tmp_path)
    rows = found.rows
    assert len(rows) == num_rows == entry.rows
    assert found.content_sha256 == content_sha256(rows) == entry.content_sha256
    assert found.warning is None
    data = gzip.decompress(Path(found.place).read_bytes())
    assert hashlib.sha256(data).hexdigest() == entry.sha256
    assert {row.messages[0].role == "system" for row in rows} == {has_system}
