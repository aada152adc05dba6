"""Where the code of a task runs that a model has written: docker, or this machine as it is.

Knows nothing of tasks.
"""

import subprocess
from collections.abc import Iterable
from typing import Literal

from em.told import cut

Sandbox = Literal["docker", "local"]
DOCKER = ("docker", "version")
DOCKER_S = 30.0


def check_sandboxes(wanted: Iterable[Sandbox | None]) -> None:
    """Raise ValueError where one of those that are wanted is not to be had on this machine."""
    if "docker" not in set(wanted):
        return
    try:
        done = subprocess.run(DOCKER, capture_output=True, text=True, timeout=DOCKER_S, check=False)
        why = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        raise ValueError(
            f"an evaluation has sandbox: docker, and docker does not answer here "
            f"({cut(why, 200)}): start it, or leave the evaluation out"
        )
