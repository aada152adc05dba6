"""The commands that send a sweep to a cluster as a job, and follow it.

Knows nothing of how a sweep is run.
"""

import os
import shlex
import time
from pathlib import Path

import typer

from sweeps.options import (
    OK,
    SOME_FAILED,
    JobAddress,
    KeepOption,
    LastAddress,
    Spec,
    StoreOption,
    open_sweep,
)


def submit(
    spec: Spec, address: JobAddress, store: StoreOption = None, keep: KeepOption = None
) -> None:
    """Send the same run to a Ray cluster as a job; it goes on when this machine leaves."""
    from cluster.submit import last_job, submit_job
    from sweeps.keeping import check_answered

    sweep, target = open_sweep(spec, store, keep=keep)
    check_answered(sweep, command=f"emsweep submit {spec}")  # the job asks for its own packages
    root = Path.cwd().resolve()
    try:
        inside = spec.resolve().relative_to(root)
    except ValueError as error:
        raise ValueError(
            f"{spec} is not below the working folder {root}, which is what is sent: run the "
            "command from the project's folder"
        ) from error
    command = shlex.join(
        ["emsweep", "run", str(inside), "--address", "auto", "--store", target.url]
        + (["--keep", keep.value] if keep else [])
    )
    running = last_job(address, _job_name(sweep.spec.name))
    if running is not None and running.status in ("PENDING", "RUNNING"):
        raise ValueError(
            f"{address} runs this sweep already, as {running.job_id}: follow it with "
            f"'emsweep logs {spec} --address {address}'"
        )
    name = submit_job(
        address,
        command=command,
        job_id=f"{_job_name(sweep.spec.name)}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        working_dir=root,
        environment={k: v for k, v in os.environ.items() if k in ("EMSWEEP_DATA", "EMSWEEP_CACHE")},
    )
    _address_file(sweep.spec.name).write_text(address)
    print(f"submitted {name}: {command}\nfollow it: emsweep logs {spec}")


def logs(spec: Spec, address: LastAddress = None) -> None:
    """Follow the log of a submitted sweep until its job ends."""
    from cluster.submit import follow_job, job_status, last_job
    from sweeps.spec import load_spec

    sweep = load_spec(spec)
    remembered = _address_file(sweep.name)
    if address is None:
        if not remembered.is_file():
            raise ValueError(
                f"the sweep {sweep.name!r} was not submitted from this machine: say where it runs, "
                "with --address http://host:8265"
            )
        address = remembered.read_text()
    job = last_job(address, _job_name(sweep.name))
    if job is None:
        raise ValueError(f"{address} knows no job of this sweep: submit it first")
    for text in follow_job(address, job.job_id):
        print(text, end="", flush=True)
    ended = job_status(address, job.job_id)
    print(f"job {job.job_id}: {ended}")
    raise typer.Exit(OK if ended == "SUCCEEDED" else SOME_FAILED)


def _address_file(sweep: str) -> Path:
    """Where this machine remembers the cluster that it last sent the sweep to."""
    from em.catalogue import cache_dir

    return cache_dir("submitted") / sweep


def _job_name(sweep: str) -> str:
    return f"emsweep-{sweep}"
