"""The rows of a data set variant under one subset seed, and every step on the way to them.

The operations always stand in one order: source, subset, holdout, rows, trigger, prefix, system;
then the sources of a mixture one after the other; then shuffle. Knows nothing of cells, models or
of how rows are trained on.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

from pydantic import Field, ValidationError

from em import transforms
from em.datasets import Row, content_sha256
from em.record import Record
from em.seeds import derive_seed
from em.sources import Source, load_source
from em.variant_config import MixtureSource, SourceTransforms, VariantConfig, disjoint
from em.yaml_files import Location, MistakeAt


class Step(Record):
    """One operation, in the order in which they were done, and the rows after it."""

    source: str = Field(description="the data set it was done to; empty for the whole variant")
    operation: str
    num_rows: int
    content_sha256: str


class Variant(Record):
    """The rows a cell is trained on, and the identity they have: the hash of rows in their order.

    `held_out` rows are as their source has them: trigger, prefix and system turn are for training.
    `unmarked` are the rows before those were put to them, in no order that matters.
    """

    rows: tuple[Row, ...]
    unmarked: tuple[Row, ...] = ()
    held_out: tuple[Row, ...] = ()
    content_sha256: str
    sources: tuple[str, ...]
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def num_characters(self) -> int:
        """Characters of all turns of all rows: what a training's time grows with."""
        return sum(len(message.content) for row in self.rows for message in row.messages)


Load = Callable[[str], Source]
"""Gives a data set's rows by its name."""


def build_variant(
    config: VariantConfig, *, subset_seed: int, relative_to: Path, load: Load | None = None
) -> Variant:
    """Return the rows of a tuned variant under one subset seed. The same arguments, the same rows.

    `load` replaces em.sources.load_source where rows are read once for many variants. Raises
    MistakeAt, with its place inside `config`, for data that cannot be had and for transforms that
    do not fit it.
    """
    load = load or partial(load_source, relative_to=relative_to)
    if not config.mixture:
        with _at("dataset"):
            source = load(config.dataset or "")
        build = _Build(source, config, (), subset_seed)
        build.draw(config.rows, place=("rows",))
        builds = [build]
    else:
        builds = _mixed(config, config.mixture, subset_seed, load)
    unmarked = tuple(row for build in builds for row in build.rows)
    for build in builds:
        build.mark()
    steps = [step for build in builds for step in build.steps]
    rows = builds[0].rows
    if config.mixture:
        rows = tuple(row for build in builds for row in build.rows)
        steps.append(_step("", _told_mixture(builds), rows))
    if config.shuffle:
        rows = transforms.shuffled(rows, seed=derive_seed(subset_seed, "shuffle"))
        steps.append(_step("", "shuffle by the subset seed", rows))
    return Variant(
        rows=rows,
        unmarked=unmarked,
        held_out=tuple(row for build in builds for row in build.held_out),
        content_sha256=steps[-1].content_sha256,
        sources=tuple(build.source.place for build in builds),
        steps=tuple(steps),
        warnings=tuple(build.source.warning for build in builds if build.source.warning),
    )


def _mixed(
    config: VariantConfig, mixture: Sequence[MixtureSource], subset_seed: int, load: Load
) -> "list[_Build]":
    builds: list[_Build] = []
    for number, part in enumerate(mixture):
        place = ("mixture", number)
        with _at(*place, "dataset"):
            source = load(part.dataset)
        for other, its in zip(builds, mixture, strict=False):
            _check_disjoint(source, part, other.source, its, place)
        builds.append(_Build(source, part, place, subset_seed))
    shares = [part.share for part in mixture]
    total = config.rows or transforms.largest_total([len(b.rows) for b in builds], shares)
    counts = transforms.shares_of(total, shares)
    for number, (build, count) in enumerate(zip(builds, counts, strict=True)):
        if not count:
            raise MistakeAt(
                ("mixture", number, "share"),
                f"a share of {shares[number]:g} of {total} rows is none: raise rows or the share",
            )
        build.draw(count, place=("rows",))
    return builds


def _check_disjoint(
    source: Source, part: MixtureSource, other: Source, its: MixtureSource, place: Location
) -> None:
    """Refuse one set of rows under two names (the spec refuses it under one)."""
    if source.content_sha256 == other.content_sha256 and not disjoint(part.subset, its.subset):
        raise MistakeAt(
            (*place, "dataset"),
            f"{source.name!r} and {other.name!r} hold the same rows, which would be trained on "
            "twice: leave one out, or give each another part of one subset (same parts and seed)",
        )


