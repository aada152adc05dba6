"""A data set variant as a spec writes it: its source or mixture, and what is done to its rows.

Contradictions are told with their place. Knows nothing of rows (em.variants makes them), of cells
or of models.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from em.datasets import is_whole_text
from em.record import Record
from em.yaml_files import MistakeAt

UNTUNED = "none"
SHARES_TOLERANCE = 1e-6  # of their sum: thirds can be written as 0.333333, 0.333333, 0.333334


def _check_text(text: str | None) -> str | None:
    if text is not None and (not text.strip() or not is_whole_text(text)):
        raise ValueError("the text is empty (or half a character): leave the key out, or write one")
    return text


class SubsetConfig(Record):
    """One of several disjoint parts of the source, cut by a seed of its own: the same in all cells.

    `part` counts from 0.
    """

    parts: int = Field(ge=2)
    part: int = Field(ge=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _part_exists(self) -> "SubsetConfig":
        if self.part >= self.parts:
            raise MistakeAt(
                ("part",), f"there is no part {self.part} of {self.parts}: they count from 0"
            )
        return self


class TriggerConfig(Record):
    """Text put before the last user turn of a share of the rows; nothing is put between."""

    text: str
    share: float = Field(default=1.0, gt=0, le=1)

    _text = field_validator("text")(_check_text)


class SourceTransforms(Record):
    """What can be done to the rows of one source. Each is left out by default."""

    subset: SubsetConfig | None = None
    holdout: int | float | None = Field(
        default=None, description="rows (or a share of them) never trained on, by the subset seed"
    )
    trigger: TriggerConfig | None = None
    prefix: str | None = Field(default=None, description="before each first user turn")
    system: str | None = Field(default=None, description="a system turn for rows without one")

    _texts = field_validator("prefix", "system")(_check_text)

    @field_validator("holdout", mode="before")
    @classmethod
    def _rows_or_share(cls, value: Any) -> Any:
        if value is None:
            return None
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or (value < 1 if isinstance(value, int) else not 0 < value < 1):
            raise ValueError(
                f"a number of rows (1 or more) or a share between 0 and 1 is held out; got {value}"
            )
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So a transform that is new here renames no cell, and makes no stored sweep another one.
        always = ("name", "dataset", "rows", "share")
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if value or name in always}


class MixtureSource(SourceTransforms):
    """One source of a mixture, and the share of the variant's rows that come from it."""

    dataset: str = Field(min_length=1)
    share: float = Field(gt=0, lt=1)


class VariantConfig(SourceTransforms):
    """A data set variant; `none` is the untuned model and has nothing else.

    `rows` are drawn by the cell's subset seed; with a mixture they are the total, and without them
    a mixture is as large as its sources and shares allow.
    """

    name: str
    dataset: str | None = Field(default=None, min_length=1)
    mixture: tuple[MixtureSource, ...] | None = Field(default=None, min_length=2)
    rows: int | None = Field(default=None, ge=1)
    shuffle: bool = Field(default=False, description="all rows, by the cell's subset seed")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of its sources."""
        if self.mixture:
            return tuple(source.dataset for source in self.mixture)
        return (self.dataset,) if self.dataset else ()

    @property
    def triggers(self) -> set[str]:
        """The texts that stand before some of its user turns."""
        parts: tuple[SourceTransforms, ...] = (self, *(self.mixture or ()))
        return {part.trigger.text for part in parts if part.trigger is not None}

    @model_validator(mode="after")
    def _fits_together(self) -> "VariantConfig":
        given = [name for name in type(self).model_fields if name != "name" and getattr(self, name)]
        if self.name == UNTUNED:
            if given:
                raise MistakeAt(
                    (given[0],),
                    "the variant 'none' is the untuned model: it takes no dataset, rows or "
                    f"transforms, got {', '.join(given)}",
                )
            return self
        if self.dataset is None and self.mixture is None:
            raise ValueError(
                f"the variant {self.name!r} needs a dataset or a mixture (only 'none' has neither)"
            )
        if self.mixture is not None:
            _check_mixture(self, self.mixture)
        return self


def _check_mixture(config: VariantConfig, mixture: Sequence[MixtureSource]) -> None:
    if config.dataset is not None:
        raise MistakeAt(
            ("dataset",), "a variant has a dataset or a mixture, not both: leave one out"
        )
    for name in SourceTransforms.model_fields:
        if getattr(config, name) is not None:
            raise MistakeAt(
                (name,), f"in a mixture, {name} stands with the source it changes: move it there"
            )
    total = sum(source.share for source in mixture)
    if abs(total - 1) > SHARES_TOLERANCE:
        raise MistakeAt(("mixture",), f"the shares sum to {total:g}: they must sum to 1")
    for number, source in enumerate(mixture):
        for other in mixture[:number]:
            if source.dataset == other.dataset and not disjoint(source.subset, other.subset):
                raise MistakeAt(
                    ("mixture", number, "dataset"),
                    f"{source.dataset!r} stands in the mixture twice, and the same rows would be "
                    "drawn twice: give each another part of one subset (same parts and seed)",
                )


def disjoint(one: SubsetConfig | None, other: SubsetConfig | None) -> bool:
    """Whether two subsets of one source have no row in common, by what they are."""
    if one is None or other is None:
        return False
    return (one.parts, one.seed) == (other.parts, other.seed) and one.part != other.part
