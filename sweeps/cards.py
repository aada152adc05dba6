"""The GPUs that a spec may name: peaks and prices from configs/clusters/cards.yaml.

Knows nothing of what is done with a GPU.
"""

from functools import cache

from pydantic import Field, TypeAdapter

from em.catalogue import config_dir
from em.record import Record
from em.yaml_files import checked, load_yaml

CARDS = "cards.yaml"


class Card(Record):
    """One kind of GPU; peaks are of dense bfloat16 (TFLOP/s) and of its memory (GB/s)."""

    memory_mib: int = Field(gt=0, description="as nvidia-smi tells it")
    bf16_tflops: float = Field(gt=0)
    gb_per_s: float = Field(gt=0)
    source: str
    usd_per_hour: float | None = Field(default=None, gt=0)
    price_source: str | None = None
    price_of: str | None = None


@cache
def known_cards() -> dict[str, Card]:
    """Return the cards of configs/clusters/cards.yaml by name."""
    data, _ = load_yaml(config_dir() / "clusters" / CARDS)
    return checked(TypeAdapter(dict[str, Card]), data)


def check_card(name: str | None) -> str | None:
    """Return `name`. Raises ValueError, with those that are known, for an unknown accelerator."""
    if name is not None and name not in known_cards():
        raise ValueError(
            f"the accelerator {name!r} is not known: allowed are {', '.join(known_cards())}, or "
            "leave the key out; a card is added in configs/clusters/cards.yaml"
        )
    return name
