"""Who works on an artefact now: a lease with an owner, void once the owner has ended.

Two drivers (of one sweep, or of two that share cells) share the work by them: who holds the lease
of a key makes its artefact, the other waits for it. Leases only save work. An owner that was taken
for dead and is not finds its lease gone and stops; what it wrote meanwhile is at most repeated, as
every artefact is counted by its key. Knows nothing of what an artefact is.

    leases/<key>/<number>.json     taken by creating the next number, which only one can do
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from em.record import Record
from sweeps.artefacts import DriverBeat
from sweeps.files import StoreError
from sweeps.store import KEY_DIGITS, Store

LOST_AFTER_S = 60.0
LOOK_S = 1.0


class Lease(Record):
    """One driver's hold on one key. Its sign of life is the driver's (see sweeps.attempts)."""

    key: str
    number: int
    driver: str
    sweep: str


class HeldElsewhere(Exception):
    """Another driver, alive as far as is known, holds what was asked for."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"driver {lease.driver} of the sweep {lease.sweep!r} works on it")
        self.lease = lease


class LeaseLost(Exception):
    """The lease was taken over: its owner was taken for dead. The work is another's now."""


@dataclass(frozen=True)
class Holder:
    """In whose name leases are taken; `dead` are drivers that it has seen no sign of for long."""

    driver: str
    sweep: str
    dead: frozenset[str] = frozenset()


# For who works on a store alone, such as a notebook: its leases bind nobody else.
ALONE = Holder(driver="alone", sweep="alone")


def place_of_process() -> str:
    """Return what two processes share that can see each other's process ids.

    The first process namespace has one number on every machine, and machines of one image one name:
    what tells them apart is the id of their boot.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"


def process_ticks(pid: int) -> int | None:
    """Return when a process here began, in clock ticks since boot; None where it has ended.

    See proc(5). Seconds since 1970 would not do: they are told from a clock that may jump.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])  # a zombie has ended


@contextmanager
def holding(store: Store, keys: Sequence[str], holder: Holder) -> Iterator[Callable[[], None]]:
    """Hold all `keys` for the block, or raise HeldElsewhere and hold none.

    Yields what raises LeaseLost once one of them is another's: asked before a record is written,
    and of any error in the block, as a late owner's files are moved away under it.
    """
    with ExitStack() as held:
        taken = []
        for key in sorted(set(keys)):
            taken.append(_take(store, key, holder))
            held.callback(_give_back, store, taken[-1], holder)

        def check() -> None:
            for lease in taken:
                now = _newest(store, lease.key)
                if now is None or now.driver != lease.driver:
                    raise LeaseLost(f"{lease.key[:12]} was taken over")

        try:
            yield check
        except LeaseLost:
            raise
        except Exception:
            with suppress(OSError, StoreError):
                check()
            raise


def held_elsewhere(store: Store, key: str, holder: Holder) -> Lease | None:
    """Return another driver's lease on `key`, if it has one and lives as far as is known."""
    last = _newest(store, key)
    if last is None or last.driver == holder.driver or _is_void(store, last, holder.dead):
        return None
    return last


def _take(store: Store, key: str, holder: Holder) -> Lease:
    while True:
        last, number = _last(store, key)
        if last is not None and last.driver == holder.driver:
            return last  # an earlier process of the same driver was lost
        if last is not None and not _is_void(store, last, holder.dead):
            raise HeldElsewhere(last)
        mine = Lease(key=key, number=number + 1, driver=holder.driver, sweep=holder.sweep)
        if store.files.create_record(_path(key, mine.number), mine):
            _back_off_from_another(store, mine, holder)
            return mine


def _back_off_from_another(store: Store, mine: Lease, holder: Holder) -> None:
    """Let go of `mine` and raise HeldElsewhere where another lease that counts stands beside it.

    Numbers begin again in an empty folder: who was slow may have created one above a newer one.
    Both may let go then, and try again.
    """
    for number in _numbers(store, mine.key):
        other = store.files.read_note(_path(mine.key, number), Lease)
        if (
            other is not None
            and other.driver != mine.driver
            and not _is_void(store, other, holder.dead)
        ):
            store.files.remove(_path(mine.key, mine.number))
            raise HeldElsewhere(other)


