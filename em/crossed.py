"""Seeds by questions: one condition's values as counts, from which all its statistics come.

Pure arrays; knows nothing of cells, stores, or of what a value stands for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Crossed:
    """Values of one condition, summed over the samples of each seed and question.

    Arrays have the shape (units, questions). A unit is one trained model with one sampling seed: a
    cell; without crossed seed factors that is a seed. `num` counts scored values; where it is 0
    there is no value, which is never a value of 0.
    """

    units: tuple[str, ...]
    questions: tuple[str, ...]
    num: Ints
    total: Floats = field(repr=False)
    squares: Floats = field(repr=False)
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Seed factor → its level for each unit; empty where a unit is a seed."""
    reused: bool = False
    """Whether seeds share levels of a factor that varies: they are no independent draws then."""
    one_model: bool = False
    """Whether all units are one model, asked under several sampling seeds: an untuned one."""
    scale: bool = False
    """Whether values are of a scale, also where these happen to be 0 and 1 alone."""

    def __post_init__(self) -> None:
        shape = (len(self.units), len(self.questions))
        for array in (self.num, self.total, self.squares):
            if array.shape != shape:
                raise ValueError(f"an array of shape {array.shape} for {shape} units x questions")

    @cached_property
    def binary(self) -> bool:
        """Whether every value is 0 or 1: then its sum of squares is its sum."""
        if self.scale:
            return False
        whole = bool(np.all(self.total == np.floor(self.total)))
        return whole and bool(np.array_equal(self.total, self.squares))

    @cached_property
    def filled(self) -> NDArray[np.bool_]:
        """Which pairs of unit and question have a value."""
        return self.num > 0

    @cached_property
    def means(self) -> Floats:
        """The mean of each pair; NaN where it has no value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.filled, self.total / self.num, np.nan)

    @cached_property
    def within(self) -> Floats:
        """The unbiased variance between the samples of each pair; NaN below two samples."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (self.squares - self.total**2 / self.num) / (self.num - 1)
            return np.where(self.num > 1, np.maximum(found, 0.0), np.nan)

    @cached_property
    def noise(self) -> Floats:
        """The variance that sampling gives to each pair's mean; 0 where it has no value.

        A pair of one sample takes the mean variance of the others, 0 where there is none.
        """
        known = np.isfinite(self.within)
        # Where no pair has two samples their sampling stays in the pairing.
        usual = float(self.within[known].mean()) if known.any() else 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.where(known, self.within, usual) / self.num
        return np.where(self.filled, found, 0.0)

    @property
    def num_values(self) -> int:
        """How many values there are in all."""
        return int(self.num.sum())

    @cached_property
    def effective(self) -> Floats:
        """How many alike answers each unit's rate is worth, questions weighing alike.

        Shape (units,): p (1 - p) over the sampling variance of the mean of questions, at most the
        answers there are. Rates of questions are those of all units, drawn towards a half by one
        answer on either side: a question with few answers decides as much as one with many.
        """
        num = self.num.sum(axis=0)
        rates = (self.total.sum(axis=0) + 1) / (num + 2)
        spread = np.where(self.filled, rates * (1 - rates) / np.maximum(self.num, 1), 0.0)
        asked = self.filled.sum(axis=1)
        mean = np.where(self.filled, rates, 0.0).sum(axis=1) / np.maximum(asked, 1)
        variance = spread.sum(axis=1) / np.maximum(asked, 1) ** 2
        worth = mean * (1 - mean) / np.where(variance > 0, variance, 1.0)
        found: Floats = np.minimum(worth, self.num.sum(axis=1))
        return found

    def together(self, groups: Sequence[str]) -> "Crossed":
        """Return it with the units of one group as one; `groups` has a name for each unit."""
        names = sorted(set(groups), key=lambda name: (len(name), name))
        row = np.array([names.index(name) for name in groups], dtype=np.int64)

        def summed(values: NDArray[Any]) -> NDArray[Any]:
            found = np.zeros((len(names), len(self.questions)), dtype=values.dtype)
            np.add.at(found, row, values)
            return found

        return replace(
            self, units=tuple(names), num=summed(self.num), total=summed(self.total),
            squares=summed(self.squares), factors={},
        )  # fmt: skip

    def of_questions(self, questions: Sequence[str]) -> "Crossed":
        """Return what it has of `questions`, in their order; without units that have none."""
        if tuple(questions) == self.questions:
            return self.present()
        places = [self.questions.index(question) for question in questions]
        chosen = replace(
            self,
            questions=tuple(questions),
            num=self.num[:, places],
            total=self.total[:, places],
            squares=self.squares[:, places],
        )
        return chosen.present()

    def present(self) -> "Crossed":
        """Return it without the units and questions that have no value at all."""
        rows, columns = self.filled.any(axis=1), self.filled.any(axis=0)
        if rows.all() and columns.all():
            return self
        keep = np.ix_(rows, columns)
        return replace(
            self,
            units=tuple(np.asarray(self.units, dtype=object)[rows]),
            questions=tuple(np.asarray(self.questions, dtype=object)[columns]),
            num=self.num[keep],
            total=self.total[keep],
            squares=self.squares[keep],
            factors={
                name: tuple(np.asarray(levels, dtype=object)[rows])
                for name, levels in self.factors.items()
            },
        )


def crossed(
    units: Sequence[str],
    questions: Sequence[str],
    values: Sequence[float] | Floats,
    *,
    factors: Mapping[str, Mapping[str, str]] | None = None,
) -> Crossed:
    """Return the counts of `values`, each of the unit and the question at its place.

    Units and questions come in sorted order. `factors` give a level to each unit, by its name.
    Raises ValueError for values that are not finite numbers: what has no score is left out before.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a value is not a finite number: leave out what was not scored")
    names, row = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    asked, column = np.unique(np.asarray(questions, dtype=object).astype(str), return_inverse=True)
    shape = (len(names), len(asked))
    place = row * shape[1] + column
    size = shape[0] * shape[1]

    def summed(weights: Floats) -> Floats:
        found: Floats = np.bincount(place, weights=weights, minlength=size).astype(np.float64)
        return found.reshape(shape)

    return Crossed(
        units=tuple(map(str, names)),
        questions=tuple(map(str, asked)),
        num=summed(np.ones(len(array))).astype(np.int64),
        total=summed(array),
        squares=summed(array**2),
        factors={
            name: tuple(levels[unit] for unit in map(str, names))
            for name, levels in (factors or {}).items()
        },
    )
