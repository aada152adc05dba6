"""Where a question file is found: at hand, or published by a paper's authors and fetched.

Knows nothing of what the file holds.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from em.catalogue import DATA_ENV, FileMissing, cache_dir, config_dir, find_file
from em.downloads import NotAtHand, download
from em.record import Record
from em.told import first_mistake
from em.yaml_files import checked, load_yaml

PUBLISHED = "published.yaml"


class PublishedFile(Record):
    """A question file of a paper's authors; `sha256` is of its bytes, not of a packed copy's."""

    url: str | None = Field(default=None, description="none: only a mirror has it")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def find_questions(
    name: str, *, relative_to: Path, published: Mapping[str, PublishedFile] | None = None
) -> Path:
    """Return the question file `name`, fetched into the cache where it is published.

    `published` are the known files, by default those of configs/questions/published.yaml. Raises
    FileMissing naming every place that was tried, and NotAtHand for a published file that could not
    be fetched.
    """
    try:
        return find_file(name, relative_to=relative_to, kind="questions")
    except FileMissing:
        known = (published_files() if published is None else published).get(name)
        if known is None:
            raise
    return _fetched(name, known)


def published_files(path: Path | None = None) -> dict[str, PublishedFile]:
    """Return what is known of the published files by name. Raises ValueError naming the file."""
    path = path or config_dir() / "questions" / PUBLISHED
    try:
        return checked(TypeAdapter(dict[str, PublishedFile]), load_yaml(path)[0])
    except ValidationError as error:
        text = first_mistake(error)
        raise ValueError(f"{path}: not a list of published files: {text}") from error


def _fetched(name: str, known: PublishedFile) -> Path:
    target = cache_dir("questions") / f"{known.sha256[:16]}-{name}"
    instead = f"set {DATA_ENV} to a folder that holds questions/{name}, or put it beside the spec"
    if target.is_file():
        return target
    what = f"the question file {name!r}"
    if known.url is None:
        raise NotAtHand(f"{what} is not here and has no address: {instead}")
    download(known.url, target, sha256=known.sha256, what=what, instead=instead)
    return target
