"""The seed factors of a cell, each derived from the cell's one number.

One integer "seed" usually mixes several causes; these keep them apart, so that a later analysis can
cross them. Knows nothing of what the seeds are used for.
"""

import hashlib

from pydantic import Field

from em.record import Record

FACTORS = ("init", "order", "subset", "sampling")
SEED_BITS = 31  # numpy, torch and vLLM all take a seed of this size


class Seeds(Record):
    """The seed factors of one cell.

    `init` starts the adapter, `order` the order of rows and dropout, `subset` which rows are drawn,
    `sampling` the answers; `replicate` tells apart cells whose seeds are equal.
    """

    init: int = Field(ge=0)
    order: int = Field(ge=0)
    subset: int = Field(ge=0)
    sampling: int = Field(ge=0)
    replicate: int = Field(default=0, ge=0)


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a seed of 31 bits for the place `path`, the same on every machine and version."""
    text = "/".join(str(part) for part in (seed, *path))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def derive_seeds(seed: int, *, replicate: int = 0, **of: int) -> Seeds:
    """Return the seed factors of a cell from its number.

    `of` gives single factors another number (`init=3`: the adapter of the cell with seed 3).
    """
    numbers = dict.fromkeys(FACTORS, seed) | of
    return Seeds(
        **{name: derive_seed(number, name) for name, number in numbers.items()},
        replicate=replicate,
    )
