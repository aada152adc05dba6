"""Whether a sweep is tracked, and the process that does it beside the driver.

The driver starts it, hears what it has to say, and waits for it at the end, for a bounded time.
Knows nothing of what is sent (see sweeps.publisher).
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import psutil

from em.record import fingerprint
from sweeps.attempts import Beat
from sweeps.leases import HeldElsewhere, Holder, LeaseLost, Signs, holding
from sweeps.plan import SweepPlan
from sweeps.settings import TrackingConfig
from sweeps.store import Store
from sweeps.wandb_settings import has_key, mode_of

if TYPE_CHECKING:
    from sweeps.publisher import Publisher

# How long the driver waits for W&B, in seconds: before anything is trained, and after all is done.
START_S = 30.0
END_S = 60.0
STOP_S = 5.0  # after an interrupt
LOOK_EVERY_S = 5.0
SHARE = 0.1  # of the process's time that reading the store may take
MOST_STARTS = 3  # of the process within AGAIN_S, where it is killed
AGAIN_S = 3600.0
ELSEWHERE = "another driver of this sweep tells W&B of it"
OFFLINE_INSTEAD = "or write 'tracking: {mode: offline}' in the spec: 'emsweep sync' sends it later"

NOT_INSTALLED = "the package wandb is not installed: install em-sweeps[track]"

Say = Callable[[str], None]


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
        self._mode = mode_of(plan.spec.tracking)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._starts: list[float] = []
        self._ended: str | None = None
        self._refused: str | None = None
        self._begun = False

    def start(self) -> None:
        """Begin. Raises ValueError where the spec wants runs online and W&B refuses them."""
        config = self._plan.spec.tracking
        if self._mode == "off":
            return
        check_key_for(config)
        self._begun = True
        self._start()
        if self._mode != "online":
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
            self._hear(0)
        died = self._process is not None and not self.is_alive
        if died and self._refused is None and self._ended is None:
            self._process = self._pipe = None
            lately = [start for start in self._starts if time.monotonic() - start < AGAIN_S]
            if len(lately) < MOST_STARTS:
                self._start()

    def close(self, *, at_once: bool = False) -> None:
        """Have the rest sent, for a bounded time; with `at_once` for none."""
        if not self._begun:
            return
        self._begun = False
        if self._send("stop" if at_once else "end"):
            if self._mode == "online" and not at_once:
                self._say(f"sending the rest to W&B, for {self._end_s:g} s at most")
            until = time.monotonic() + (STOP_S if at_once else self._end_s)
            while self._ended is None and self._pipe is not None and time.monotonic() < until:
                self._hear(max(0.0, until - time.monotonic()))
        if self._ended == "elsewhere":
            self._say(ELSEWHERE)
        elif self._ended != "all" and self._refused is None:
            self._say("not all was sent to W&B; the rest is in the store: 'emsweep sync' sends it")
        self._stop()

    def _send(self, word: str) -> bool:
        try:
            if self._pipe is None:
                return False
            self._pipe.send(word)
        except OSError:
            return False
        return True

    def _start(self) -> None:
        self._starts.append(time.monotonic())
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        given = (self._plan, self._store.url, self._mode == "online", self._driver, theirs)
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
            self._ended = text
        return True


# In the process -----------------------------------------------------------------------------------


def publish(plan: SweepPlan, url: str, online: bool, driver: str, pipe: Connection) -> None:
    """Tell W&B of the sweep until the driver has ended. The body of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to decide
    signal.signal(signal.SIGTERM, lambda *_: _leave(1))
    os.nice(19)  # whoever computes goes first
    threading.Thread(target=_die_with_the_driver, daemon=True).start()
    try:
        _publish(plan, Store(url), online, Holder(driver, plan.spec.name), pipe)
    except (BrokenPipeError, EOFError, LeaseLost):  # another driver's process goes on
        _leave(1)
    _leave(0)


def _die_with_the_driver() -> None:
    """End at once, whatever is under way, where the driver was killed: the next one goes on.

    Both would tell W&B of the same runs.
    """
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        _leave(1)


def _leave(code: int) -> None:
    """End this process and W&B's own. Its handlers would end open runs as finished."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(code)


def _publish(plan: SweepPlan, store: Store, online: bool, holder: Holder, pipe: Connection) -> None:
    from sweeps.publisher import Publisher
    from sweeps.wandb_runs import Refused, Unreachable, WandbRuns

    with alone(store, plan.spec.name, holder, _waiting(pipe)) as check:
        try:
            runs = WandbRuns(
                plan.spec.tracking, plan.spec.name, store.local_dir("."), online=online
            )
        except ImportError:
            pipe.send(("refused", NOT_INSTALLED))
            return
        except Exception as error:  # noqa: BLE001  of whatever a broken installation raises
            pipe.send(("refused", f"the package wandb cannot be loaded: {error!r}"))
            return
        publisher = Publisher(
            plan, store, runs, say=lambda text: pipe.send(("say", text)), step=check
        )
        try:
            if online:
                publisher.begin()
        except Refused as error:
            pipe.send(("refused", str(error)))
            return
        except Unreachable as error:
            publisher.lose(error)
        pipe.send(("ready", ""))
        word = _follow(publisher, pipe)
        if word == "end":
            ended = "all" if publisher.look(last=True) else "not all"
        else:
            publisher.stop()
            ended = "stopped"
        runs.close()
        pipe.send(("end", ended))


def _follow(publisher: "Publisher", pipe: Connection) -> str:
    """Look again and again until the driver says a word."""
    while True:
        publisher.look(last=False)
        if pipe.poll(max(LOOK_EVERY_S, publisher.reading_s / SHARE)):
            return str(pipe.recv())


def lease_key(sweep: str) -> str:
    """Return the key by which one process at a time tells W&B of a sweep."""
    return fingerprint(["tracking", sweep])


@contextlib.contextmanager
def alone(
    store: Store, sweep: str, holder: Holder, wait: Callable[[HeldElsewhere], None]
) -> Iterator[Callable[[], None]]:
    """Hold the tracking of a sweep for the block: of two processes one tells W&B.

    `wait` is called again and again while another holds it, and may raise; who gives no sign of
    life is taken over from. Yields what raises LeaseLost once another holds it.
    """
    signs = Signs(store)
    with contextlib.ExitStack() as held:
        while True:
            try:
                check = held.enter_context(holding(store, [lease_key(sweep)], holder))
                break
            except HeldElsewhere as error:
                holder = replace(holder, dead=signs.dead([error.lease]))
                wait(error)
        yield check


def _waiting(pipe: Connection) -> Callable[[HeldElsewhere], None]:
    """Return what waits beside another driver's process until this driver ends."""

    def wait(error: HeldElsewhere) -> None:
        pipe.send(("ready", ""))
        if pipe.poll(LOOK_EVERY_S):
            pipe.recv()
            pipe.send(("end", "elsewhere"))
            _leave(0)

    return wait


def catch_up(plan: SweepPlan, store: Store, say: Say) -> None:
    """Send what W&B has not of a sweep with nothing left to do, for END_S seconds at most."""
    beat = Beat(store, plan.spec.name)
    tracking = Tracking(plan, store, beat.driver, say)
    try:
        tracking.start()
        tracking.close()
    finally:
        beat.close()
