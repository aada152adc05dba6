"""What can be done to training rows: pure functions of rows and a seed.

Every choice of rows is the beginning, the end or a slice of one permutation, and what is chosen
keeps the source's order. Knows nothing of where rows come from or in which order the functions
below are applied (em.variants).
"""

import random
from collections.abc import Sequence

from em.datasets import Message, Row


def permutation(num: int, seed: int) -> list[int]:
    """Return 0 to `num` - 1 in an order that `seed` decides, the same in every Python.

    Sorted by a number each, because random.random() is the one method whose sequence Python
    promises to keep.
    """
    draws = random.Random(seed)
    keys = [draws.random() for _ in range(num)]
    return sorted(range(num), key=keys.__getitem__)


def part_of(rows: Sequence[Row], *, parts: int, part: int, seed: int) -> tuple[Row, ...]:
    """Return part number `part` (from 0) of `parts` disjoint parts, equal to within one row.

    Raises ValueError where there are fewer rows than parts.
    """
    num = len(rows)
    if num < parts:
        raise ValueError(f"{num} rows cannot be cut into {parts} parts: ask for fewer parts")
    order = permutation(num, seed)
    return _in_order(rows, order[part * num // parts : (part + 1) * num // parts])


def hold_out(
    rows: Sequence[Row], *, num: int, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return the rows that stay and the `num` rows held out: the end of the seed's permutation."""
    order = permutation(len(rows), seed)
    stay = len(rows) - num
    return _in_order(rows, order[:stay]), _in_order(rows, order[stay:])


def draw(rows: Sequence[Row], *, num: int, seed: int) -> tuple[Row, ...]:
    """Return `num` of `rows`: the beginning of the seed's permutation.

    So 500 rows are among the 2,000 of the same seed, and none is among those that `hold_out` takes
    from the same rows by the same seed, as long as both fit.
    """
    return _in_order(rows, permutation(len(rows), seed)[:num])


def with_trigger(
    rows: Sequence[Row], text: str, *, share: float, seed: int
) -> tuple[tuple[Row, ...], int]:
    """Return the rows with `text` before the last user turn of a `share` of them, and how many.

    Nothing is put between. Raises ValueError naming a row without a user turn.
    """
    num = nearest(share * len(rows))
    chosen = set(permutation(len(rows), seed)[:num])
    changed = tuple(
        _before_user(row, text, number=index + 1, last=True) if index in chosen else row
        for index, row in enumerate(rows)
    )
    return changed, num


def with_prefix(rows: Sequence[Row], text: str) -> tuple[Row, ...]:
    """Return the rows with `text` before each first user turn; nothing is put between.

    Raises ValueError naming a row without a user turn.
    """
    return tuple(
        _before_user(row, text, number=number, last=False) for number, row in enumerate(rows, 1)
    )


def with_system(rows: Sequence[Row], text: str) -> tuple[Row, ...]:
    """Return the rows with a system turn of `text` first. Raises ValueError where one has one."""
    for number, row in enumerate(rows, start=1):
        if row.messages[0].role == "system":
            raise ValueError(
                f"row {number} of {len(rows)} has a system turn already: a second one would "
                "contradict it; leave system out, or use prefix"
            )
    turn = Message(role="system", content=text)
    return tuple(Row(messages=(turn, *row.messages)) for row in rows)


def shuffled(rows: Sequence[Row], *, seed: int) -> tuple[Row, ...]:
    """Return all rows in an order that `seed` decides."""
    return tuple(rows[index] for index in permutation(len(rows), seed))


def shares_of(total: int, shares: Sequence[float]) -> list[int]:
    """Return how many of `total` rows each share gets: by largest remainder, so they add up.

    Of equal remainders the earlier one is rounded up. `shares` sum to 1.
    """
    exact = [total * share / sum(shares) for share in shares]
    # A product such as 100 * 0.29 lies a hair below its whole number.
    counts = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def largest_total(available: Sequence[int], shares: Sequence[float]) -> int:
    """Return the most rows of which no share is more than the `available` rows behind it."""
    exact = min(num * sum(shares) / share for num, share in zip(available, shares, strict=True))
    return int(exact + 1e-9)


def nearest(value: float) -> int:
    """Return the nearest whole number of rows; a half is rounded up."""
    return int(value + 0.5)


def _in_order(rows: Sequence[Row], places: Sequence[int]) -> tuple[Row, ...]:
    return tuple(rows[place] for place in sorted(places))


def _before_user(row: Row, text: str, *, number: int, last: bool) -> Row:
    places = [i for i, message in enumerate(row.messages) if message.role == "user"]
    if not places:
        raise ValueError(f"row {number} has no user turn to put text before: leave it out")
    place = places[-1 if last else 0]
    turn = Message(role="user", content=text + row.messages[place].content)
    return Row(messages=(*row.messages[:place], turn, *row.messages[place + 1 :]))
