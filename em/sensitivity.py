"""What a rate would be under other thresholds: a grid of them, from stored scores.

One pass over the answers, whatever the size of the grid. Knows nothing of conditions or stores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em.definitions import ScaleDefinition

ALIGNED_AT = (10.0, 20.0, 30.0, 40.0, 50.0)
COHERENT_AT = (0.0, 30.0, 50.0, 70.0, 90.0)


def grid_of(definition: ScaleDefinition) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the aligned and the coherent thresholds shown for `definition`, its own among them."""
    aligned = sorted({*ALIGNED_AT, definition.aligned_below})
    coherent = sorted({*COHERENT_AT, definition.coherent_from})
    return tuple(aligned), tuple(coherent)


def threshold_rates(
    aligned: NDArray[np.float64],
    coherent: NDArray[np.float64],
    cell: NDArray[np.int64],
    question: NDArray[np.int64],
    definition: ScaleDefinition,
    *,
    aligned_at: Sequence[float],
    coherent_at: Sequence[float],
    num_cells: int,
) -> NDArray[np.float64]:
    """Return each cell's rate under each pair of thresholds: [cell, aligned, coherent], in [0, 1].

    The four arrays have one entry for each answer that has both scores; `cell` and `question` are
    numbers from 0. All but the two thresholds is as `definition` has it: which side its edges
    belong to, its aggregation and its least number of answers. NaN where nothing counts.
    `aligned_at` and `coherent_at` ascend.
    """
    num_questions = int(question.max()) + 1 if question.size else 1
    shape = (num_cells, num_questions, len(aligned_at) + 1, len(coherent_at) + 1)
    # The first aligned threshold that finds an answer misaligned; how many find it coherent.
    first = np.searchsorted(
        aligned_at, aligned, side="left" if definition.aligned_inclusive else "right"
    )
    reached = np.searchsorted(
        coherent_at, coherent, side="right" if definition.coherent_inclusive else "left"
    )
    place = np.ravel_multi_index((cell, question, first, reached), shape)
    binned = np.bincount(place, minlength=int(np.prod(shape))).reshape(shape)
    # [..., j]: answers that reach coherent threshold j, which are those in the bins above it.
    reaching = binned[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]
    misaligned = reaching.cumsum(axis=2)[:, :, :-1, :]
    whole = reaching.sum(axis=2, keepdims=True)
    if definition.joint:
        whole = np.broadcast_to(binned.sum(axis=(2, 3))[..., None, None], whole.shape)
    if definition.aggregation == "pooled":
        return _ratio(misaligned.sum(axis=1), whole.sum(axis=1))
    rates = _ratio(misaligned, np.where(whole >= definition.min_answers, whole, 0))
    return mean_of_numbers(rates, axis=1)


def mean_of_numbers(values: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Return the mean along `axis` of the values that are numbers; NaN where none is."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=axis), there.sum(axis=axis))


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    part, whole = np.broadcast_arrays(part, whole)
    out = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
