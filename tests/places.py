"""The kinds of root that a store may have in a test. Knows nothing of what is stored there."""

import uuid
from pathlib import Path

import pytest

PLACES = ["folder", "memory", pytest.param("s3", marks=pytest.mark.slow)]
BUCKETS = PLACES[1:]


def place_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a root that is not there yet, on one of PLACES."""
    if kind == "s3":
        request.getfixturevalue("s3")
    name = uuid.uuid4().hex
    return {
        "folder": str(tmp_path / "root"),
        "memory": f"memory://{name}/store",
        "s3": f"s3://stores/{name}/store",
    }[kind]
