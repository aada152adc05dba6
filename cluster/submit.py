"""Commands as jobs on a Ray cluster, over its HTTP address: sent, listed, followed, stopped.

Knows nothing of what a command does.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cluster.session import ClusterError

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_S = 1.0
AGENT_TRIES = 60
RECONNECTS = 30  # in a row, of a log that is followed; a forwarded port breaks now and then
ANSWER_S = 15.0  # until an address counts as wrong; Ray's own client waits for minutes
MOST_TOLD = 300  # characters of a server's error
# Where these are set, Ray's client goes there, whatever address it is given.
OTHER_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Ray gives a stopped job three seconds, and then kills it: pools could not be taken down.
STOP_S = 90
REACH = (
    ". Is it the dashboard's address (http://host:8265), and is its port forwarded to this machine "
    "('ray dashboard FILE', 'kubectl port-forward service/NAME-head-svc 8265', 'ssh -L "
    "8265:127.0.0.1:8265 HOST')?"
)


@dataclass(frozen=True)
class Job:
    """A job on the cluster. `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.

    Times are seconds since 1970; `metadata` is what the job was sent with, `message` Ray's own.
    """

    job_id: str
    status: str
    started: float | None = None
    ended: float | None = None
    metadata: Mapping[str, str] | None = None
    message: str = ""
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self.status in ENDED


def submit_job(
    address: str,
    *,
    command: str,
    job_id: str,
    working_dir: Path,
    environment: Mapping[str, str],
    metadata: Mapping[str, str],
) -> bool:
    """Send `command` to run in a copy of `working_dir`; return whether this call did.

    It is false where a job of this id is there already: of several who send, one does.
    `address` is the cluster's HTTP address (http://host:8265). `environment` and `metadata` are
    shown to all who see its dashboard: no place for keys. Raises ClusterError where it does not
    answer or does not take the job.
    """
    client = _client(address)
    runtime_env = {
        "working_dir": str(working_dir),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)} | dict(environment),
    }
    with _told(f"{address} did not take the job {job_id}"):
        for _ in range(AGENT_TRIES):
            try:
                client.submit_job(
                    entrypoint=command,
                    submission_id=job_id,
                    runtime_env=runtime_env,
                    metadata=dict(metadata),
                )
                return True
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                if "No available agent" not in str(error):
                    raise
                time.sleep(POLL_S)  # the cluster is still starting
        raise RuntimeError(f"no node was ready to take it within {AGENT_TRIES * POLL_S:g} s")


def list_jobs(address: str, *, prefix: str) -> list[Job]:
    """Return the jobs whose id begins with `prefix`, the oldest first."""
    client = _client(address)
    with _told(f"{address} does not tell its jobs"):
        found = [_job(told) for told in client.list_jobs() if told.submission_id]
    named = [job for job in found if job.job_id.startswith(prefix)]
    return sorted(named, key=lambda job: (job.started or 0, job.job_id))


def find_job(address: str, job_id: str) -> Job | None:
    """Return a job, or None for one that is not known."""
    client = _client(address)
    with _told(f"{address} does not tell about {job_id}"):
        try:
            return _job(client.get_job_info(job_id))
        except RuntimeError as error:
            if "does not exist" in str(error):
                return None
            raise


def follow_job(
    address: str, job_id: str, tell: Callable[[str], None], *, until: str | None = None
) -> Job:
    """Give `tell` the job's log as it comes, until the job has ended; return it as it is then.

    With `until`, also until the log has a line with that in it. A connection that breaks is made
    anew, and nothing is told twice. Raises ClusterError where the cluster is gone for good.
    """
    client = _client(address)
    follower = _Follower(tell, until)
    tries, told = RECONNECTS, 0
    breaks: tuple[type[Exception], ...] = (RuntimeError, OSError, *_client_errors())
    while True:
        broken: Exception | None = None
        try:
            asyncio.run(follower.follow(client, job_id))
        except BrokenPipeError:  # of `tell`: nobody reads any more
            raise
        except breaks as error:
            broken = error
        if follower.num_told > told:  # it was a good connection for a while
            tries, told = RECONNECTS, follower.num_told
        try:
            job = find_job(address, job_id)
            if job is None:
                raise ClusterError(f"{address} knows no job {job_id} any more")
            # The log may end a moment before the job is known to have ended.
            if job.is_over or follower.found:
                return job
        except ClusterError:
            if not tries:
                raise
        if not tries and broken:
            raise ClusterError(f"{address}: the log of {job_id} broke off: {_brief(broken)}")
        tries -= bool(broken)
        time.sleep(POLL_S)


class _Follower:
    """Tells of a log what was not told yet."""

    def __init__(self, tell: Callable[[str], None], until: str | None) -> None:
        self._tell, self._until = tell, until
        self._line = ""
        self.num_told = 0  # characters
        self.found = False

    async def follow(self, client: Any, job_id: str) -> None:
        seen = 0
        async with contextlib.aclosing(client.tail_job_logs(job_id)) as pieces:
            async for text in pieces:
                new = text[max(0, self.num_told - seen) :]
                seen += len(text)
                self.num_told = max(self.num_told, seen)
                if new:
                    self._tell(new)
                    if self._is_last(new):
                        self.found = True
                        return

    def _is_last(self, new: str) -> bool:
        if self._until is None:
            return False
        *whole, self._line = (self._line + new).split("\n")
        return any(self._until in line for line in whole)


def job_log(address: str, job_id: str) -> str:
    """Return all that a job has printed until now."""
    client = _client(address)
    with _told(f"{address} does not give the log of {job_id}"):
        return str(client.get_job_logs(job_id))


def stop_job(address: str, job_id: str, *, wait_s: float = STOP_S + 30) -> Job:
    """Ask a job to end, as Ctrl-C would, and wait until it has; return it as it is then."""
    client = _client(address)
    with _told(f"{address} did not stop {job_id}"):
        client.stop_job(job_id)
    deadline = time.monotonic() + wait_s
    while True:
        job = find_job(address, job_id)
        if job is None or job.is_over or time.monotonic() > deadline:
            return job or Job(job_id, "STOPPED")
        time.sleep(POLL_S)


def _job(told: Any) -> Job:
    started, ended = told.start_time, told.end_time  # milliseconds
    return Job(
        job_id=str(told.submission_id),
        status=str(told.status.value if hasattr(told.status, "value") else told.status),
        started=started / 1000 if started else None,
        ended=ended / 1000 if ended else None,
        metadata=dict(told.metadata or {}),
        message=str(told.message or ""),
        exit_code=told.driver_exit_code,
    )


def is_dashboard(address: str) -> bool:
    """Whether an address is a dashboard's, which takes jobs, and not a cluster's to be joined."""
    return address.startswith(("http://", "https://"))


@cache
def _client(address: str) -> Any:
    if not is_dashboard(address):
        raise ClusterError(
            f"--address {address!r}: jobs go to the cluster's dashboard, such as http://host:8265"
        )
    try:
        import requests
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ClusterError(
            f"sending jobs needs Ray's client on this machine: pip install 'em-sweeps[train]' "
            f"({error})"
        ) from error
    for name in ("ray.dashboard", "ray._private.runtime_env", "ray.job_submission"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _told(f"no Ray dashboard answers at {address}", cure=REACH), _no_other_address():
        requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S)
        return JobSubmissionClient(address)


def _client_errors() -> tuple[type[Exception], ...]:
    """What Ray's client raises of its own kinds where the connection of a log breaks."""
    import aiohttp

    return (aiohttp.ClientError,)


@contextlib.contextmanager
def _no_other_address() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in OTHER_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ |= kept


@contextlib.contextmanager
def _told(what: str, *, cure: str = "") -> Iterator[None]:
    """Turn Ray's errors into a ClusterError, with the cure where the cluster wants a token."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"{what}: it wants another token, or one at all. Set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's ('ray get-auth-token' there "
            "prints it)"
        ) from error
    # A server that is no dashboard may answer with anything: hence the last two.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{what}: {_brief(error)}{cure}") from error


def _brief(error: Exception) -> str:
    """Return an error in one line; of a server's traceback only what was raised."""
    head, traced, trace = str(error).partition("Traceback (most recent call last)")
    if traced:
        last = [line for line in trace.splitlines() if line.strip(" .")]
        head += last[-1].strip() if last else traced
    told = " ".join(head.split()) or type(error).__name__
    return told if len(told) <= MOST_TOLD else told[: MOST_TOLD - 3] + "..."