def _give_back(store: Store, lease: Lease, holder: Holder) -> None:
    """Remove the lease and the void ones before it.

    Numbers begin again in an empty folder: one that was taken over meanwhile is told by its driver.
    """
    for number in _numbers(store, lease.key):
        if number <= lease.number:
            path = _path(lease.key, number)
            other = store.files.read_note(path, Lease)
            if (
                other is None
                or other.driver == holder.driver
                or _is_void(store, other, holder.dead)
            ):
                store.files.remove(path)


def _newest(store: Store, key: str) -> Lease | None:
    return _last(store, key)[0]


def _last(store: Store, key: str) -> tuple[Lease | None, int]:
    """Return the newest lease that can be read, and the newest number that is there, torn or not.

    One that was given back in this very moment is not there: its number is free again.
    """
    newest = 0
    for number in reversed(_numbers(store, key)):
        lease = store.files.read_note(_path(key, number), Lease)
        if lease is not None:
            return lease, max(newest, number)
        if store.files.read(_path(key, number)) is not None:  # torn by a loss of power
            newest = max(newest, number)
    return None, newest


def _numbers(store: Store, key: str) -> list[int]:
    return [int(name.removesuffix(".json")) for name in store.files.names(_folder(key))]


def _folder(key: str) -> str:
    return f"leases/{key[:KEY_DIGITS]}"


def _path(key: str, number: int) -> str:
    return f"{_folder(key)}/{number:06d}.json"


def _is_void(store: Store, lease: Lease, dead: frozenset[str]) -> bool:
    if lease.driver in dead:
        return True
    beat = store.driver(lease.sweep, lease.driver)
    return beat is None or has_ended(beat)


def has_ended(beat: DriverBeat) -> bool:
    """Whether a driver is known to have ended: it says so, or its process here is gone."""
    if beat.finished:
        return True
    if beat.place != place_of_process():
        return False
    return process_ticks(beat.pid) != beat.process_ticks


def living(
    store: Store,
    beats: Sequence[tuple[str, DriverBeat]],
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[str, DriverBeat]]:
    """Yield those of `beats`, each with its sweep's name, whose drivers live.

    One that has not ended, on another machine, lives once it gives another sign; it is dead after
    LOST_AFTER_S seconds without one. So this may take that long, and no clock but ours is read.
    """
    waiting = []
    for sweep, beat in beats:
        if has_ended(beat):
            continue
        if beat.place == place_of_process():
            yield sweep, beat
        else:
            waiting.append((sweep, beat))
    began = now()
    while waiting and now() - began <= LOST_AFTER_S:
        sleep(LOOK_S)
        still = []
        for sweep, beat in waiting:
            last = store.driver(sweep, beat.driver)
            if last is None or has_ended(last):
                continue
            if last.count != beat.count:
                yield sweep, last
            else:
                still.append((sweep, beat))
        waiting = still


class Signs:
    """Which drivers have given no sign of life for LOST_AFTER_S seconds of this process's own time.

    Signs are counted, and their times never compared: clocks of two machines differ, and jump.
    """

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        self._store, self._now = store, now
        self._seen: dict[str, tuple[int, float]] = {}

    def dead(self, leases: Sequence[Lease]) -> frozenset[str]:
        """Return the drivers of `leases` that are dead. To be asked again and again."""
        return frozenset(lease.driver for lease in leases if self._is_dead(lease))

    def _is_dead(self, lease: Lease) -> bool:
        beat = self._store.driver(lease.sweep, lease.driver)
        if beat is None or has_ended(beat):
            return True
        count, since = self._seen.get(lease.driver, (-1, 0.0))
        if beat.count != count:
            self._seen[lease.driver] = (beat.count, self._now())
            return False
        return self._now() - since > LOST_AFTER_S
