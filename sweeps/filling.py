"""What a stream lacks, made in parts and recorded: a kill costs the parts that were under way.

Takes whoever does the work as an argument; knows nothing of stages or cells.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from em.generation import AskingStopped, Draw, Response
from em.judging import Item, Judgement, JudgingStopped
from sweeps.artefacts import Part, StreamKind
from sweeps.leases import LeaseLost
from sweeps.provenance import Moment, provenance
from sweeps.store import Store
from sweeps.stream_parts import is_failed

PARTS_AT_ONCE = 2  # so that the engine has work while a file is written
# A part is what a kill can cost: a tenth of the work, within what an engine answers at once and
# what is worth a file.
PART_SHARE, LEAST_PART, MOST_PART = 10, 16, 256


class Cut(NamedTuple):
    """How work is cut: about `size` pieces a part (None: see part_size), `at_once` of them.

    With size 1 what is the same by `together` is a part: the same one whatever else is done.
    """

    size: int | None = None
    at_once: int = PARTS_AT_ONCE


AS_EVER = Cut()

Done = TypeVar("Done", Response, Judgement)
Work = TypeVar("Work", Draw, Item)


async def fill_stream(
    store: Store,
    kind: StreamKind,
    stream: str,
    identity: Mapping[str, Any],
    *,
    work: list[Work],
    place: Callable[[Work], tuple[str, int]],
    found: Callable[[Done], tuple[str, int]],
    do: Callable[[Sequence[Work]], Any],
    model: type[Done],
    gates: Mapping[str, str],
    check_lease: Callable[[], None],
    together: Callable[[Work], object],
    cut: Cut = AS_EVER,
) -> None:
    """Do `work` in parts, taking over whole parts of an attempt that ended early; then record.

    `place` and `found` say which group and index a piece of work and an item of `do` stand for;
    `cut` says how work is cut. What failed in a part taken over is done again, once; what fails
    now is recorded as failed. Work that is the same by `together` stays in one part. Raises an
    ExceptionGroup of what `do` raised, or of why it could go on no more (what it had made is kept
    then), and what `check_lease` raises where another driver has the stream now.
    """
    if not work:
        return
    started = Moment.now()
    wanted = {place(item) for item in work}
    parts, covered = _left_behind(store, kind, stream, wanted, found, model)
    rest = [item for item in work if place(item) not in covered]
    slots = asyncio.Semaphore(cut.at_once)
    stopped: list[Exception] = []
    failed: set[tuple[str, int]] = set()

    async def one(chunk: Sequence[Work]) -> Part | None:
        async with slots:
            if stopped:
                return None
            try:
                check_lease()  # else an owner that was taken for dead would do all again
                items = await do(chunk)
                failed.update(found(item) for item in items if is_failed(item))
                return store.write_part(kind, stream, items)
            except (LeaseLost, JudgingStopped, AskingStopped) as error:
                stopped.append(error.why if isinstance(error, AskingStopped) else error)
                if paid := _paid_for(error):
                    store.write_part(kind, stream, paid)
                return None

    chunks = _chunks(rest, cut.size or part_size(len(rest)), together)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(chunk)) for chunk in chunks]
    if stopped:
        raise _why(stopped)
    parts += [part for task in tasks if (part := task.result()) is not None]
    check_lease()
    store.finish_stream(
        kind, stream, identity, parts=parts, covers=_by_group(wanted | covered),
        failed=_by_group(failed), provenance=provenance(started=started, gates=gates),
    )  # fmt: skip


def _paid_for(error: Exception) -> Sequence[Any]:
    """Return what was made before work stopped."""
    match error:
        case JudgingStopped():
            return error.judgements
        case AskingStopped():
            return error.responses
        case _:
            return ()


def _why(stopped: Sequence[Exception]) -> Exception:
    """Return a lost lease before all else: whoever took over takes over these parts, too."""
    lost = next((error for error in stopped if isinstance(error, LeaseLost)), None)
    return lost or ExceptionGroup("work stopped", stopped)


def part_size(num: int) -> int:
    """Return about how many of `num` pieces of work are in one part."""
    return min(MOST_PART, max(LEAST_PART, -(-num // PART_SHARE)))


def _chunks(
    work: Sequence[Work], size: int, together: Callable[[Work], object]
) -> list[list[Work]]:
    """Return `work` in chunks of about `size`; what is the same by `together` is in one of them."""
    groups: dict[object, list[Work]] = {}
    for item in work:
        groups.setdefault(together(item), []).append(item)
    chunks: list[list[Work]] = []
    for group in groups.values():
        if not chunks or len(chunks[-1]) + len(group) > size:
            chunks.append([])
        chunks[-1] += group
    return chunks


def _left_behind(
    store: Store,
    kind: StreamKind,
    stream: str,
    wanted: set[tuple[str, int]],
    found: Callable[[Done], tuple[str, int]],
    model: type[Done],
) -> tuple[list[Part], set[tuple[str, int]]]:
    parts: list[Part] = []
    covered: set[tuple[str, int]] = set()
    for part in store.unrecorded_parts(kind, stream):
        items = store.read_part(kind, stream, part, model)
        done = {found(item) for item in items if not is_failed(item)}
        if (done & wanted) - covered:  # what it holds beside that is counted once, by its key
            parts.append(part)
            covered |= done
    return parts, covered


def _by_group(places: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for group, index in sorted(places):
        groups.setdefault(group, []).append(index)
    return groups
