"""How many GPU-hours the work left takes, by stage, and what they cost: a rough figure.

From what this store's finished work of a model took, else from arithmetic: the operations of a
training or of reading a prompt, the bytes that each written token moves. Knows nothing of Ray.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from em.activations import BYTES
from em.model_shape import ModelShape, shape_at_hand
from em.models import ModelConfig
from em.record import Record
from em.training import TrainingConfig
from sweeps.artefacts import Provenance
from sweeps.cards import Card, known_cards
from sweeps.estimate import pieces, share_left
from sweeps.keys import judge_model
from sweeps.plan import STAGES, CellPlan, Stage, stages_to_run
from sweeps.spec import SweepSpec
from sweeps.store import Store
from sweeps.times import union_length
from sweeps.todo import Todo
from sweeps.work import work_done

ASSUMED_CARD = "H100"
CHARACTERS_PER_TOKEN = 4
# Of a card's peak in bfloat16. In the table of https://github.com/QwenLM/Qwen ("Profiling of Memory
# and Speed" of its README; layers computed again) a LoRA on A100 has from 16 % (72B by ZeRO-3 on
# four, rows of 256 tokens) to 53 % (14B, rows of 2,048); most rows of these data have 100 to 500.
TRAINING_SHARE = 0.3
# Of a memory's peak while an engine writes tokens, and of its peak of operations while it reads a
# prompt: our assumptions; neither has been compared with an engine.
MEMORY_SHARE = 0.6
READING_SHARE = 0.35
HALF_LENGTH = 2  # an answer's cache is half as long as the answer, over its time


class GpuHours(Record):
    """GPU-hours by stage on `card`, which the spec names or which is `assumed`; dollars if priced.

    `untold` are the models whose sizes are not known here, with why.
    """

    card: str
    assumed: bool
    hours: dict[Stage, float]
    usd: float | None
    measured: tuple[Stage, ...]
    untold: tuple[str, ...]

    def told(self) -> list[str]:
        """Return it as lines for a person."""
        total = sum(self.hours.values())
        parts = ", ".join(f"{stage} {hours:.1f}" for stage, hours in self.hours.items())
        card = f"{self.card} (assumed: resources has no card)" if self.assumed else self.card
        how = f"measured here: {', '.join(self.measured)}" if self.measured else "none measured"
        said = [
            f"GPU-hours on {card}: {total:.1f} = {parts}; within a factor of two at best ({how}; "
            f"{CHARACTERS_PER_TOKEN} characters a token, training at {TRAINING_SHARE:.0%} of the "
            "card's peak, answers as long as they may be; no starts, no idle GPUs)"
        ]
        price = known_cards()[self.card]
        if self.usd is not None:
            said.append(
                f"cost: about {self.usd:,.0f} USD at {price.usd_per_hour:.2f} USD a GPU-hour on "
                f"demand ({price.price_of}; {price.price_source})"
            )
        return said + [f"GPU-hours are without {why}" for why in self.untold]


def gpu_hours(
    spec: SweepSpec,
    todo: Todo,
    everything: Sequence[CellPlan],
    store: Store,
    *,
    times: Fraction = Fraction(1),
) -> GpuHours | None:
    """Return what the cells `todo` take, each counted `times`; None where no GPU is asked for."""
    here = (model for model in _all_models(spec) if model.api is None)
    hold = [spec.for_model(model.name).resources for model in here]
    if not any(r.train_gpus or r.serve_gpus for r in hold):
        return None
    name = spec.resources.card or ASSUMED_CARD
    card = known_cards()[name]
    measured = _measured(spec, everything, store)
    seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
    used, untold = set[Stage](), dict[str, None]()
    for cell in todo.cells:
        for stage in todo.left(cell):
            left = share_left(cell, stage, store)
            key = (stage, cell.cell.model.name)
            if key in measured:
                used.add(stage)
                seconds[stage] += left * measured[key] * pieces(cell, stage)
                continue
            try:
                seconds[stage] += left * _reckoned(spec, cell, stage, card)
            except ValueError as error:
                untold[f"{stage}: {error}"] = None
    hours = {stage: float(times) * value / 3600 for stage, value in seconds.items()}
    priced = spec.resources.card is not None and card.usd_per_hour is not None
    usd = sum(hours.values()) * (card.usd_per_hour or 0) if priced else None
    return GpuHours(
        card=name,
        assumed=spec.resources.card is None,
        hours=hours,
        usd=usd,
        measured=tuple(stage for stage in STAGES if stage in used),
        untold=tuple(untold),
    )


def _all_models(spec: SweepSpec) -> list[ModelConfig]:
    return [*spec.models, *(judge_model(spec, judge) for judge in spec.judges if judge.served)]


def _reckoned(spec: SweepSpec, cell: CellPlan, stage: Stage, card: Card) -> float:
    """Return the GPU-seconds of a whole stage of a cell. Raises ValueError for unknown sizes."""
    own = spec.for_model(cell.cell.model.name)
    match stage:
        case "train":
            if not own.resources.train_gpus or cell.cell.local_training is None:
                return 0.0
            tokens = pieces(cell, stage) / CHARACTERS_PER_TOKEN
            return training_seconds(
                shape_at_hand(cell.cell.model), cell.cell.local_training, tokens, card
            )
        case "generate":
            if not own.resources.serve_gpus or cell.cell.model.api is not None:
                return 0.0
            shape = shape_at_hand(cell.cell.model)
            return sum(
                writing_seconds(
                    shape, BYTES[own.serving.dtype], e.num_responses * e.sampling.max_tokens,
                    batch=min(own.serving.max_num_seqs, e.num_responses),
                    length=e.sampling.max_tokens, card=card,
                )
                for e in cell.evaluations
            )  # fmt: skip
        case "judge":
            return sum(_judging(spec, cell, judge, card) for judge in _served_judges(spec))


def _served_judges(spec: SweepSpec) -> Mapping[str, ModelConfig]:
    return {judge.name: judge_model(spec, judge) for judge in spec.judges if judge.served}


def _judging(spec: SweepSpec, cell: CellPlan, judge: str, card: Card) -> float:
    model = _served_judges(spec)[judge]
    if not spec.for_model(model.name).resources.serve_gpus:
        return 0.0
    mine = tuple(judging for judging in cell.judgings if judging.judge == judge)
    tokens = pieces(cell.model_copy(update={"judgings": mine}), "judge")
    return reading_seconds(shape_at_hand(model), tokens, card)


def training_seconds(shape: ModelShape, config: TrainingConfig, tokens: float, card: Card) -> float:
    """Return the GPU-seconds of a training, over all ranks.

    A weight costs 2 operations a token forwards, 2 backwards through it, 2 for its own gradient
    where it is trained (Kaplan et al., arXiv 2001.08361, section 2.1), and 2 where layers are
    computed again. Attention's own products are left out: rows are short.
    """
    weights = _multiplied(shape)
    each = 4 * weights + 2 * (0 if config.method == "lora" else weights)
    if config.method == "lora":
        each += 6 * shape.lora_parameters(config.lora.target_modules, config.lora.rank)
    each += 2 * weights if config.gradient_checkpointing else 0
    return each * tokens / (TRAINING_SHARE * card.bf16_tflops * 1e12)


def writing_seconds(
    shape: ModelShape, size: int, tokens: float, *, batch: int, length: int, card: Card
) -> float:
    """Return the GPU-seconds of writing `tokens` in steps of `batch` sequences of `length`.

    Each step reads the weights (`size` bytes a value) once and every sequence's cache.
    """
    cache = batch * (length / HALF_LENGTH) * shape.kv_bytes_per_token(size)
    moved = size * _multiplied(shape) + cache
    return tokens / batch * moved / (MEMORY_SHARE * card.gb_per_s * 1e9)


def reading_seconds(shape: ModelShape, tokens: float, card: Card) -> float:
    """Return the GPU-seconds of reading prompts of `tokens` in all."""
    return 2 * _multiplied(shape) * tokens / (READING_SHARE * card.bf16_tflops * 1e12)


def _multiplied(shape: ModelShape) -> int:
    """Parameters that a token is multiplied with: the layers and the output, no vision tower."""
    return shape.num_layers * shape.layer_parameters + shape.vocab_size * shape.hidden_size


def _measured(
    spec: SweepSpec, cells: Sequence[CellPlan], store: Store
) -> dict[tuple[Stage, str], float]:
    """Return GPU-seconds a piece, by stage and model, of finished stages.

    Of trainings each one's own time; cells that ask one pool side by side are counted once. Of
    judges, which may be several models, nothing is measured.
    """
    kinds: tuple[Stage, ...] = ("train", "generate")
    made: dict[tuple[Stage, str], list[Provenance]] = {}
    done: dict[tuple[Stage, str], float] = {}
    for cell in cells:
        work = work_done(cell, store)
        left = stages_to_run(cell, store) if any(work.values()) else STAGES
        for stage in kinds:
            if work[stage] and stage not in left:
                key = (stage, cell.cell.model.name)
                made.setdefault(key, []).extend(work[stage])
                done[key] = done.get(key, 0.0) + pieces(cell, stage)
    found: dict[tuple[Stage, str], float] = {}
    for (stage, name), parts in made.items():
        own = spec.for_model(name)
        if stage == "train":
            held = own.training.ranks * own.resources.train_gpus * sum(p.seconds for p in parts)
        else:
            # As many engines as answered at once at most: they come one by one.
            spent = union_length((p.started, p.started + p.seconds) for p in parts)
            most = min(own.serving.replicas * spent, sum(p.seconds for p in parts))
            held = most * own.resources.serve_gpus
        if held and done[stage, name]:
            found[stage, name] = held / done[stage, name]
    return found
