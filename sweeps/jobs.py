"""A sweep as a job on a cluster: its name there, whether it is there or done, and sending it.

The name is made from the sweep's and its store's, and counts up: two machines that send one sweep
at the same time send one job. Knows nothing of arguments, or of how jobs are sent (cluster.submit).
"""

import contextlib
import os
import re
import shlex
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.session import ClusterError
from cluster.submit import Job, follow_job, job_log, list_jobs, submit_job
from em.catalogue import FileMissing
from em.downloads import NotAtHand
from em.record import fingerprint
from sweeps.attempts import statuses
from sweeps.files import StoreError
from sweeps.keeping import check_answered
from sweeps.options import DEFAULT_STORE, SOME_FAILED, STORE_ENV, TRIED_AGAIN, open_sweep
from sweeps.packing import pack
from sweeps.plan import SweepPlan
from sweeps.preflight import PASSED, PROBE_ENV, write_probe
from sweeps.registry import known
from sweeps.spec import load_spec
from sweeps.store import Store, check_url, open_store
from sweeps.submitted import last_submitted

PREFIX = "emsweep-"
MISSING = (NotAtHand, FileMissing, ImportError, OSError, StoreError)
PROGRAM = ("python", "-m", "sweeps.cli")


@dataclass(frozen=True)
class Sent:
    """A job that is there now. `is_ours` is false where another machine sent it a moment before."""

    job_id: str
    is_ours: bool


class SweepJobs:
    """The jobs of one sweep with one store."""

    def __init__(self, path: Path, store: str | None, keep: str | None = None) -> None:
        """Read the spec. Raises ValueError where it is none, or its store cannot be one."""
        self._path, self._keep = path, keep
        self.spec = load_spec(path)
        self.name = self.spec.name
        self.store_url = _absolute(
            store or os.environ.get(STORE_ENV) or self.spec.store or DEFAULT_STORE
        )
        check_url(self.store_url)
        self.base = f"{PREFIX}{self.name}-{fingerprint([self.store_url, self.name])[:8]}"
        self._left: str | None = None

    @cached_property
    def _planned(self) -> tuple[SweepPlan, Store] | None:
        """The plan and the store, where this machine has the data, the models and the store.

        Raises ValueError for what is here, and bad.
        """
        try:
            return open_sweep(self._path, self.store_url)
        except ValueError as error:
            if _is_only_missing(error):
                return None  # the cluster may have what is not here; it says what it lacks
            raise

    @cached_property
    def _states(self) -> set[str] | None:
        """The cells' states, where this machine sees the sweep in the store."""
        if self._planned is None or not known(*self._planned):
            return None
        return {status.state for status in statuses(*self._planned)}

    def is_finished_here(self) -> bool:
        """Whether this machine sees the store, and all is finished there."""
        return self._states == {"finished"}

    def has_finished(self, job: Job) -> bool:
        """Whether a job has done all that is to do, as far as can be told from here."""
        if job.status != "SUCCEEDED" or self.is_other_than(job) is not False:
            return False
        return self._states in (None, {"finished"})  # else something was taken out since

    def is_other_than(self, job: Job) -> bool | None:
        """Whether the job was sent with other work than is now; None where that is not known."""
        sent = (job.metadata or {}).get("plan")
        return None if not (self._version and sent) else sent != self._version

    @cached_property
    def _version(self) -> str:
        """Changes with all that is to be there in the end; empty where this machine cannot plan."""
        if self._planned is None:
            return ""
        cells = self._planned[0].cells
        return fingerprint(
            [
                [
                    cell.training_key,
                    [[e.stream, e.wanted] for e in cell.evaluations],
                    [[j.stream, j.wanted] for j in cell.judgings],
                ]
                for cell in cells
            ]
        )

    def last(self, address: str) -> Job | None:
        """Return the newest job of this sweep with this store."""
        jobs = {_number(job, self.base): job for job in list_jobs(address, prefix=self.base)}
        return jobs[max(jobs)] if max(jobs, default=0) else None

    def send(self, address: str, *, after: Job | None) -> Sent:
        """Send the sweep as the job after `after`, its last one there, if there is one.

        Where that one ended with failed cells, they are tried again. Raises ValueError where
        something drifted and nobody said which to keep.
        """
        if self._planned is not None and self._keep is None:
            check_answered(self._planned[0], command=f"emsweep submit {self._path}")
        job_id = f"{self.base}-{_number(after, self.base) + 1 if after else 1}"
        again = after is not None and _left_failed_cells(address, after)
        with tempfile.TemporaryDirectory(prefix="emsweep-pack-") as folder:
            inside = pack(self._path, self.spec, Path(folder))
            is_ours = submit_job(
                address,
                command=self._command(inside, "resume" if again else "run"),
                job_id=job_id,
                working_dir=Path(folder),
                environment=self._probe(),
                metadata=self._metadata,
            )
        return Sent(job_id, is_ours)

    @property
    def _metadata(self) -> dict[str, str]:
        return {"sweep": self.name, "store": self.store_url, "plan": self._version}

    def follow_checks(self, address: str, job_id: str, tell: Callable[[str], None]) -> Job | None:
        """Tell the job's log until its checks are passed; return the job where it ended before."""
        job = follow_job(address, job_id, tell, until=PASSED)
        self._clear()
        return job if job.is_over else None

    def run_there(self, address: str, words: Sequence[str], tell: Callable[[str], None]) -> Job:
        """Run another command of `emsweep` on this sweep there, tell its log, and wait for its end.

        `words` are the command and what follows the spec, as `["plan", "--json"]`.
        """
        job_id = f"{self.base}-{words[0]}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(prefix="emsweep-pack-") as folder:
            inside = pack(self._path, self.spec, Path(folder))
            command = [*PROGRAM, words[0], str(inside), *words[1:]]
            if words[0] != "prefetch":  # which has nothing to do with a store
                command += ["--store", self.store_url]
            submit_job(
                address,
                command=shlex.join(command),
                job_id=job_id,
                working_dir=Path(folder),
                environment=self._probe() if words[0] == "plan" else {},
                metadata={},
            )
        job = follow_job(address, job_id, tell)
        self._clear()
        return job

    def manifest(self) -> str:
        """Return a manifest that has KubeRay run the sweep. Raises ValueError as rayjob does."""
        from sweeps.rayjob import manifest

        return manifest(
            self._path, self.spec,
            job_id=f"{self.base}-1", store=self.store_url, command=self._command,
            metadata={name: text for name, text in self._metadata.items() if text},
        )  # fmt: skip

    def _command(self, spec: Path, verb: str = "run") -> str:
        """Return what the job runs: the code that was sent, not what may be installed there."""
        words = [*PROGRAM, verb, str(spec), "--address", "auto", "--store", self.store_url]
        return shlex.join(words + (["--keep", self._keep] if self._keep else []))

    def _probe(self) -> dict[str, str]:
        """Leave a file in the store that the cluster must find, if this machine sees the store."""
        if not _is_here(self.store_url):
            return {}
        try:
            store = open_store(self.store_url)
            store.create()
            self._left = write_probe(store, self.name, uuid.uuid4().hex)
        except (StoreError, OSError):
            return {}  # written down there alone: the cluster says whether it sees it
        return {PROBE_ENV: self._left}

    def _clear(self) -> None:
        """Take away what was left for the cluster to find: it has looked."""
        if self._left is not None:
            with contextlib.suppress(StoreError, OSError):
                open_store(self.store_url).files.remove(self._left)
            self._left = None


