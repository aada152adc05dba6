"""Do a sweep's trainings and engines fit the GPUs that were found, or the card that is named.

What does not fit is told with its largest parts, and the first layout of the same work that does.
Knows nothing of how memory is told (see em.footprint), or of how GPUs are found.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em.footprint import Fit, ServingFootprint, gib, serving_footprint, training_footprint
from em.model_shape import ModelShape, shape_for
from em.models import ModelConfig
from em.training import TrainingConfig
from sweeps.cards import known_cards
from sweeps.layout import pool_models
from sweeps.node_facts import NodeFacts
from sweeps.settings import ServingConfig
from sweeps.spec import SweepSpec
from sweeps.todo import Todo

MIB = 2**20
PLANNED_MIB = 81_559  # what nvidia-smi tells of a card of 80 GB; where none is seen or named
MOST_PARTS = 3
WIDTHS = (2, 4, 8, 16)  # GPUs of one training or engine that are tried where fewer do not do
# An engine that answers few at one time, with one adapter: slow, and small.
SMALL_ENGINE = {"max_num_seqs": 16, "max_loras": 1}
NO_WAY = "no layout on these nodes fits: take larger cards on all of them, or a smaller model"


@dataclass(frozen=True)
class Memory:
    """What one GPU holds for a training or an engine. `fits` is None where no card is known."""

    what: str
    told: str
    fits: Fit | None
    card: str
    cure: str = ""

    def __str__(self) -> str:
        if self.fits is None:
            return f"{self.told} (not compared: {self.card})"
        told = f"{self.told}; smallest card: {self.card}"
        return told + (": within the error of the estimate" if self.fits == "unsure" else "")


@dataclass(frozen=True)
class Cards:
    """The GPUs that were found: the smallest one's name and MiB, of a node at most, of all.

    Of a card that is only named, as many are taken to be had as a layout may want.
    """

    name: str
    mib: int
    most_on_a_node: int
    num: int

    def __str__(self) -> str:
        return f"{self.name}, {gib(self.mib * MIB)}" if self.mib else self.name


def cards(facts: Sequence[NodeFacts]) -> Cards:
    """Return the GPUs of all nodes; 0 of 0 MiB where none is seen."""
    mib, name = min(
        ((mib, name) for fact in facts for name, mib in fact.gpus), default=(0, "no GPU seen")
    )
    counts = [len(fact.gpus) for fact in facts]
    return Cards(name, mib, max(counts, default=0), sum(counts))


def named_card(name: str | None) -> Cards:
    """Return the card that a spec names, none of it seen; 0 of 0 MiB where it names none."""
    if name is None:
        return cards(())
    most = max(WIDTHS)
    return Cards(f"{name} (named in the spec)", known_cards()[name].memory_mib, most, most)


def memory(
    spec: SweepSpec,
    todo: Todo,
    facts: Sequence[NodeFacts],
    *,
    shape_of: Callable[[ModelConfig], ModelShape] = shape_for,
) -> list[Memory]:
    """Return what each kind of training, and each engine, holds of the smallest card it may get.

    That is the card which the spec names where no GPU is seen. Empty where the sweep asks for no
    GPU. A model whose shape `shape_of` cannot tell (ValueError) is told as such.
    """
    found = []
    for model, config in _trainings(todo):
        gpus = spec.for_model(model.name).resources.train_gpus
        if gpus:
            seen = _cards_for(spec, model, facts, gpus)
            found.append(
                training_memory(model, config, seen, share=min(1.0, gpus), shape_of=shape_of)
            )
    for model in pool_models(spec, todo):
        own = spec.for_model(model.name)
        if own.resources.serve_gpus:
            seen = _cards_for(spec, model, facts, own.resources.serve_gpus)
            found.append(serving_memory(model, own, seen, shape_of=shape_of))
    return found


def _cards_for(
    spec: SweepSpec, model: ModelConfig, facts: Sequence[NodeFacts], gpus: float
) -> Cards:
    seen = cards(_with_room(facts, gpus))
    return seen if seen.num else named_card(spec.for_model(model.name).resources.card)


def _with_room(facts: Sequence[NodeFacts], gpus: float) -> list[NodeFacts]:
    """The nodes that have so many GPUs; all where none has (that is told as a lack of room)."""
    return [fact for fact in facts if len(fact.gpus) >= gpus] or list(facts)


def _trainings(todo: Todo) -> list[tuple[ModelConfig, TrainingConfig]]:
    kinds: Mapping[str, tuple[ModelConfig, TrainingConfig]] = {
        cell.cell.model.name: (cell.cell.model, cell.cell.local_training)
        for cell in todo.lacking("train")
        if cell.cell.local_training is not None
    }
    return list(kinds.values())


def training_memory(
    model: ModelConfig,
    config: TrainingConfig,
    seen: Cards,
    *,
    share: float = 1.0,
    shape_of: Callable[[ModelConfig], ModelShape] = shape_for,
) -> Memory:
    """Return what a rank of a training holds of its `share` of the smallest card."""
    what = f"training {model.name}"
    try:
        shape = shape_of(model)
        needed = training_footprint(shape, config)
    except ValueError as error:
        return Memory(what, str(error), None, str(seen))
    if not seen.mib:
        return Memory(what, str(needed), None, str(seen))
    room = int(seen.mib * MIB * share)
    card = str(seen) if share == 1 else f"{seen}, of which train_gpus {share:g} is its share"
    fits = needed.fits(room)
    if fits == "yes":
        return Memory(what, str(needed), fits, card)
    told = f"{gib(needed.total)} a GPU (± {needed.error:.0%}): {_largest(needed.table())}"
    for changes in _training_layouts(config, seen.num):
        changes = {name: new for name, new in changes.items() if new != getattr(config, name)}
        try:
            other = training_footprint(shape, _changed(config, changes))
        except ValueError:  # such as a batch that so many ranks cannot share
            continue
        if other.fits(room) == "yes":
            host = sum(other.host.values())
            cure = f"with training: {_as_yaml(changes)} it is {gib(other.total)} a GPU"
            cure += f", and {gib(host)} of the host for each" if host else ""
            return Memory(what, told, fits, card, cure)
    return Memory(what, told, fits, card, NO_WAY)


def _training_layouts(config: TrainingConfig, num_gpus: int) -> Iterator[dict[str, Any]]:
    """Yield changes that make a rank smaller, those first that cost least."""
    changes: dict[str, Any] = {"gradient_checkpointing": True}
    yield changes
    changes = changes | {"micro_batch": 1}
    yield changes
    for ranks in WIDTHS:
        if config.ranks < ranks <= num_gpus:
            yield changes | {"zero_stage": 3, "ranks": ranks}
    widest = max([n for n in WIDTHS if n <= num_gpus] + [config.ranks])
    for offload in ("optimizer", "parameters"):
        for ranks in sorted({config.ranks, widest}):
            yield changes | {"zero_stage": 3, "ranks": ranks, "offload": offload}


def _changed(config: TrainingConfig, changes: Mapping[str, Any]) -> TrainingConfig:
    return TrainingConfig.model_validate(config.model_dump() | dict(changes))


def serving_memory(
    model: ModelConfig,
    spec: SweepSpec,
    seen: Cards,
    *,
    shape_of: Callable[[ModelConfig], ModelShape] = shape_for,
) -> Memory:
    """Return what each GPU of an engine holds, and whether a sequence has room beside it."""
    what = f"serving {model.name}"
    width = max(1, int(spec.resources.serve_gpus))
    card_bytes = (seen.mib or PLANNED_MIB) * MIB
    try:
        shape = shape_of(model)
    except ValueError as error:
        return Memory(what, str(error), None, str(seen))
    needed = _engine(shape, spec, spec.serving, width, card_bytes)
    fits = needed.fits() if seen.mib else None
    if fits in ("yes", None):
        return Memory(what, str(needed), fits, str(seen))
    sequence = needed.max_model_len * needed.kv_bytes_per_token
    told = (
        f"{gib(needed.total)} of {gib(needed.budget)} a GPU before any cache: "
        f"{_largest(needed.table())}; one sequence of {needed.max_model_len:,} tokens needs "
        f"{gib(sequence)} of cache"
    )
    wider = [n for n in WIDTHS if width < n <= seen.most_on_a_node and not shape.num_heads % n]
    for changes, gpus in [({}, n) for n in wider] + [(SMALL_ENGINE, n) for n in (width, *wider)]:
        other = _engine(shape, spec, spec.serving.model_copy(update=changes), gpus, card_bytes)
        if other.fits() == "yes":
            settings = [f"serving: {_as_yaml(changes)}"] if changes else []
            settings += [f"resources: {{serve_gpus: {gpus}}}"] if gpus != width else []
            cure = f"with {' and '.join(settings)} it is {gib(other.total)} a GPU"
            return Memory(what, told, fits, str(seen), cure)
    return Memory(what, told, fits, str(seen), f"{NO_WAY}, or a smaller serving.max_model_len")


def _engine(
    shape: ModelShape, spec: SweepSpec, serving: ServingConfig, width: int, card_bytes: int
) -> ServingFootprint:
    lora = serving.mode == "lora"
    return serving_footprint(
        shape,
        serving.dtype,
        card_bytes=card_bytes,
        max_model_len=serving.max_model_len,
        max_num_seqs=serving.max_num_seqs,
        gpu_memory_utilization=serving.gpu_memory_utilization,
        tensor_parallel=width,
        max_loras=serving.max_loras if lora else 0,
        max_lora_rank=spec.training.lora.rank if lora else 0,
    )


def _largest(parts: Sequence[tuple[str, int]]) -> str:
    kept = [(name, size) for name, size in parts if name != "KV cache"][:MOST_PARTS]
    return ", ".join(f"{name} {gib(size)}" for name, size in kept)


def _as_yaml(settings: Mapping[str, Any]) -> str:
    values = (f"{name}: {str(value).lower()}" for name, value in settings.items())
    return f"{{{', '.join(values)}}}"
