"""Joining Ray where it cannot be joined: one paragraph, whatever Ray raises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOIN = """
from cluster.session import ClusterError, session
try:
    with session(None, environment={}):
        print("joined")
except ClusterError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_token_of_a_cluster_that_is_gone(tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"} | token
    done = subprocess.run(
        [sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert "RAY_AUTH_TOKEN_PATH" in done.stdout and "Unset" in done.stdout
    assert "joined" not in done.stdout