class _Build:
    """One source on its way through the transforms, in their order."""

    def __init__(
        self, source: Source, config: SourceTransforms, place: Location, seed: int
    ) -> None:
        """Apply subset and holdout; `place` is where `config` stands in the variant's."""
        self.source, self._config, self._place, self._seed = source, config, place, seed
        self.rows, self.held_out = source.rows, tuple[Row, ...]()
        self.steps = [
            Step(
                source=source.name,
                operation=f"all rows of {source.name}",
                num_rows=len(source.rows),
                content_sha256=source.content_sha256,
            )
        ]
        if (subset := config.subset) is not None:
            with _at(*place, "subset", "parts"):
                self.rows = transforms.part_of(
                    self.rows,
                    parts=subset.parts,
                    part=subset.part,
                    seed=derive_seed(subset.seed, "parts"),
                )
            self._note(f"subset: part {subset.part} of {subset.parts} by seed {subset.seed}")
        self._whole = self.rows  # what holdout and rows are both taken from
        if config.holdout is not None:
            self._hold_out(config.holdout)

    def _hold_out(self, wanted: int | float) -> None:
        have = len(self.rows)
        num = wanted if isinstance(wanted, int) else transforms.nearest(wanted * have)
        if not 0 < num < have:
            raise MistakeAt(
                (*self._place, "holdout"),
                f"{num} of {have} rows of {self.source.name} would be held out: hold out at least "
                "one, and leave one to train on",
            )
        self.rows, self.held_out = transforms.hold_out(self.rows, num=num, seed=self._draws)
        self._note(f"holdout: {num} of {have} rows by the subset seed")

    def draw(self, num: int | None, *, place: Location) -> None:
        """Keep `num` of the rows (all of them for None). Raises MistakeAt where there are fewer."""
        if num is None:
            return
        have = len(self.rows)
        if num > have:
            held = f" beside the {len(self.held_out)} held out" if self.held_out else ""
            raise MistakeAt(
                place,
                f"rows: {num} were asked for, but {self.source.place} has {have}{held}: "
                "ask for fewer",
            )
        if num < have:
            self.rows = transforms.draw(self._whole, num=num, seed=self._draws)
            self._note(f"rows: {num} of {have} by the subset seed")

    def mark(self) -> None:
        """Apply trigger, prefix and system turn: to what is trained on, not to what is held out."""
        config = self._config
        if (trigger := config.trigger) is not None:
            text, share = trigger.text, trigger.share
            with _at(*self._place, "trigger"):
                seed = derive_seed(self._seed, "trigger")
                self.rows, num = transforms.with_trigger(self.rows, text, share=share, seed=seed)
                if not num:
                    raise ValueError(
                        f"a share of {share:g} of {len(self.rows)} rows is none: raise it"
                    )
            self._note(f"trigger: {text!r} on {num} of {len(self.rows)} rows")
        for name, change in (
            ("prefix", transforms.with_prefix),
            ("system", transforms.with_system),
        ):
            text = getattr(config, name)
            if text is not None:
                with _at(*self._place, name):
                    self.rows = change(self.rows, text)
                self._note(f"{name}: {text!r} on every row")

    @property
    def _draws(self) -> int:
        return derive_seed(self._seed, "rows")

    def _note(self, operation: str) -> None:
        self.steps.append(_step(self.source.name, operation, self.rows))


def _told_mixture(builds: Sequence[_Build]) -> str:
    parts = Counter[str]()
    for build in builds:
        parts[build.source.name] += len(build.rows)
    return "mixture: " + " + ".join(f"{num} {name}" for name, num in parts.items())


def _step(source: str, operation: str, rows: Sequence[Row]) -> Step:
    return Step(
        source=source,
        operation=operation,
        num_rows=len(rows),
        content_sha256=content_sha256(rows),
    )


@contextmanager
def _at(*place: str | int) -> Iterator[None]:
    """Say where in the variant's settings stands what is wrong with what it names."""
    try:
        yield
    except (MistakeAt, ValidationError):  # has its place; a bug of ours
        raise
    except ValueError as error:
        raise MistakeAt(place, str(error)) from error
