"""Where a store can be: the back ends that one suite of tests is run over.

Knows nothing of what a store does there.
"""

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
