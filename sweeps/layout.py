"""What a sweep's stages hold of a cluster, and whether that fits. Knows nothing of running them."""

from cluster.resources import Demand, ResourcePlan, Totals, plan_resources
from em.models import ModelConfig
from sweeps.keys import judge_model
from sweeps.spec import SweepSpec
from sweeps.todo import Todo


def demands(spec: SweepSpec, todo: Todo) -> tuple[list[Demand], list[Demand]]:
    """Return what one training of each model holds, and one engine of each, for what is to do."""
    lacking = (cell.cell for cell in todo.lacking("train"))
    trained = dict.fromkeys(cell.model.name for cell in lacking if cell.local_training is not None)
    trains = dict.fromkeys(train_demand(spec, name) for name in trained)
    return list(trains), [engine_demand(spec, m.name) for m in pool_models(spec, todo)]


def train_demand(spec: SweepSpec, model_name: str) -> Demand:
    """Return what one training of a model holds."""
    own = spec.for_model(model_name)
    return Demand(
        name=f"one cell's training of {model_name}" if spec.layouts else "one cell's training",
        cpus=own.resources.train_cpus,
        gpus=own.resources.train_gpus,
        count=own.training.ranks,
    )


def engine_demand(spec: SweepSpec, model_name: str) -> Demand:
    """Return what one engine of a model holds."""
    own = spec.for_model(model_name).resources
    return Demand(name=model_name, cpus=own.serve_cpus, gpus=own.serve_gpus)


def pool_models(spec: SweepSpec, todo: Todo) -> list[ModelConfig]:
    """Return the models that must be served, each once.

    Those of the cells that lack responses, and those of the judges where a cell lacks judgements;
    none that is behind an API.
    """
    asked = (cell.cell.model for cell in todo.lacking("generate"))
    models = {model.name: model for model in asked if model.api is None}
    if todo.lacking("judge"):
        models |= {model.name: model for model in judge_models(spec)}
    return list(models.values())


def judge_models(spec: SweepSpec) -> list[ModelConfig]:
    """Return the models of the judges that this sweep serves itself."""
    return [judge_model(spec, judge) for judge in spec.judges if judge.served]


def feasible(spec: SweepSpec, todo: Todo, totals: Totals) -> ResourcePlan:
    """Return how the work is laid out on `totals`. Raises ClusterTooSmall with the arithmetic."""
    trains, engines = demands(spec, todo)
    judges = {model.name for model in judge_models(spec)}
    shared = [engine for engine in engines if engine.name in judges]
    groups = [[engine, *shared] for engine in engines if engine.name not in judges]
    return plan_resources(totals, trains, groups or ([shared] if shared else []))
