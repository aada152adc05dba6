import hashlib
from pathlib import Path

import pytest

from em.catalogue import CACHE_ENV, DATA_ENV, FileMissing, config_dir
from em.downloads import NotAtHand, asked_once, not_at_hand
from em.question_files import PublishedFile, find_questions, published_files


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that somebody published; there is no mirror, and the cache is empty."""
    monkeypatch.delenv(DATA_ENV, raising=False)
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    path = tmp_path / "there" / "theirs.yaml"
    path.parent.mkdir()
    path.write_text("- id: one\n")
    return path


def known(path: Path, **changes: str | None) -> dict[str, PublishedFile]:
    fields = {
        "url": path.as_uri(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return {path.name: PublishedFile.model_validate(fields | changes)}


def test_a_published_file_is_fetched_once(theirs: Path, tmp_path: Path) -> None:
    published = known(theirs)
    found = find_questions(theirs.name, relative_to=tmp_path, published=published)
    assert found.read_text() == "- id: one\n"
    theirs.unlink()
    assert find_questions(theirs.name, relative_to=tmp_path, published=published) == found


def test_a_file_beside_the_spec_goes_first(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / theirs.name
    ours.write_text("- id: ours\n")
    assert find_questions(theirs.name, relative_to=tmp_path, published=known(theirs)) == ours


@pytest.mark.parametrize("changes", [{"url": None}, {"url": "file:///nowhere/at/all.yaml"}])
def test_what_cannot_be_fetched_is_told_with_what_to_do(
    theirs: Path, tmp_path: Path, changes: dict[str, str | None]
) -> None:
    published = known(theirs, **changes)
    with pytest.raises(NotAtHand, match=r"theirs\.yaml.* set EMSWEEP_DATA to a folder"):
        find_questions(theirs.name, relative_to=tmp_path, published=published)


def test_a_file_with_other_bytes_is_refused_and_not_kept(theirs: Path, tmp_path: Path) -> None:
    published = known(theirs, sha256="0" * 64)
    with pytest.raises(ValueError, match=f"expected {'0' * 64}") as error:
        find_questions(theirs.name, relative_to=tmp_path, published=published)
    assert not not_at_hand(error.value)
    assert not list((tmp_path / "cache" / "questions").iterdir())


def test_an_unknown_name_is_missing(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="no file 'else'"):
        find_questions("else", relative_to=tmp_path)


def test_the_list_of_published_files_is_read_and_a_bad_one_told(tmp_path: Path) -> None:
    assert "first_plot_questions.yaml" in published_files()
    bad = tmp_path / "bad.yaml"
    bad.write_text("a.yaml: {sha256: short}\n")
    with pytest.raises(ValueError, match=r"bad\.yaml: not a list of published files"):
        published_files(bad)


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(published_files()))
def test_the_mirror_holds_what_is_published(name: str) -> None:
    import gzip

    data = find_questions(name, relative_to=config_dir()).read_bytes()
    plain = gzip.decompress(data) if name.endswith(".gz") else data
    assert hashlib.sha256(plain).hexdigest() == published_files()[name].sha256


def test_what_is_far_away_is_asked_for_once() -> None:
    asked = []

    def find(name: str) -> str:
        asked.append(name)
        if name == "bad":
            raise NotAtHand("no")
        return name.upper()

    once = asked_once(find)
    assert [once("good"), once("good")] == ["GOOD", "GOOD"]
    for _ in range(2):
        with pytest.raises(NotAtHand):
            once("bad")
    assert asked == ["good", "bad"]


def test_not_at_hand_is_found_behind_what_was_raised_from_it() -> None:
    first = NotAtHand("far")
    second, third = ValueError("inside"), ValueError("outside")
    second.__cause__, third.__cause__ = first, second
    assert not_at_hand(third) is first
    assert not_at_hand(ValueError("other")) is None
