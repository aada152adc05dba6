"""Whether a sweep is tracked, and the process that does it beside the driver.

The driver starts it, hears what it has to say, and waits for it at the end, for a bounded time.
Knows nothing of what is sent (see sweeps.publisher).
"""

import contextlib
import multiprocessing
import netrc
import os
import signal
import time
import urllib.parse
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from em.record import fingerprint
from sweeps.leases import HeldElsewhere, Holder, holding
from sweeps.plan import SweepPlan
from sweeps.settings import TrackingConfig
from sweeps.store import Store

# How long the driver waits for W&B, in seconds: before anything is trained, and after all is done.
START_S = 30.0
END_S = 60.0
LOOK_EVERY_S = 5.0
MOST_STARTS = 3  # of the process, where it is killed
PUBLIC = "https://api.wandb.ai"
OFFLINE_INSTEAD = "or write 'tracking: {mode: offline}' in the spec: 'emsweep sync' sends it later"

NOT_INSTALLED = "the package wandb is not installed: install em-sweeps[track]"

Say = Callable[[str], None]


def is_online(config: TrackingConfig) -> bool:
    """Whether runs are sent as they go."""
    return config.mode == "online" or (config.mode == "auto" and has_key())


def has_key() -> bool:
    """Whether there is a key for W&B: in the environment, or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", PUBLIC)).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def check_key_for(config: TrackingConfig) -> None:
    """Raise ValueError where runs are to be sent and there is no key to send them with."""
    if config.mode == "online" and not has_key():
        raise ValueError(
            "tracking: mode is online and there is no key for W&B: set WANDB_API_KEY, or run "
            f"'wandb login', {OFFLINE_INSTEAD}"
        )


class Tracking:
    """The process that tells W&B of a sweep, as its driver sees it; nothing, where it is off."""

    def __init__(
        self, plan: SweepPlan, store: Store, driver: str, say: Say, *, end_s: float = END_S
    ) -> None:
        """`driver` is in whose name the sweep's tracking is held: one process does it at a time."""
        self._end_s = end_s
        self._plan, self._store, self._driver, self._say = plan, store, driver, say
        self._online = is_online(plan.spec.tracking)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._starts = 0
        self._ended: bool | None = None
        self._refused: str | None = None

    def start(self) -> None:
        """Begin. Raises ValueError where the spec wants runs online and W&B refuses them."""
        config = self._plan.spec.tracking
        if config.mode == "off":
            return
        check_key_for(config)
        self._start()
        if not self._online:
            return
        until = time.monotonic() + START_S
        while self._pipe is not None and time.monotonic() < until:
            if self._hear(until - time.monotonic()):
                break
        if self._refused is None:
            return
        self._stop()
        told = f"W&B does not take this sweep: {self._refused}"
        if config.mode == "online":
            raise ValueError(f"{told}. Mend that, {OFFLINE_INSTEAD}")
        self._say(f"{told}. The cells go on without it; 'emsweep sync' tries again")

    @property
    def pid(self) -> int | None:
        """The id of the process, where there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def is_alive(self) -> bool:
        """Whether there is a process that runs."""
        return self._process is not None and self._process.is_alive()

    def look(self) -> None:
        """Say what there is to say; start the process again where it was killed."""
        while self._pipe is not None and self._pipe.poll(0):
            if not self._hear(0):
                break
        died = self._process is not None and not self.is_alive
        if died and self._refused is None and self._ended is None:
            self._process = None
            if self._starts < MOST_STARTS:
                self._start()

    def close(self, *, at_once: bool = False) -> None:
        """Have the rest sent, for a bounded time; with `at_once` for none."""
        if self._process is None:
            return
        if not at_once and self._send_end():
            if self._online:
                self._say(f"sending the rest to W&B, for {self._end_s:g} s at most")
            until = time.monotonic() + self._end_s
            while self._ended is None and self._pipe is not None and time.monotonic() < until:
                self._hear(max(0.0, until - time.monotonic()))
        if not self._ended and self._refused is None:
            self._say("not all was sent to W&B; the rest is in the store: 'emsweep sync' sends it")
        self._stop()

    def _send_end(self) -> bool:
        try:
            assert self._pipe is not None
            self._pipe.send("end")
        except OSError:
            return False
        return True

    def _start(self) -> None:
        self._starts += 1
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        given = (self._plan, self._store.url, self._online, self._driver, theirs)
        self._process = context.Process(target=publish, args=given, name="tracking", daemon=True)
        self._process.start()
        theirs.close()

    def _stop(self) -> None:
        if self.is_alive:
            self._process.terminate()
            self._process.join(5)
            if self.is_alive:
                self._process.kill()
        self._process = self._pipe = None

    def _hear(self, timeout: float) -> bool:
        """Take one message; return whether there was one that is not only to be said."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(timeout):
                return False
            kind, text = self._pipe.recv()
        except (EOFError, OSError):
            self._pipe = None
            return False
        if kind == "say":
            self._say(text)
            return False
        if kind == "refused":
            self._refused = text
        elif kind == "end":
            self._ended = text == "all"
        return True


# In the process -----------------------------------------------------------------------------------


def publish(plan: SweepPlan, url: str, online: bool, driver: str, pipe: Connection) -> None:
    """Tell W&B of the sweep until the driver has ended. The body of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to decide
    os.nice(19)  # whoever computes goes first
    store = Store(url)
    try:
        _publish(plan, store, online, Holder(driver, plan.spec.name), pipe)
    except (BrokenPipeError, EOFError):  # the driver was killed: the next one goes on
        os._exit(1)
    # W&B's own handlers would end open runs as finished.
    os._exit(0)


def _publish(plan: SweepPlan, store: Store, online: bool, holder: Holder, pipe: Connection) -> None:
    from sweeps.publisher import SHARE, Publisher
    from sweeps.wandb_runs import Refused, Unreachable, WandbRuns

    try:
        runs = WandbRuns(plan.spec.tracking, plan.spec.name, store.local_dir("."), online=online)
    except ImportError:
        pipe.send(("refused", NOT_INSTALLED))
        return
    publisher = Publisher(plan, store, runs, say=lambda text: pipe.send(("say", text)))
    with _alone(store, plan.spec.name, holder, pipe):
        try:
            if online:
                publisher.begin()
        except Refused as error:
            pipe.send(("refused", str(error)))
            return
        except Unreachable as error:
            publisher.lose(error)
        pipe.send(("ready", ""))
        ending = False
        while not ending:
            began = time.monotonic()
            publisher.look(last=False)
            took = time.monotonic() - began
            if pipe.poll(max(LOOK_EVERY_S, took / SHARE)):
                pipe.recv()
                ending = True
        pipe.send(("end", "all" if publisher.look(last=True) else "not all"))


def lease_key(sweep: str) -> str:
    """Return the key by which one process at a time tells W&B of a sweep."""
    return fingerprint(["tracking", sweep])


@contextlib.contextmanager
def _alone(store: Store, sweep: str, holder: Holder, pipe: Connection) -> Iterator[None]:
    """Hold the tracking of a sweep for the block: of two drivers one tells W&B."""
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(holding(store, [lease_key(sweep)], holder))
                break
            except HeldElsewhere:
                pipe.send(("ready", ""))
                if pipe.poll(LOOK_EVERY_S):
                    pipe.recv()
                    pipe.send(("end", "all"))  # the other driver's to send
                    os._exit(0)
        yield
