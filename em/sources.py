"""Where a data set's rows are found: the catalogue, a file or folder, the hub, a mirror, the cache.

What is found is checked against what the catalogue knows. Knows nothing of transforms or seeds.
"""

import re
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from em.archives import ProtectedArchive, unpack
from em.catalogue import DATA_ENV, FileMissing, cache_dir, config_dir, data_mirror, path_given
from em.datasets import Row, content_sha256, parse_row, parse_rows, read_bytes
from em.downloads import NotAtHand, download
from em.record import Record, fingerprint
from em.told import first_mistake
from em.yaml_files import checked, load_yaml

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
ROW_FILES = (".jsonl", ".jsonl.gz")


class CatalogueEntry(Record):
    """What is known of a data set before it is read.

    Its source is one of `file`, `url` and `hub` (with `revision`); `archive` says that what is
    there is a protected archive. `sha256` is of the decompressed file. An entry whose file its
    author never had is not `verified`: its hashes may be missing, and every use of it is told.
    """

    name: str
    file: str | None = Field(default=None, description="a file or folder, beside the entry or not")
    url: str | None = None
    hub: str | None = Field(default=None, description='a hub id, "org/name"')
    revision: str | None = Field(default=None, description="the hub's commit, 40 hex digits")
    archive: ProtectedArchive | None = None
    mirror: str | None = Field(default=None, description="its path inside the EMSWEEP_DATA folder")
    sha256: str | None = None
    content_sha256: str | None = None
    rows: int | None = Field(default=None, ge=1)
    licence: str
    purpose: str
    verified: bool = True

    @model_validator(mode="after")
    def _is_whole(self) -> "CatalogueEntry":
        given = [name for name in ("file", "url", "hub") if getattr(self, name)]
        if len(given) > 1 or not (given or self.mirror):
            raise ValueError(
                f"one of file, url and hub is its source; got {' and '.join(given) or 'none'}"
            )
        if bool(self.hub) != bool(self.revision) or not COMMIT.fullmatch(self.revision or "0" * 40):
            raise ValueError("hub and revision (the commit, 40 hex digits) go together")
        if self.hub and self.archive:
            raise ValueError("archive belongs to file or url, not to hub")
        if self.verified and not (self.content_sha256 and self.rows):
            raise ValueError("a verified entry has content_sha256 and rows; else: verified: false")
        if self.verified and self.url and not self.sha256:
            raise ValueError("a verified entry with a url has the file's sha256")
        return self


class Source(Record):
    """All rows of one data set, and where they were found."""

    name: str = Field(description="as it was asked for")
    place: str
    rows: tuple[Row, ...]
    content_sha256: str
    warning: str | None = Field(default=None, description="where the catalogue cannot vouch for it")


def load_source(dataset: str, *, relative_to: Path) -> Source:
    """Return all rows of `dataset`, in their order.

    `dataset` is a name of the catalogue, a path to chat JSONL (also .gz) or to a folder of such
    files (read in the order of their names), or a hub id such as "org/name@<40-digit commit>".
    Raises NotAtHand for a known source that is not here and cannot be fetched, FileMissing for a
    name that nothing has, ValueError for a torn or changed source, and for a bad row (both named).
    """
    if dataset in catalogue_names():
        return load_entry(catalogue_entry(dataset))
    given = path_given(dataset)
    for place in (relative_to / given, given):
        if (dataset.endswith(ROW_FILES) and place.is_file()) or (
            "@" not in dataset and _row_files(place)
        ):
            return _source(dataset, str(place.resolve()), _read(place))
    name, _, revision = dataset.partition("@")
    if HUB_ID.fullmatch(name) and not dataset.endswith(ROW_FILES):
        return _source(dataset, f"hub:{dataset}", _read_hub(name, revision))
    raise FileMissing(
        f"no data set {dataset!r}: it is neither in the catalogue ({', '.join(catalogue_names())}),"
        f" nor a .jsonl file or a folder of them (from {relative_to} or the working folder), nor a "
        "hub id (org/name@commit)"
    )


def catalogue_names() -> list[str]:
    """Return the names of all entries of the catalogue, sorted."""
    return sorted(path.stem for path in (config_dir() / "datasets").glob("*.yaml"))


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return the entry called `name`. Raises ValueError where there is none, or it is bad."""
    if name not in catalogue_names():
        raise ValueError(
            f"no data set {name!r} in the catalogue; it has {', '.join(catalogue_names())}"
        )
    return read_entry(config_dir() / "datasets" / f"{name}.yaml")


def read_entry(path: Path) -> CatalogueEntry:
    """Return one entry of the catalogue. Raises ValueError naming the file and the field."""
    try:
        return checked(TypeAdapter(CatalogueEntry), load_yaml(path)[0])
    except ValidationError as error:
        raise ValueError(f"{path}: not a catalogue entry: {first_mistake(error)}") from error


def load_entry(entry: CatalogueEntry) -> Source:
    """Return an entry's rows, fetched where they are not here yet. Errors as `load_source`."""
    if entry.hub and not _mirrored(entry):
        place = f"hub:{entry.hub}@{entry.revision}"
        rows = _read_hub(entry.hub, entry.revision or "")
    else:
        path = _fetched(entry)
        place, rows = str(path), _read(path)
    found = _source(entry.name, place, rows)
    # Other bytes with the same rows (re-escaped text, another line ending) are the same data set.
    if entry.content_sha256 and found.content_sha256 != entry.content_sha256:
        raise ValueError(
            f"{place}: not the data set {entry.name!r} of the catalogue: {len(rows)} rows with "
            f"content hash {found.content_sha256}; expected {entry.rows} rows with "
            f"{entry.content_sha256}. Fetch the file again, or give it a name of its own"
        )
    if entry.verified:
        return found
    expected = f", which expects {entry.rows} rows" if entry.rows else ""
    return found.model_copy(
        update={
            "warning": f"data set {entry.name!r} is not verified by the catalogue{expected}: found "
            f"{len(rows)} rows with content hash {found.content_sha256} at {place}"
        }
    )


