"""Sending a command to a Ray cluster as a job, and following its log.

Knows nothing of what the command does.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.session import ClusterError

# What a job needs of a checkout; never stores, data or environments.
EXCLUDES = [".git", ".venv", "emsweep-store", "**/__pycache__", "wandb", ".*_cache"]
POLL_S = 1.0
AGENT_TRIES = 60


def submit_job(
    address: str,
    *,
    command: str,
    job_id: str,
    working_dir: Path,
    environment: Mapping[str, str],
) -> str:
    """Send `command` to run in a copy of `working_dir` and return the job's id.

    `address` is the cluster's HTTP address (http://host:8265). Raises ClusterError where it does
    not answer, or where a job of this id is still there.
    """
    client = _client(address)
    runtime_env = {
        "working_dir": str(working_dir),
        "excludes": EXCLUDES,
        "env_vars": dict(environment),
    }
    with _told(f"{address} did not take the job {job_id}"):
        for _ in range(AGENT_TRIES):
            try:
                return str(
                    client.submit_job(
                        entrypoint=command, submission_id=job_id, runtime_env=runtime_env
                    )
                )
            except RuntimeError as error:
                if "No available agent" not in str(error):
                    raise
                time.sleep(POLL_S)  # the cluster is still starting
        raise RuntimeError(f"no node was ready to take it within {AGENT_TRIES * POLL_S:g} s")


@dataclass(frozen=True)
class Job:
    """A job on the cluster. `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    job_id: str
    status: str


def last_job(address: str, name: str) -> Job | None:
    """Return the newest job whose id is `name` and a time, or None."""
    client = _client(address)
    with _told(f"{address} does not tell its jobs"):
        found = [
            (job.start_time or 0, Job(job.submission_id, str(job.status.value)))
            for job in client.list_jobs()
            if job.submission_id
            and re.fullmatch(rf"{re.escape(name)}-\d{{8}}-\d{{6}}", job.submission_id)
        ]
    return max(found, key=lambda item: item[0])[1] if found else None


def job_status(address: str, job_id: str) -> str | None:
    """Return PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; None for a job that is not known."""
    client = _client(address)
    with _told(f"{address} does not tell about {job_id}"):
        try:
            return str(client.get_job_status(job_id).value)
        except RuntimeError as error:
            if "does not exist" in str(error):
                return None
            raise


def follow_job(address: str, job_id: str) -> Iterator[str]:
    """Yield the job's log, new text as it comes, until the job has ended."""
    client = _client(address)
    told = 0
    while True:
        ended = job_status(address, job_id) not in ("PENDING", "RUNNING")
        log = client.get_job_logs(job_id)
        if len(log) > told:
            yield log[told:]
            told = len(log)
        if ended:
            return
        time.sleep(POLL_S)


def _client(address: str) -> Any:
    if not address.startswith(("http://", "https://")):
        raise ClusterError(
            f"--address {address!r}: jobs go to the cluster's dashboard, such as http://host:8265"
        )
    from ray.job_submission import JobSubmissionClient

    with _told(f"no Ray dashboard answers at {address}"):
        return JobSubmissionClient(address)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn Ray's errors into a ClusterError, with the cure where the cluster wants a token."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"{what}: it wants another token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
            "RAY_AUTH_TOKEN_PATH) to the cluster's"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"{what}: {error}") from error