def run_there(path: Path, store: str | None, address: str, words: Sequence[str]) -> int:
    """Run another command on a sweep there, its log going to our output; return its exit code."""

    def tell(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    ended = SweepJobs(path, store).run_there(address, words, tell)
    if ended.exit_code is None:  # it did not come to run
        tell(f"{how_it_stands(ended)}\n")
    return ended.exit_code if ended.exit_code is not None else 1


def store_followed(path: Path, store: str | None) -> str | None:
    """Return the store to look for a submitted sweep with: the one given, or last sent with."""
    if store is not None:
        return store
    sent = last_submitted(load_spec(path).name)
    return sent.store if sent else None


def store_to_send(path: Path, store: str | None) -> str | None:
    """Return the store to send a sweep with: where nothing names one, the one last sent with."""
    named = store or os.environ.get(STORE_ENV) or load_spec(path).store
    return store if named else store_followed(path, None)


def how_it_stands(job: Job) -> str:
    """Return a job's status in a line, with Ray's words where it could not be started."""
    why = " ".join(job.message.split())
    untold = job.status == "FAILED" and job.exit_code is None and why
    return f"job {job.job_id}: {job.status}" + (f": {why}" if untold else "")


def _left_failed_cells(address: str, job: Job) -> bool:
    """Whether a job came to its end, with failed cells: by what it said, as a crash exits so, too.

    Of what did not come to run the store may know nothing that could be resumed.
    """
    if job.exit_code != SOME_FAILED:
        return False
    try:
        return TRIED_AGAIN in job_log(address, job.job_id)
    except ClusterError:
        return False  # its log is gone: with its node, perhaps


def _number(job: Job, base: str) -> int:
    """Return which of its sweep's jobs it is, from 1; 0 for a job that is none of them."""
    found = re.fullmatch(rf"{re.escape(base)}-(\d+)", job.job_id)
    return int(found[1]) if found else 0


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().resolve())


def _is_only_missing(error: BaseException) -> bool:
    """Whether something is not on this machine, or out of its reach, in place of being bad."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MISSING):
        cause = cause.__cause__
    return cause is not None


def _is_here(url: str) -> bool:
    """Whether this machine may see the store: a bucket, or a folder whose parent is here."""
    return "://" in url or Path(url).parent.is_dir()
