"""Where the project's own configuration files, the mirror of public data and the cache are found.

Knows nothing of what the files hold.
"""

import os
from pathlib import Path

from em.told import short

DATA_ENV = "EMSWEEP_DATA"
MOST_NAME, MOST_PATH = 255, 2000  # bytes; file systems take 4096 with the folder before it
CACHE_ENV = "EMSWEEP_CACHE"


class FileMissing(ValueError):
    """No place that was looked into on this machine has the file or folder."""


def config_dir() -> Path:
    """Return the folder `configs`: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "configs"
    return beside if beside.is_dir() else here / "configs"


def data_mirror() -> Path | None:
    """Return the mirror folder that EMSWEEP_DATA names, or None. Raises ValueError if missing."""
    named = os.environ.get(DATA_ENV)
    if not named:
        return None
    mirror = Path(named).expanduser()
    if not mirror.is_dir():
        raise ValueError(f"{DATA_ENV}={named} is not a folder: correct it, or unset it to download")
    return mirror.resolve()


def cache_dir(*parts: str) -> Path:
    """Return a folder of the user's cache ($EMSWEEP_CACHE, else ~/.cache/em-sweeps), made."""
    root = os.environ.get(CACHE_ENV) or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "em-sweeps"
    )
    folder = Path(root).expanduser().joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def path_given(text: str | Path) -> Path:
    """Return the path that a user wrote, with ~ put in. Raises ValueError for what can be none."""
    try:
        encoded = os.fsencode(text)
        long = len(encoded) > MOST_PATH or max(map(len, encoded.split(b"/"))) > MOST_NAME
        if not encoded or long or b"\0" in encoded:
            raise ValueError(
                f"{short(str(text))} is no path: it is empty or too long, or has a NUL in it"
            )
        return Path(text).expanduser()
    except (UnicodeEncodeError, RuntimeError) as error:
        raise ValueError(f"{short(str(text))} is no path: {error}") from error


def find_file(name: str, *, relative_to: Path, kind: str) -> Path:
    """Return the file `name`: beside the spec, in the working folder, in the mirror or in configs/.

    `kind` is the folder looked into under the mirror and `configs/` (such as "questions").
    Raises FileMissing naming every place that was tried.
    """
    given = path_given(name)
    mirror = data_mirror()
    places = [relative_to / given, Path.cwd() / given]
    places += [mirror / kind / given, mirror / given] if mirror else []
    places += [config_dir() / kind / given, config_dir().parent / given]
    for place in places:
        if place.is_file():
            return place.resolve()
    tried = ", ".join(dict.fromkeys(str(place) for place in places))
    hint = "" if mirror else f" ({DATA_ENV}, a folder of public data, is not set)"
    raise FileMissing(f"no file {name!r}; tried {tried}{hint}")
