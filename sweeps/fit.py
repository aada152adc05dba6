"""Do a sweep's trainings and engines fit the GPUs that were found: rows of the preflight.

Knows nothing of how memory is told (see em.footprint), or of how GPUs are found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from em.footprint import Fit, gib, serving_footprint, training_footprint
from em.model_shape import shape_for
from em.models import ModelConfig
from em.training import TrainingConfig
from sweeps.layout import pool_models
from sweeps.node_facts import NodeFacts
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.spec import SweepSpec
from sweeps.store import Store

MIB = 2**20
SMALLER_TRAINING = (
    "set gradient_checkpointing, a smaller micro_batch or max_length, zero_stage 3 with more ranks,"
    " or offload"
)
SMALLER_SERVING = (
    "give an engine more GPUs (resources.serve_gpus), a smaller serving.max_model_len, max_loras "
    "or max_num_seqs"
)


@dataclass(frozen=True)
class Memory:
    """What one GPU holds for a training or an engine. `fits` is None where no card is known."""

    what: str
    told: str
    fits: Fit | None
    card: str
    cure: str


def memory(
    plan: SweepPlan, todo: Sequence[CellPlan], store: Store, facts: Iterable[NodeFacts]
) -> list[Memory]:
    """Return what each kind of training, and each engine, holds of the smallest card there is.

    Empty where the sweep asks for no GPU. A model that cannot be told is told as such.
    """
    card = min(
        ((mib, name) for fact in facts for name, mib in fact.gpus), default=(0, "no GPU seen")
    )
    spec = plan.spec
    found = [
        _training(model, config, card)
        for model, config in _trainings(todo, store)
        if spec.for_model(model.name).resources.train_gpus
    ]
    found += [
        _serving(model, spec.for_model(model.name), card)
        for model in pool_models(spec, todo, store)
        if spec.for_model(model.name).resources.serve_gpus
    ]
    return found


def _trainings(todo: Sequence[CellPlan], store: Store) -> list[tuple[ModelConfig, TrainingConfig]]:
    kinds: Mapping[str, tuple[ModelConfig, TrainingConfig]] = {
        cell.cell.model.name: (cell.cell.model, cell.cell.training)
        for cell in todo
        if cell.cell.training is not None and "train" in stages_to_run(cell, store)
    }
    return list(kinds.values())


def _training(model: ModelConfig, config: TrainingConfig, card: tuple[int, str]) -> Memory:
    what = f"training {model.name}"
    try:
        needed = training_footprint(shape_for(model), config)
    except ValueError as error:
        return Memory(what, str(error), None, card[1], "")
    fits = needed.fits(card[0] * MIB) if card[0] else None
    return Memory(what, str(needed), fits, _card(card), SMALLER_TRAINING)


def _serving(model: ModelConfig, spec: SweepSpec, card: tuple[int, str]) -> Memory:
    what = f"serving {model.name}"
    lora = spec.serving.mode == "lora"
    try:
        needed = serving_footprint(
            shape_for(model),
            spec.serving.dtype,
            card_bytes=(card[0] or PLANNED_MIB) * MIB,
            max_model_len=spec.serving.max_model_len,
            max_num_seqs=spec.serving.max_num_seqs,
            gpu_memory_utilization=spec.serving.gpu_memory_utilization,
            tensor_parallel=max(1, int(spec.resources.serve_gpus)),
            max_loras=spec.serving.max_loras if lora else 0,
            max_lora_rank=spec.training.lora.rank if lora else 0,
        )
    except ValueError as error:
        return Memory(what, str(error), None, card[1], "")
    return Memory(
        what, str(needed), needed.fits() if card[0] else None, _card(card), SMALLER_SERVING
    )


PLANNED_MIB = 81_559  # what nvidia-smi tells of a card of 80 GB; where none is seen yet


def _card(card: tuple[int, str]) -> str:
    return f"{card[1]}, {gib(card[0] * MIB)}" if card[0] else card[1]
