"""What the gates found in cells that went on: for the first lines of a report.

A gate that stops a cell is its failure; here is what did not stop one and is worth knowing. Knows
nothing of how a gate looks (see em.gates and em.judge_gate).
"""

from collections.abc import Iterable

from sweeps.plan import SweepPlan
from sweeps.stage_gates import WEAK, WRONG
from sweeps.store import Store
from sweeps.work import work_done


def gate_warnings(sweep: SweepPlan, store: Store) -> list[str]:
    """Return a sentence for each judge that erred on planted answers, and one on weak adapters."""
    wrong: dict[str, str] = {}
    weak: list[str] = []
    for cell in sweep.cells:
        told = (p.gates.get("adapter", "") for p in work_done(cell, store)["generate"])
        if any(text.startswith(WEAK) for text in told):
            weak.append(cell.cell_id)
        for judging in cell.judgings:
            record = store.stream("judgements", judging.stream)
            found = (p.gates.get("judge", "") for p in (record.provenance if record else ()))
            for text in found:
                if text.startswith(WRONG):
                    wrong.setdefault(judging.judge, text)
    return [
        *(f"The judge {judge!r} is {text}" for judge, text in wrong.items()),
        *_weak(weak),
    ]


def _weak(cells: Iterable[str]) -> list[str]:
    names = list(cells)
    if not names:
        return []
    return [
        f"Whether they are applied could not be checked for {len(names)} adapters, which changed "
        "the model by less than the noise between two ways to compute it, or whose training "
        f"recorded nothing to compare: {', '.join(names)}"
    ]
