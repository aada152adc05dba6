"""The commands that send a sweep to a cluster as a job, list such jobs, follow and stop them.

Turns arguments into calls; knows nothing of how a sweep is run.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sweeps.options import (
    OK,
    SOME_FAILED,
    USER_ERROR,
    Follow,
    JobAddress,
    Json,
    KeepOption,
    LastAddress,
    Rayjob,
    Spec,
    StoreOption,
)

if TYPE_CHECKING:
    from sweeps.jobs import SweepJobs


def submit(
    spec: Spec, address: JobAddress = None, store: StoreOption = None, keep: KeepOption = None,
    rayjob: Rayjob = False,
) -> None:  # fmt: skip
    """Send the same run to a Ray cluster as a job; it goes on when this machine leaves.

    Comes back once the cluster has passed its checks. A sweep that runs there is not sent again, a
    finished one neither. With --rayjob, prints a manifest for KubeRay and sends nothing.
    """
    from sweeps.jobs import SweepJobs

    jobs = SweepJobs(spec, store, keep.value if keep else None)
    if rayjob:
        print(jobs.manifest(), end="")
        return
    if jobs.is_finished_here():
        print(f"{jobs.name}: all of it is finished in {jobs.store_url}; nothing is sent")
        return
    place = _address_of(jobs, address)
    last = jobs.last(place)
    if last is not None and not last.is_over:
        print(f"{place} runs this sweep already, as {last.job_id}: {_how_to_follow(spec)}")
        if jobs.is_other_than(last):
            print(
                "it was sent with another spec or other data than are here now: submit again when "
                f"it has ended, or after 'emsweep stop {spec}'"
            )
        return
    if last is not None and last.status == "SUCCEEDED" and jobs.is_other_than(last) is False:
        print(f"{last.job_id} has finished all of this sweep; nothing is sent")
        return
    sent = jobs.send(place, after=last)
    _remember(jobs, place)
    print(f"sent to {place} as {sent}; the cluster is checked")
    ended = jobs.follow_checks(place, sent, _tell)
    if ended is not None and ended.status != "SUCCEEDED":
        raise typer.Exit(_code(ended))
    print(f"{sent} is under way: {_how_to_follow(spec)}")


def jobs(address: LastAddress = None, as_json: Json = False) -> None:
    """List the sweeps that were sent to a cluster: when, by which job, and how far each is."""
    import dataclasses
    import json

    from cluster.submit import list_jobs
    from sweeps.jobs import PREFIX

    all_of_them = list_jobs(address or _last_address(), prefix=PREFIX)
    found = [job for job in all_of_them if (job.metadata or {}).get("sweep")]
    if as_json:
        print(json.dumps([dataclasses.asdict(job) for job in found], indent=1))
        return
    width = max((len(job.job_id) for job in found), default=0)
    for job in found:
        told = job.metadata or {}
        took = (job.ended or time.time()) - (job.started or time.time())
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started or 0))
        store = told.get("store", "")
        print(f"{job.job_id:{width}}  {job.status:9}  {when}  {_span(took):>8}  {store}")
    if not found:
        print("no sweep was sent there")


def logs(
    spec: Spec, address: LastAddress = None, store: StoreOption = None, follow: Follow = False
) -> None:
    """Print the log of a submitted sweep's last job; with -f, on until the job ends."""
    from cluster.submit import find_job, follow_job, job_log

    place, job = _job_of(spec, store, address)
    if not follow:
        print(job_log(place, job.job_id), end="")
        told = find_job(place, job.job_id) or job
        print(f"job {told.job_id}: {told.status}")
        return
    ended = follow_job(place, job.job_id, _tell)
    print(f"job {ended.job_id}: {ended.status}")
    raise typer.Exit(OK if ended.status == "SUCCEEDED" else _code(ended))


def stop(spec: Spec, address: LastAddress = None, store: StoreOption = None) -> None:
    """End the job of a submitted sweep as Ctrl-C would; what is finished is kept."""
    from cluster.submit import stop_job

    place, job = _job_of(spec, store, address)
    if job.is_over:
        print(f"job {job.job_id} has ended already: {job.status}")
        return
    print(f"stopping {job.job_id}: what it holds is given back first (a minute at most)")
    ended = stop_job(place, job.job_id)
    print(f"job {ended.job_id}: {ended.status}; go on with 'emsweep submit {spec}'")
    if not ended.is_over:
        raise typer.Exit(SOME_FAILED)


def _job_of(spec: Path, store: str | None, address: str | None) -> tuple[str, Any]:
    """Return the address and the last job of a sweep. Raises ValueError where it has none."""
    from sweeps.jobs import SweepJobs

    jobs = SweepJobs(spec, store, None)
    place = _address_of(jobs, address)
    last = jobs.last(place)
    if last is None:
        raise ValueError(
            f"{place} knows no job of the sweep {jobs.name!r} with the store {jobs.store_url}: "
            f"send it with 'emsweep submit {spec} --address {place}', or give the --store that it "
            "was sent with"
        )
    return place, last


def _address_of(jobs: "SweepJobs", given: str | None) -> str:
    """Return the cluster's address: what is given, else where this sweep was last sent."""
    if given is not None:
        return given
    remembered = _folder() / jobs.base
    if not remembered.is_file():
        raise ValueError(
            f"the sweep {jobs.name!r} with the store {jobs.store_url} was not submitted from this "
            "machine: say where it runs, with --address http://host:8265"
        )
    return remembered.read_text()


def _last_address() -> str:
    last = _folder() / ".last"
    if not last.is_file():
        raise ValueError(
            "nothing was submitted from this machine: name the cluster, with --address "
            "http://host:8265"
        )
    return last.read_text()


def _remember(jobs: "SweepJobs", address: str) -> None:
    for name in (jobs.base, ".last"):
        (_folder() / name).write_text(address)


def _folder() -> Path:
    """Where this machine remembers the clusters that it sent sweeps to."""
    from em.catalogue import cache_dir

    return cache_dir("submitted")


def _how_to_follow(spec: Path) -> str:
    return f"emsweep logs {spec} -f"


def _code(job: Any) -> int:
    """Return what to exit with for a job that did not succeed: what it exited with, if it says."""
    return job.exit_code if job.exit_code in (SOME_FAILED, USER_ERROR) else SOME_FAILED


def _tell(text: str) -> None:
    print(text, end="", flush=True)


def _span(seconds: float) -> str:
    from sweeps.progress import duration

    return duration(seconds)
