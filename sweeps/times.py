"""Lengths of stretches of time that may overlap. Knows nothing of what they are of."""

from collections.abc import Iterable


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of `spans` (start, end) lasts."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
