"""Joining Ray: start one on this machine, or join a running cluster; leave no process behind.

Knows nothing of what is run there.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.resources import Demand, Totals

OBJECT_STORE_BYTES = 256 * 2**20  # what crosses processes is small: rows, answers
KILL_AFTER_S = 5.0
STOPS = (signal.SIGINT, signal.SIGTERM)


class ClusterError(ValueError):
    """The cluster cannot be joined."""


@contextlib.contextmanager
def session(address: str | None, *, environment: dict[str, str]) -> Iterator[Totals]:
    """Start Ray here, or join the cluster at `address`; yields what it has in all.

    `environment` is set in every worker. A Ray that was started here is ended on the way out with
    every process it left. Raises ClusterError where the address does not answer.
    """
    import ray
    from ray.exceptions import AuthenticationError

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    settings: dict[str, Any] = {
        "runtime_env": {"env_vars": environment},
        "logging_level": "warning",
        "log_to_driver": True,
    }
    try:
        if address is None:
            # Orphans of a killed worker (an engine's own process) are then ended by their raylet.
            os.environ.setdefault(
                "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper", "true"
            )
            # A worker that holds no GPU must not see one, or it would use one that another holds.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **settings,
            )
        else:
            ray.init(address=address, **settings)
    except AuthenticationError as error:
        raise ClusterError(
            f"Ray's token does not open {address or 'a Ray on this machine'}: "
            f"{str(error).split('. ')[0]}. Unset RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH (they are "
            "another cluster's), or set them to this one's"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            f"no Ray cluster could be joined at {address or 'this machine'}: {error}. Give "
            "--address host:port of a running cluster (ray start --head), or none to start one "
            "here"
        ) from error
    try:
        yield totals()
    finally:
        # A second Ctrl-C or SIGTERM during the clean-up would leave processes: hold it back.
        with _no_interrupt():
            # Looked up first: what outlives its parent is nobody's child any more.
            family = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
            ray.shutdown()
            if address is None:
                end(family)
            if threading.current_thread() is threading.main_thread():
                # Ray has the system forget how children end; who comes after wants to know.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def totals() -> Totals:
    """Return what the joined cluster has, in use or not."""
    import ray

    nodes = [
        (float(node["Resources"].get("CPU", 0)), float(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return Totals(nodes=tuple(nodes))


def request_room(demands: Sequence[Demand]) -> None:
    """Tell an autoscaler, if there is one, what is held and wanted; nothing ends its efforts."""
    from ray.autoscaler.sdk import request_resources

    pieces = [
        {"CPU": d.cpus} | ({"GPU": d.gpus} if d.gpus else {})
        for d in demands
        for _ in range(d.count)
    ]
    request_resources(bundles=pieces)


def local_totals() -> Totals:
    """Return what this machine alone would offer, without starting anything."""
    gpus = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))
    return Totals(nodes=((float(os.cpu_count() or 1), float(gpus)),))


def end(processes: list[psutil.Process]) -> None:
    """End those that still run: politely, and after KILL_AFTER_S by force."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=KILL_AFTER_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=KILL_AFTER_S)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals go to that one
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
