"""Ray nodes that have addresses of their own on one machine, and that can be lost whole.

Each is in a network namespace beside the machine's own network, on one bridge, as machines are on a
network: what listens on one's loopback is not there for the others. Needs root. Knows nothing of
what runs on the nodes.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.sweep_runs import dashboard_answers

BRIDGE, NETWORK = "emsweep0", "10.77.0"
RAY = str(Path(sys.executable).with_name("ray"))
START_S = 120
HEAD_ADDRESS, GCS_PORT, DASHBOARD_PORT = f"{NETWORK}.1", 6390, 8275


class NoNamespaces(RuntimeError):
    """This machine, or this user, cannot make them."""


class Nodes:
    """A Ray cluster of a head, in the machine's own network, and nodes in namespaces."""

    def __init__(self, number: int, cpus: int) -> None:
        """Start nothing yet. Raises NoNamespaces where there can be none."""
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "NO_PROXY": "*",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.dashboard = f"http://127.0.0.1:{DASHBOARD_PORT}"
        self._cpus = cpus
        self._folder = Path(tempfile.mkdtemp(prefix="emn"))  # of sockets, whose names must be short
        self._names = [f"emsweep{n}" for n in range(1, number + 1)]
        self._roots: dict[str, psutil.Process] = {}
        try:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("address", "add", f"{HEAD_ADDRESS}/24", "dev", BRIDGE)
            _ip("link", "set", BRIDGE, "up")
            for n, name in enumerate(self._names, start=2):
                _connect(name, f"{NETWORK}.{n}")
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise NoNamespaces(str(error)) from error

    def start(self) -> None:
        """Start Ray on all of them; fails where they are not together within START_S."""
        self._start("head", HEAD_ADDRESS, [
            "--head", f"--port={GCS_PORT}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={DASHBOARD_PORT}",
        ])  # fmt: skip
        deadline = time.monotonic() + START_S
        while not dashboard_answers(self.dashboard):
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.5)
        for n, name in enumerate(self._names, start=2):
            to_head = f"--address={HEAD_ADDRESS}:{GCS_PORT}"
            self._start(name, f"{NETWORK}.{n}", [to_head])
        while not all(self.workers("raylet", name) for name in self._names):
            assert time.monotonic() < deadline, "a node did not come up"
            time.sleep(0.5)

    def _start(self, name: str, address: str, arguments: list[str]) -> None:
        inside = ["ip", "netns", "exec", name] if name in self._names else []
        # All have this machine's host name, by which gloo would look for its own address.
        interface = {"GLOO_SOCKET_IFNAME": "eth0" if inside else BRIDGE}
        with (self._folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [
                    *inside, RAY, "start", "--block", "--disable-usage-stats",
                    f"--node-ip-address={address}", f"--num-cpus={self._cpus}", "--num-gpus=0",
                    f"--temp-dir={self._folder}/{name}",
                    f"--object-store-memory={128 * 2**20}", *arguments,
                ],
                env=os.environ | self.environment | interface, start_new_session=True,
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._roots[name] = psutil.Process(child.pid)

    def workers(self, title: str, name: str) -> list[psutil.Process]:
        """The processes of a node whose command line has `title` in it."""
        found = []
        for process in self._all(name):
            with contextlib.suppress(psutil.Error):
                if any(title in word for word in process.cmdline()):
                    found.append(process)
        return found

    def with_worker(self, title: str) -> list[str]:
        """The nodes, by name, that have such a process; the head is none of them."""
        return [name for name in self._names if self.workers(title, name)]

    def _all(self, name: str) -> list[psutil.Process]:
        pids = _ip("netns", "pids", name).split()
        return [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]

    def lose(self, name: str) -> None:
        """Have a node be gone at once: its network, and everything that runs on it."""
        _ip("-n", name, "link", "set", "eth0", "down")
        for process in self._all(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        """End everything, and take the network down."""
        for root in self._roots.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                below = [root, *root.children(recursive=True)]
                os.killpg(root.pid, signal.SIGTERM)
                psutil.wait_procs(below, timeout=5)
                for process in below:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        for name in self._names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                for process in self._all(name):
                    process.kill()
                _ip("netns", "delete", name)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip("link", "delete", BRIDGE)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def ray_nodes(number: int, cpus: int) -> Iterator[Nodes]:
    """Yield a running cluster of a head and `number` nodes. Raises NoNamespaces."""
    nodes = Nodes(number, cpus)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.close()


def _connect(name: str, address: str) -> None:
    _ip("netns", "add", name)
    _ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", f"to-{name}", "master", BRIDGE)
    _ip("link", "set", f"to-{name}", "up")
    for words in (
        ("link", "set", "lo", "up"),
        ("address", "add", f"{address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", HEAD_ADDRESS),
    ):
        _ip("-n", name, *words)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
