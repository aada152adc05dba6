"""What was done for a cell: where, when and with what, stage by stage, as the store's records say.

Knows nothing of what is made of it (times, estimates, identities).
"""

from sweeps.artefacts import Provenance
from sweeps.plan import CellPlan, Stage
from sweeps.store import Store


def work_done(cell: CellPlan, store: Store) -> dict[Stage, list[Provenance]]:
    """Return the provenance of every finished piece of work of each stage; streams count once."""
    training = store.training(cell.training_key) if cell.cell.training else None
    responses = dict.fromkeys(e.stream for e in cell.evaluations)
    judgements = dict.fromkeys(j.stream for j in cell.judgings)
    answered = (store.stream("responses", key) for key in responses)
    judged = (store.stream("judgements", key) for key in judgements)
    return {
        "train": [training.provenance] if training else [],
        "generate": [p for record in answered if record for p in record.provenance],
        "judge": [p for record in judged if record for p in record.provenance],
    }
