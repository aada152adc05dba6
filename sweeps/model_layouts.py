"""How one model of a sweep is trained and served, where that is not how the others are.

Says how, never what: data, method, batch and learning rate are the sweep's. Knows nothing of cells,
or of what a cluster has.
"""

from functools import cache
from typing import Literal, TypeVar

from pydantic import Field

from em.record import Record
from em.training import TrainingConfig
from sweeps.settings import ResourcesConfig, ServingConfig

TRAINING = ("ranks", "zero_stage", "offload", "micro_batch", "gradient_checkpointing")
SERVING = ("replicas", "max_model_len", "max_loras", "max_num_seqs")
RESOURCES = ("train_cpus", "train_gpus", "serve_cpus", "serve_gpus")
Part = TypeVar("Part", TrainingConfig, ServingConfig, ResourcesConfig)


class LayoutConfig(Record):
    """What goes before `training`, `serving` and `resources` for one model; None leaves it.

    `ranks`, `zero_stage`, `offload` and `gradient_checkpointing` are part of a training's key, as
    they are in `training`.
    """

    ranks: int | None = Field(default=None, ge=1)
    zero_stage: Literal[0, 1, 2, 3] | None = None
    offload: Literal["none", "optimizer", "parameters"] | None = None
    micro_batch: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool | None = None
    train_cpus: float | None = Field(default=None, gt=0)
    train_gpus: float | None = Field(default=None, ge=0)
    serve_cpus: float | None = Field(default=None, gt=0)
    serve_gpus: float | None = Field(default=None, ge=0)
    replicas: int | None = Field(default=None, ge=1)
    max_model_len: int | None = Field(default=None, ge=64)
    max_loras: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)


@cache
def laid_out(
    layout: LayoutConfig,
    training: TrainingConfig,
    serving: ServingConfig,
    resources: ResourcesConfig,
) -> tuple[TrainingConfig, ServingConfig, ResourcesConfig]:
    """Return the three parts with what `layout` says. Raises ValidationError where it cannot be."""
    return (
        _with(training, layout, TRAINING),
        _with(serving, layout, SERVING),
        _with(resources, layout, RESOURCES),
    )


def _with(part: Part, layout: LayoutConfig, names: tuple[str, ...]) -> Part:
    given = {name: getattr(layout, name) for name in names if getattr(layout, name) is not None}
    return type(part).model_validate(dict(part) | given) if given else part
