"""A very large sweep told from a few of its seeds: where every seed has the same work, and no more.

A key takes tens of microseconds, and of 100,000 cells none of which is begun no key is needed to
say what is missing. Knows nothing of what a plan says.
"""

from fractions import Fraction

from sweeps.plan import SweepPlan
from sweeps.settings import FactorsConfig
from sweeps.spec import SweepSpec, VariantConfig
from sweeps.store import Store

MANY_CELLS = 5000  # below, all of them take about as long as the program takes to start
FEW_SEEDS = 4
KINDS = ("training", "responses", "judgements")


def with_few_seeds(spec: SweepSpec, store: Store) -> SweepSpec:
    """Return `spec` with its first seeds alone where these stand for all; else as it is.

    So it is with many cells, of which the store can hold nothing, where what may be wrong with one
    seed's data is wrong with every seed's.
    """
    if spec.num_cells < MANY_CELLS or len(spec.seeds) <= FEW_SEEDS or not _alike(spec):
        return spec
    if any(store.files.names(place) for place in (*KINDS, store.sweep_dir(spec.name))):
        return spec
    return spec.model_copy(update={"seeds": spec.seeds[:FEW_SEEDS]})


def times(sweep: SweepPlan) -> Fraction:
    """Return how many cells of the sweep each cell of its plan stands for: 1, but for few seeds."""
    there = len(sweep.cells) + len(sweep.unresolved)
    return Fraction(sweep.spec.num_cells, there)


def _alike(spec: SweepSpec) -> bool:
    """Whether every seed has work of its own, and its data are right where one seed's are.

    Held-out rows are other questions in each seed; a trigger, prefix or system turn may fit some
    rows only. A factor that is fixed makes work that seeds share.
    """
    free = spec.factors.model_copy(update={"replicates": 1}) == FactorsConfig()
    heldout = any(evaluation.heldout for evaluation in spec.evaluations)
    return free and not heldout and not any(_marked_draw(v) for v in spec.variants)


def _marked_draw(variant: VariantConfig) -> bool:
    parts = (variant, *(variant.mixture or ()))
    marked = any(part.trigger or part.prefix or part.system for part in parts)
    drawn = variant.rows or variant.mixture or any(part.holdout for part in parts)
    return bool(marked and drawn)
