"""Weights that are kept in a bucket, on this machine's disk: fetched once, removed when unused.

Knows nothing of records, or of what the weights are used for.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path

from em.catalogue import cache_dir
from em.models import build_once
from sweeps.disk import sync
from sweeps.files import Files, StoreError
from sweeps.weights import weights_sha256

# Far longer than any one call of an engine takes, each of which counts as a use: a sweep of
# thousands of cells would fill the disk otherwise.
UNUSED_AFTER_S = 6 * 3600.0


def fetched(files: Files, path: str, sha256: str) -> Path:
    """Return a local folder with the weights at `path`, whose hash is `sha256`.

    They are fetched once per machine and user, by one process while others wait; others that
    nobody asked for within UNUSED_AFTER_S are removed then. Raises StoreError where they cannot be
    had, or are not those of the hash.
    """
    local = cache_dir("adapters") / sha256

    def fetch(folder: Path) -> None:
        files.fetch_folder(path, folder)
        found = weights_sha256(folder) if folder.is_dir() else "none"
        if found != sha256:
            raise StoreError(
                f"{files.url}/{path} has weights with the hash {found[:12]}…, its record says "
                f"{sha256[:12]}…; 'emsweep store check --repair' moves it aside, and the next run "
                "has it made again"
            )
        for file in folder.rglob("*"):
            sync(file)

    while True:
        if not local.is_dir():
            remove_unused(local.parent, UNUSED_AFTER_S)
            build_once(local, fetch)
        with contextlib.suppress(FileNotFoundError):  # another process removed it: once more
            os.utime(local)  # it is in use
            return local


def remove_unused(folder: Path, after_s: float) -> None:
    """Remove the weights in `folder` that were not used for `after_s` seconds, each at once."""
    for weights in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if weights.is_dir() and time.time() - weights.stat().st_mtime > after_s:
                aside = weights.with_name(f".{weights.name}.unused-{os.getpid()}")
                weights.rename(aside)
                if time.time() - aside.stat().st_mtime <= after_s:  # used in this very moment
                    aside.rename(weights)
                else:
                    shutil.rmtree(aside, ignore_errors=True)
