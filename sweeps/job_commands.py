"""The commands that send a sweep to a cluster as a job, list such jobs, follow and stop them.

Turns arguments into calls; knows nothing of how a sweep is run.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sweeps.options import (
    INTERRUPTED,
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
    from cluster.submit import Job
    from sweeps.jobs import SweepJobs


def submit(
    spec: Spec, address: JobAddress = None, store: StoreOption = None, keep: KeepOption = None,
    rayjob: Rayjob = False,
) -> None:  # fmt: skip
    """Send the same run to a Ray cluster as a job; it goes on when this machine leaves.

    Comes back once the cluster has passed its checks. A sweep that runs there is not sent again, a
    finished one neither. With --rayjob, prints a manifest for KubeRay and sends nothing.
    """
    from sweeps.jobs import SweepJobs, store_to_send
    from sweeps.submitted import remember

    jobs = SweepJobs(spec, store_to_send(spec, store), keep.value if keep else None)
    if rayjob:
        print(jobs.manifest(), end="")
        return
    if jobs.is_finished_here():
        print(f"{jobs.name}: all of it is finished in {jobs.store_url}; nothing is sent")
        return
    place = _address_of(jobs, address)
    last = jobs.last(place)
    if last is not None and not last.is_over:
        remember(jobs.name, jobs.store_url, place)
        print(f"{place} runs this sweep already, as {last.job_id}: {_how_to_follow(spec)}")
        if jobs.is_other_than(last):
            print(
                "it was sent with another spec or other data than are here now: submit again when "
                f"it has ended, or after 'emsweep stop {spec}'"
            )
        return
    if last is not None and jobs.has_finished(last):
        print(f"{last.job_id} has finished all of this sweep; nothing is sent")
        return
    sent = jobs.send(place, after=last)
    remember(jobs.name, jobs.store_url, place)
    if sent.is_ours:
        print(f"sent to {place} as {sent.job_id}; the cluster is being checked")
    else:
        print(f"this sweep has just been sent to {place} by somebody else, as {sent.job_id}")
    with _it_goes_on(sent.job_id, spec):
        ended = jobs.follow_checks(place, sent.job_id, _tell)
    if ended is None:
        print(f"{sent.job_id} is under way: {_how_to_follow(spec)}")
        return
    _end(ended)


def jobs(address: LastAddress = None, as_json: Json = False) -> None:
    """List the sweeps that were sent to a cluster: as which job, how it stands, since when, where.

    Without --address, of the cluster that was last submitted to from here.
    """
    import dataclasses
    import json

    from cluster.submit import list_jobs
    from sweeps.jobs import PREFIX
    from sweeps.progress import duration

    all_of_them = list_jobs(address or _last_address(), prefix=PREFIX)
    found = [job for job in all_of_them if (job.metadata or {}).get("sweep")]
    if as_json:
        print(json.dumps([dataclasses.asdict(job) for job in found], indent=1))
        return
    width = max((len(job.job_id) for job in found), default=0)
    for job in found:
        now = time.time()
        took = duration((job.ended or now) - (job.started or now))
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started or now))
        store = (job.metadata or {}).get("store", "")
        print(f"{job.job_id:{width}}  {job.status:9}  {when}  {took:>8}  {store}")
    if not found:
        print("no sweep was sent there")


def logs(
    spec: Spec, address: LastAddress = None, store: StoreOption = None, follow: Follow = False
) -> None:
    """Print the log of a submitted sweep's last job; with -f, on until the job ends."""
    from cluster.submit import find_job, follow_job, job_log
    from sweeps.jobs import how_it_stands

    place, job = _job_of(spec, store, address)
    if not follow:
        print(job_log(place, job.job_id), end="")
        print(how_it_stands(find_job(place, job.job_id) or job))
        return
    with _it_goes_on(job.job_id, spec):
        ended = follow_job(place, job.job_id, _tell)
    _end(ended)


def stop(spec: Spec, address: LastAddress = None, store: StoreOption = None) -> None:
    """End the job of a submitted sweep as Ctrl-C would; what is finished is kept."""
    from cluster.submit import stop_job
    from sweeps.jobs import how_it_stands

    place, job = _job_of(spec, store, address)
    if job.is_over:
        print(f"{how_it_stands(job)}; it has ended already")
        return
    print(f"stopping {job.job_id}: what it holds is given back first (two minutes at most)")
    ended = stop_job(place, job.job_id)
    if not ended.is_over:
        print(f"job {ended.job_id} has not ended yet: {_how_to_follow(spec)}")
        raise typer.Exit(SOME_FAILED)
    print(f"{how_it_stands(ended)}; go on with 'emsweep submit {spec}'")


def _job_of(spec: Path, store: str | None, address: str | None) -> tuple[str, "Job"]:
    """Return the address and the last job of a sweep. Raises ValueError where it has none."""
    from sweeps.jobs import SweepJobs, store_followed

    jobs = SweepJobs(spec, store_followed(spec, store))
    place = _address_of(jobs, address)
    last = jobs.last(place)
    if last is None:
        raise ValueError(
            f"{place} knows no job of the sweep {jobs.name!r} with the store {jobs.store_url}: "
            f"send it with 'emsweep submit {spec} --address {place}', or give the --store that it "
            "was sent with ('emsweep jobs' shows it)"
        )
    return place, last


def _address_of(jobs: "SweepJobs", given: str | None) -> str:
    """Return the cluster's address: what is given, else where this sweep was last sent."""
    from sweeps.submitted import last_submitted

    sent = last_submitted(jobs.name, jobs.store_url)
    if given is None and sent is None:
        raise ValueError(
            f"the sweep {jobs.name!r} with the store {jobs.store_url} was not submitted from this "
            "machine: say where it runs, with --address http://host:8265"
        )
    return given or (sent.address if sent else "")


def _last_address() -> str:
    from sweeps.submitted import last_submitted

    sent = last_submitted()
    if sent is None:
        raise ValueError(
            "nothing was submitted from this machine: name the cluster, with --address "
            "http://host:8265"
        )
    return sent.address


def _how_to_follow(spec: Path) -> str:
    return f"follow it with 'emsweep logs {spec} -f', end it with 'emsweep stop {spec}'"


@contextlib.contextmanager
def _it_goes_on(job_id: str, spec: Path) -> Iterator[None]:
    """Say on Ctrl-C that only the following has ended."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on without us: {_how_to_follow(spec)}")
        raise typer.Exit(INTERRUPTED) from None


def _end(job: "Job") -> None:
    """Say how a job ended, and exit as it did: with its own code, if it says one of ours."""
    from sweeps.jobs import how_it_stands

    print(how_it_stands(job))
    if job.status != "SUCCEEDED":
        own = (SOME_FAILED, USER_ERROR, INTERRUPTED)
        raise typer.Exit(job.exit_code if job.exit_code in own else SOME_FAILED)


def _tell(text: str) -> None:
    print(text, end="", flush=True)
