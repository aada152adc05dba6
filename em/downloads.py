"""Files fetched from an address into the user's cache, proved by their sha256.

Knows nothing of what the files hold.
"""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

DOWNLOAD_TIMEOUT_S = 60


class NotAtHand(ValueError):
    """What is named is known, but it is not on this machine and could not be fetched."""


def download(url: str, target: Path, *, sha256: str | None, what: str, instead: str) -> None:
    """Write what is at `url` to `target`, whole or not at all.

    `what` and `instead` are for the message: what it is, and what its user can do without the
    network. Raises NotAtHand where it cannot be fetched, ValueError where it has another sha256.
    """
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            data = response.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise NotAtHand(
            f"{what} could not be downloaded from {url} ({error}); {instead}"
        ) from error
    got = hashlib.sha256(data).hexdigest()
    if sha256 and got != sha256:
        raise ValueError(
            f"{url}: sha256 is {got}, expected {sha256}: the file there has changed; {instead}"
        )
    partial = target.with_suffix(f".{got[:8]}.part")
    partial.write_bytes(data)
    partial.replace(target)


def not_at_hand(error: BaseException) -> NotAtHand | None:
    """Return the NotAtHand that `error` is or was raised from, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, NotAtHand):
        cause = cause.__cause__
    return cause


Argument = TypeVar("Argument", bound=Hashable)
Found = TypeVar("Found")


def asked_once(find: Callable[[Argument], Found]) -> Callable[[Argument], Found]:
    """Return `find` with its results kept, ValueErrors too: what is far away is asked for once."""
    known: dict[Argument, Found | ValueError] = {}

    def remembered(argument: Argument) -> Found:
        if argument not in known:
            try:
                known[argument] = find(argument)
            except ValueError as error:
                known[argument] = error
        found = known[argument]
        if isinstance(found, ValueError):
            raise found
        return found

    return remembered
