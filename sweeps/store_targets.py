"""Which folders of a store are looked at: all of them, or those that a sweep refers to.

Knows nothing of what is done with them.
"""

from collections.abc import Iterable

from em.record import Record
from sweeps.plan import SweepPlan
from sweeps.store import KEY_DIGITS, Store


class Targets(Record):
    """Names of folders by kind, and of sweeps."""

    training: tuple[str, ...]
    responses: tuple[str, ...]
    judgements: tuple[str, ...]
    sweeps: tuple[str, ...]

    @property
    def num_artefacts(self) -> int:
        """Folders that may hold an artefact."""
        return len(self.training) + len(self.responses) + len(self.judgements)


def everything(store: Store) -> Targets:
    """Return all that the store holds."""
    return Targets(
        training=tuple(store.files.names("training")),
        responses=tuple(store.files.names("responses")),
        judgements=tuple(store.files.names("judgements")),
        sweeps=tuple(store.files.names("sweeps")),
    )


def of_sweep(plan: SweepPlan) -> Targets:
    """Return what a sweep refers to, whether the store has it or not."""

    def folders(keys: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key[:KEY_DIGITS] for key in keys))

    return Targets(
        training=folders(c.training_key for c in plan.cells if c.cell.training),
        responses=folders(e.stream for c in plan.cells for e in c.evaluations),
        judgements=folders(j.stream for c in plan.cells for j in c.judgings),
        sweeps=(plan.spec.name,),
    )
