"""Sample indices as [start, stop) ranges, in rising order and apart.

Knows nothing of what the samples are.
"""

from collections.abc import Iterable

Ranges = Iterable[tuple[int, int]]


def holds(ranges: Ranges, index: int) -> bool:
    """Whether one of `ranges` holds `index`."""
    return any(start <= index < stop for start, stop in ranges)


def holds_all(ranges: Ranges, samples: int) -> bool:
    """Whether `ranges` hold 0 to `samples` - 1."""
    return any(start <= 0 and stop >= samples for start, stop in ranges)


def num_held(ranges: Ranges, samples: int) -> int:
    """Return how many of 0 to `samples` - 1 `ranges` hold."""
    return sum(max(0, min(stop, samples) - start) for start, stop in ranges)


def expand(ranges: Ranges) -> set[int]:
    """Return every index that `ranges` hold."""
    return {index for start, stop in ranges for index in range(start, stop)}


def condense(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return the ranges that hold `indices` and nothing else."""
    found: list[tuple[int, int]] = []
    for index in sorted(set(indices)):
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found