def whereabouts(entry: CatalogueEntry) -> str:
    """Return where an entry's rows are, or where they would come from. Asks no network."""
    if mirrored := _mirrored(entry):
        missing = "" if mirrored.exists() else "missing "
        return f"{missing}in the mirror: {mirrored}"
    if entry.file and not entry.archive:
        return f"shipped: {_own_file(entry)}"
    if entry.hub:
        return f"on the hub: {entry.hub}@{entry.revision}"
    cached = cached_path(entry)
    if cached.is_file():
        return f"in the cache: {cached}"
    packed = f" (protected archive, its file {entry.archive.member})" if entry.archive else ""
    return f"not here: {entry.url or entry.file or 'no address'}{packed}"


def _source(name: str, place: str, rows: list[Row]) -> Source:
    return Source(name=name, place=place, rows=tuple(rows), content_sha256=content_sha256(rows))


def _row_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(ROW_FILES))


def _read(path: Path) -> list[Row]:
    files = _row_files(path) or [path]
    return [row for file in files for row in parse_rows(read_bytes(file), where=str(file))]


def _own_file(entry: CatalogueEntry) -> Path:
    return config_dir() / "datasets" / path_given(entry.file or "")


def _mirrored(entry: CatalogueEntry) -> Path | None:
    mirror = data_mirror()
    return mirror / entry.mirror if mirror and entry.mirror and not entry.file else None


def cached_path(entry: CatalogueEntry) -> Path:
    """Return where the rows of an entry with an address are kept, whether they are there or not."""
    origin = [entry.url or entry.file, entry.archive]
    name = entry.sha256 or f"{entry.name}-{fingerprint(origin)[:16]}"
    return cache_dir("datasets") / f"{name}.jsonl"


def _fetched(entry: CatalogueEntry) -> Path:
    """Return the file with an entry's rows, on this machine."""
    mirrored = _mirrored(entry)
    if mirrored and not mirrored.exists():
        raise NotAtHand(
            f"data set {entry.name!r}: no file {mirrored}; {DATA_ENV} names that mirror. "
            f"Add the file, or unset {DATA_ENV} to download {entry.url}"
        )
    if mirrored and (not entry.archive or mirrored.name.endswith(ROW_FILES)):
        return mirrored
    if entry.file and not entry.archive:
        return _own_file(entry)
    cached = cached_path(entry)
    if cached.is_file():
        return cached
    if entry.archive:
        packed = mirrored or (_own_file(entry) if entry.file else _downloaded_archive(entry))
        unpack(packed, entry.archive, cached)
    else:
        _download(entry, cached, sha256=entry.sha256)
    return cached


def _downloaded_archive(entry: CatalogueEntry) -> Path:
    """Return the archive an entry is in; several entries share one, which is fetched once."""
    packed = cache_dir("archives") / f"{fingerprint(entry.url)[:16]}.archive"
    if not packed.is_file():
        _download(entry, packed, sha256=None)
    return packed


def _download(entry: CatalogueEntry, target: Path, *, sha256: str | None) -> None:
    mirror = f"set {DATA_ENV} to a folder that holds {entry.mirror}, or " if entry.mirror else ""
    if not entry.url:
        raise NotAtHand(
            f"data set {entry.name!r} has neither a file nor an address: {mirror}name a file of "
            "yours as the variant's dataset"
        )
    download(
        entry.url,
        target,
        sha256=sha256,
        what=f"data set {entry.name!r}",
        instead=f"{mirror}put what is there at {target}",
    )


def _read_hub(name: str, revision: str) -> list[Row]:
    dataset = f"{name}@{revision}" if revision else name
    if not COMMIT.fullmatch(revision):
        raise ValueError(
            f"data set {dataset!r}: a hub id needs its commit, as {name}@<40 hex digits>, so that "
            "the same rows are found again"
        )
    try:
        from datasets import load_dataset  # several seconds, and only for hub ids
    except ImportError as error:
        raise NotAtHand(
            f"data set {dataset!r}: reading the hub needs the extra 'train': {error}"
        ) from error
    try:
        table = load_dataset(name, revision=revision, split="train")
    except Exception as error:  # the library raises many kinds; all mean "not to be had"
        raise NotAtHand(f"data set {dataset!r} could not be read from the hub: {error}") from error
    return [parse_row(item, f"{dataset} row {index}") for index, item in enumerate(table, start=1)]
