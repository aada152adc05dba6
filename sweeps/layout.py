"""What a sweep's stages hold of a cluster, and whether that fits. Knows nothing of running them."""

from collections.abc import Iterable, Sequence

from cluster.resources import Demand, ResourcePlan, Totals, plan_resources
from em.models import ModelConfig
from sweeps.keys import judge_model
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.spec import SweepSpec
from sweeps.store import Store


def demands(
    spec: SweepSpec, todo: Iterable[CellPlan], store: Store
) -> tuple[Demand | None, list[Demand]]:
    """Return what one training holds, and what each pool holds, for the cells still to do."""
    resources = spec.resources
    todo = list(todo)
    trains = any("train" in stages_to_run(cell, store) for cell in todo)
    train = Demand(
        name="one cell's training",
        cpus=resources.train_cpus,
        gpus=resources.train_gpus,
        count=spec.training.ranks,
    )
    pools = [
        Demand(
            name=model.name,
            cpus=resources.serve_cpus,
            gpus=resources.serve_gpus,
            count=spec.serving.replicas,
        )
        for model in pool_models(spec, todo, store)
    ]
    return (train if trains else None), pools


def pool_models(spec: SweepSpec, todo: Iterable[CellPlan], store: Store) -> list[ModelConfig]:
    """Return the models that must be served, each once.

    Those of the cells that lack responses, and those of the judges where a cell lacks judgements.
    """
    stages = [(cell, stages_to_run(cell, store)) for cell in todo]
    models = [cell.cell.model for cell, left in stages if "generate" in left]
    if any("judge" in left for _, left in stages):
        models += judge_models(spec)
    return list({model.name: model for model in models}.values())


def judge_models(spec: SweepSpec) -> list[ModelConfig]:
    """Return the models of the judges that this sweep serves itself."""
    return [judge_model(spec, judge) for judge in spec.judges if judge.served]


def feasible(
    plan: SweepPlan, todo: Sequence[CellPlan], store: Store, totals: Totals
) -> ResourcePlan:
    """Return how the work is laid out on `totals`. Raises ClusterTooSmall with the arithmetic."""
    train, pools = demands(plan.spec, todo, store)
    shared = [model.name for model in judge_models(plan.spec)]
    return plan_resources(totals, train, pools, shared=shared)
