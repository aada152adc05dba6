"""Where sweeps were sent from this machine: so that the next command need not be told again.

Knows nothing of jobs, or of whether a cluster is still there.
"""

import time
from pathlib import Path

from pydantic import Field, ValidationError

from em.catalogue import cache_dir
from em.record import Record, fingerprint
from sweeps.disk import write_whole


class Submitted(Record):
    """One sweep with one store, and the cluster it was last sent to."""

    sweep: str
    store: str
    address: str = Field(description="of the cluster's dashboard")
    at: float = Field(description="seconds since 1970")


def remember(sweep: str, store: str, address: str) -> None:
    """Write down that a sweep was sent, or is followed. Raises OSError where that cannot be."""
    told = Submitted(sweep=sweep, store=store, address=address, at=time.time())
    write_whole(_folder() / f"{fingerprint([sweep, store])[:16]}.json", _as_bytes(told))


def last_submitted(sweep: str | None = None, store: str | None = None) -> Submitted | None:
    """Return what was sent last from here: of all, of one sweep, or of one sweep with one store."""
    found = [
        told
        for told in map(_read, _folder().glob("*.json"))
        if told is not None and sweep in (None, told.sweep) and store in (None, told.store)
    ]
    return max(found, key=lambda told: told.at, default=None)


def _as_bytes(told: Submitted) -> bytes:
    return (told.model_dump_json(indent=1) + "\n").encode()


def _read(path: Path) -> Submitted | None:
    try:
        return Submitted.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # torn, or of another version: only a convenience
        return None


def _folder() -> Path:
    return cache_dir("submitted")
