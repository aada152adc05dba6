"""What a store holds that no record counts, or that no sweep refers to; and its removal.

Knows nothing of how an artefact is made.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from em.record import Record
from sweeps.artefacts import SNAPSHOTS, StreamKind, StreamRecord
from sweeps.attempts import Beat
from sweeps.disk import PARTIAL
from sweeps.files import StoreError
from sweeps.keeping import settle
from sweeps.leases import HeldElsewhere, Lease, holding, living
from sweeps.plan import SweepPlan
from sweeps.planner import make_plan
from sweeps.spec import SweepSpec
from sweeps.store import KEY_DIGITS, Store
from sweeps.store_targets import of_sweep

OLD_S = 24 * 3600.0
OWN_NAME = ".gc"  # under which removing has its driver's sign of life; no sweep can be called so
KINDS = ("training", "responses", "judgements")
STREAMS: tuple[StreamKind, ...] = ("responses", "judgements")

Sizes = Mapping[str, tuple[int, float | None]]


class Leftover(Record):
    """A file or folder that may be removed."""

    path: str
    num_bytes: int
    why: str


def check_quiet(store: Store) -> frozenset[str]:
    """Return the drivers of every sweep of the store. Raises ValueError where one is at work.

    Of a driver on another machine that has not said its end this takes a minute.
    """
    beats = [(s, beat) for s in store.files.names("sweeps") for beat in store.drivers(s)]
    for sweep, live in living(store, beats):
        raise ValueError(
            f"nothing is removed from {store.url}: process {live.pid} on {live.host} is at work on "
            f"the sweep {sweep!r} there, and what looks unfinished may be its work. Wait until it "
            "has ended, or stop it"
        )
    return frozenset(beat.driver for _, beat in beats)


def check_still_quiet(store: Store, before: frozenset[str]) -> None:
    """Raise ValueError where a driver has begun since `check_quiet` returned `before`."""
    for sweep in store.files.names("sweeps"):
        for beat in store.drivers(sweep):
            if beat.driver not in before:
                raise ValueError(
                    f"nothing is removed from {store.url}: a driver began on the sweep {sweep!r} "
                    "while it was looked at, so that what was found may be its work. Give the same "
                    "command again when it has ended"
                )


def leftovers(store: Store, *, now: float) -> list[Leftover]:
    """Return unfinished attempts, and files half-written more than a day before `now`.

    Raises StoreError where a record is damaged: what it counts cannot be told then.
    """
    found = []
    for kind in (*KINDS, "sweeps"):
        sizes = store.files.sizes(kind)
        if kind == "training":
            found += _attempts(sizes)
        if kind in STREAMS:
            found += _uncounted_parts(store, kind, sizes)
        found += _half_written(sizes, now)
    found += [
        Leftover(path=path, num_bytes=size, why="a lease of a driver that has ended")
        for path, (size, _) in store.files.sizes("leases").items()
    ]
    return without_nested(found)


def _attempts(sizes: Sizes) -> list[Leftover]:
    below = _bytes_of(sizes, depth=3)
    found = []
    for folder in _bytes_of(sizes, depth=2):
        finished = f"{folder}/record.json" in sizes
        for attempt in (path for path in below if path.startswith(f"{folder}/attempt-")):
            why = "left by a finished training" if finished else (
                "an unfinished training: the next run would go on from its last checkpoint"
            )  # fmt: skip
            found.append(Leftover(path=attempt, num_bytes=below[attempt], why=why))
        for weights in (f"{folder}/adapter", f"{folder}/{SNAPSHOTS}"):
            if weights in below and not finished:
                why = "weights without a record: the next run would train them again"
                found.append(Leftover(path=weights, num_bytes=below[weights], why=why))
    return found


def _uncounted_parts(store: Store, kind: StreamKind, sizes: Sizes) -> list[Leftover]:
    counted: set[str] = set()
    for folder in _bytes_of(sizes, depth=2):
        path = f"{folder}/record.json"
        record = store.files.read_record(path, StreamRecord)
        if record is not None:
            if record.key[:KEY_DIGITS] != folder.rpartition("/")[2]:
                raise StoreError(
                    f"{store.url}/{path} is the record of another key, so that it cannot be told "
                    "which parts are counted: see 'emsweep store check'"
                )
            counted |= {f"{folder}/{part.name}" for part in record.parts}
    why = "no record lists it: the next run would take it over if it is whole"
    if kind == "judgements":
        why += "; its calls count in a judge's budget while it is here"
    return [
        Leftover(path=path, num_bytes=size, why=why)
        for path, (size, _) in sizes.items()
        if path.endswith(".parquet") and path not in counted
    ]


def _half_written(sizes: Sizes, now: float) -> list[Leftover]:
    return [
        Leftover(path=path, num_bytes=size, why="half-written, more than a day ago")
        for path, (size, changed) in sizes.items()
        if path.endswith(PARTIAL) and changed is not None and now - changed > OLD_S
    ]


def unreferenced(store: Store, plans: Iterable[SweepPlan]) -> list[Leftover]:
    """Return the folders of artefacts that none of `plans` refers to, whole."""
    kept: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for plan in plans:
        targets = of_sweep(plan)
        for kind in KINDS:
            kept[kind] |= set(getattr(targets, kind))
    found = []
    for kind in KINDS:
        for folder, size in _bytes_of(store.files.sizes(kind), depth=2).items():
            if folder.rpartition("/")[2] not in kept[kind]:
                found.append(Leftover(path=folder, num_bytes=size, why="no sweep refers to it"))
    return found


def all_plans(store: Store, given: Sequence[tuple[Path, SweepPlan]]) -> list[SweepPlan]:
    """Return the plans of `given` and of every sweep that the store knows.

    Data beside a sweep's spec are looked for beside the given file of its name, else in the working
    folder. Raises ValueError where what a sweep refers to cannot be told.
    """
    beside = {plan.spec.name: path.resolve().parent for path, plan in given}
    plans = [plan for _, plan in given]
    for name in store.files.names("sweeps"):
        try:
            spec = _registered(store, name)
            if spec is not None:
                made = make_plan(spec, relative_to=beside.get(name, Path.cwd()))
                plans.append(settle(made, store, installed=None))
            elif name not in beside and store.files.names(f"{store.sweep_dir(name)}/cells"):
                raise StoreError("its spec.json is gone")
        except ValueError as error:
            raise ValueError(
                f"what the sweep {name!r} refers to cannot be told, so nothing can be called "
                f"unreferenced: {error}. Name its SPEC, too, so that its files are looked for "
                "beside it; a torn spec.json is written anew by the next 'emsweep run SPEC'"
            ) from error
    return plans


def _registered(store: Store, name: str) -> SweepSpec | None:
    data = store.read_json(f"{store.sweep_dir(name)}/spec.json")
    return SweepSpec.model_validate(data) if data is not None else None


def without_nested(found: Iterable[Leftover]) -> list[Leftover]:
    """Return `found`, each path once, without what is inside another."""
    by_path = {one.path: one for one in found}
    return [
        one
        for one in by_path.values()
        if not any(str(folder) in by_path for folder in PurePosixPath(one.path).parents)
    ]


def remove(store: Store, found: Iterable[Leftover]) -> list[Leftover]:
    """Remove what was found, and return what was kept: a driver has taken it up meanwhile.

    An artefact's folder is held by a lease while it is worked on, so that no driver that begins now
    takes over what goes. Raises StoreError at the first that cannot be removed.
    """
    kept = []
    beat = Beat(store, OWN_NAME)
    try:
        for one in found:
            try:
                _remove(store, one, beat)
            except HeldElsewhere:
                kept.append(one)
    finally:
        beat.close()
        store.files.remove(store.sweep_dir(OWN_NAME))
    return kept


def _remove(store: Store, one: Leftover, beat: Beat) -> None:
    kind, key, *rest = one.path.split("/")
    if kind not in (*KINDS, "leases"):
        store.files.remove(one.path)
        return
    with holding(store, [key], beat.holder):
        if kind == "leases":  # ours came after it, and void ones go as it is given back
            return
        if rest and _is_counted(store, kind, key, rest[0]):
            raise HeldElsewhere(Lease(key=key, number=0, driver="", sweep=""))
        store.files.remove(one.path)


def _is_counted(store: Store, kind: str, key: str, name: str) -> bool:
    """Whether a record counts the file or folder `name` of an artefact now."""
    path = f"{kind}/{key}/record.json"
    if kind == "training":
        return name in ("adapter", SNAPSHOTS) and store.files.read(path) is not None
    record = store.files.read_record(path, StreamRecord)
    return record is not None and name in {part.name for part in record.parts}


def _bytes_of(sizes: Sizes, *, depth: int) -> dict[str, int]:
    """Return the bytes of the files in every folder at `depth` (2: kind/key), by its path."""
    found: dict[str, int] = {}
    for path, (size, _) in sizes.items():
        parts = path.split("/")
        if len(parts) > depth:
            folder = "/".join(parts[:depth])
            found[folder] = found.get(folder, 0) + size
    return found
