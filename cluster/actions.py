"""What a schedule decides, as plain values, and the kinds of engines that it decides over.

Knows nothing of how it is decided (see cluster.schedule), or of how it is carried out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.resources import Demand


@dataclass(frozen=True)
class EngineKind:
    """Engines of one model: what each holds, how many at most, how many jobs each answers at once.

    `start_s` are the seconds until one answers.
    """

    name: str
    demand: Demand
    most: int = 1
    at_once: int = 1
    start_s: float = 60.0


@dataclass(frozen=True)
class Train:
    """Start the training of a job."""

    job_id: str


@dataclass(frozen=True)
class Ask:
    """Ask a job of these engines, by kind."""

    job_id: str
    engines: Mapping[str, str]


@dataclass(frozen=True)
class Start:
    """Start an engine of a kind."""

    kind: str
    engine: str


@dataclass(frozen=True)
class Stop:
    """Stop an engine that nobody is asking."""

    engine: str


Action = Train | Ask | Start | Stop
