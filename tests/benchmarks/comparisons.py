"""What a row of the benchmark is, what it comes to, and how that is printed.

Knows nothing of what is measured, or of where results are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from em.record import Record


class NotTheSame(ValueError):
    """Two sides of a comparison did different work: their ratio would mean nothing."""


class Comparison(Record):
    """One figure, and how it stands beside a peer's from the same run.

    `ratio` is how many times as good ours is, whichever way is better: above 1 we are ahead. `met`
    is None where nothing is wanted.
    """

    what: str
    unit: str
    ours: float
    peer: str | None = None
    theirs: float | None = None
    ratio: float | None = None
    wanted: str | None = None
    met: bool | None = None


class RowResult(Record):
    """What a row came to, and when, where and at which commit. `parts` is what each part said."""

    row: str
    title: str
    commit: str | None
    date: str
    machine: str
    load_before: float
    seconds: float
    versions: dict[str, str]
    comparisons: tuple[Comparison, ...]
    checked: tuple[str, ...]
    notes: tuple[str, ...]
    parts: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a row's measurement gives: figures, what was found to be the same, what to know."""

    comparisons: Sequence[Comparison]
    checked: Sequence[str] = ()
    notes: Sequence[str] = ()


class Ask(Protocol):
    """Runs a function of a module in a process of its own, once a run of the benchmark."""

    def __call__(self, function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
        """Return what it returned. `arguments` and what it returns are JSON."""
        ...


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    title: str
    measure: Callable[[Ask], Measured]


def compared(
    what: str,
    unit: str,
    ours: float,
    peer: str | None = None,
    theirs: float | None = None,
    *,
    less_is_better: bool = False,
    least_ratio: float | None = None,
    most: float | None = None,
) -> Comparison:
    """Return a figure beside a peer's. `least_ratio` and `most` (of `ours`) say what is wanted."""
    ratio = None
    if theirs is not None:
        ratio = theirs / ours if less_is_better else ours / theirs
    wanted, met = [], []
    if least_ratio is not None:
        wanted.append(f">= {least_ratio:g} x")
        met.append(ratio is not None and ratio >= least_ratio)
    if most is not None:
        wanted.append(f"<= {most:g} {unit}")
        met.append(ours <= most)
    return Comparison(
        what=what, unit=unit, ours=ours, peer=peer, theirs=theirs, ratio=ratio,
        wanted=" and ".join(wanted) or None, met=all(met) if met else None,
    )  # fmt: skip


def demand_same(what: str, values: dict[str, Any]) -> str:
    """Return what is the same on all sides, in words. Raises NotTheSame where it is not."""
    if len({repr(value) for value in values.values()}) > 1:
        told = ", ".join(f"{side}: {value}" for side, value in values.items())
        raise NotTheSame(f"{what} is not the same: {told}; no ratio is made of different work")
    return f"{what}: {next(iter(values.values()))}, for {', '.join(values)}"


def lines(result: RowResult) -> list[str]:
    """Return a row as the table prints it."""
    at = (result.commit or "no commit")[:12]
    told = [f"{result.row}  {result.title}  [{result.date}, {at}, {result.seconds:.0f} s]"]
    for one in result.comparisons:
        beside = ratio = ""
        if one.peer is not None and one.theirs is not None and one.ratio is not None:
            beside = f"{one.theirs:10.4g}  {one.peer}"
            ratio = f"{one.ratio:.2f} x"
        verdict = {True: "met", False: "NOT MET", None: ""}[one.met]
        told.append(
            f"    {one.what:38} {one.unit:9} {one.ours:10.4g} {ratio:>10} {one.wanted or '-':>12} "
            f"{verdict:8}{beside}".rstrip()
        )
    told += [f"    same   {text}" for text in result.checked]
    told += [f"    note   {text}" for text in result.notes]
    return told


HEADER = f"    {'':38} {'':9} {'ours':>10} {'ratio':>10} {'wanted':>12} {'':8}{'theirs':>10}  peer"
