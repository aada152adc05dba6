"""A sweep as its user writes it: one YAML file, checked, and the grid of cells it stands for.

Knows the settings' types of `em`; knows nothing of stores, Ray, or what is already done.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from em.api_models import ApiTrainingConfig
from em.models import ModelConfig
from em.record import Record, dumped, fingerprint
from em.seeds import Seeds, derive_seeds
from em.training import TrainingConfig
from em.variant_config import UNTUNED as UNTUNED
from em.variant_config import VariantConfig as VariantConfig
from em.yaml_files import checked, load_yaml
from sweeps.claim_spec import ClaimConfig
from sweeps.model_layouts import LayoutConfig, laid_out
from sweeps.settings import (
    NAME,
    NAME_RULE,
    TASK_METRIC,
    EvaluationConfig,
    FactorsConfig,
    JudgeConfig,
    Number,
    ResourcesConfig,
    ServingConfig,
    TrackingConfig,
    check_metric_name,
)
from sweeps.spec_checks import check_spec
from sweeps.yaml_errors import MistakeAt, explain

SCORER = "scorer"  # the judge of evaluations that are tasks of Inspect
# Not in a training's identity: how the effective batch is cut up, how often progress is saved.
NOT_IN_KEY = ("micro_batch", "checkpoint_steps")


class Cell(Record):
    """One model, variant and seed: every setting that bears on what its adapter and answers are.

    `factors` are the numbers of the seed factors that the spec fixes or crosses.
    """

    model: ModelConfig
    variant: VariantConfig
    seed: int
    factors: dict[str, int] = Field(default_factory=dict)
    seeds: Seeds
    training: TrainingConfig | ApiTrainingConfig | None = Field(
        description="None for an untuned cell"
    )

    @property
    def cell_id(self) -> str:
        """Readable, and unique by its last eight digits, which hash every field."""
        training = dumped(self.training) if self.training else None
        if training is not None:  # how it is cut up does not make it another cell
            training = {n: value for n, value in training.items() if n not in NOT_IN_KEY}
        settings = {
            "model": model_settings(self.model), "variant": dumped(self.variant), "seed": self.seed,
            "factors": self.factors, "seeds": self.seeds, "training": training,
        }  # fmt: skip
        name = f"{self.model.name}.{self.variant.name}.s{self.seed_label}"
        return f"{name}-{fingerprint(settings)[:8]}"

    @property
    def seed_label(self) -> str:
        """The seed, and the number of every factor that does not follow it: `0`, `0.init3`."""
        return ".".join([str(self.seed), *(f"{name}{n}" for name, n in self.factors.items())])

    @property
    def condition(self) -> str:
        """What it shares with the cells that differ only in seed."""
        return f"{self.model.name} · {self.variant.name}"

    @property
    def local_training(self) -> TrainingConfig | None:
        """How it is trained here; None for an untuned cell, or one that an API trains."""
        return self.training if isinstance(self.training, TrainingConfig) else None


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """Return what tells a model from others: of one behind an API no pace, key or budget."""
    settings = {name: value for name, value in dumped(model).items() if name != "api"}
    return settings if model.api is None else settings | {"api": model.api.revision}


class SweepSpec(Record):
    """A sweep. See configs/sweeps for examples with every part explained."""

    name: str
    description: str = ""
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    variants: tuple[VariantConfig, ...] = Field(min_length=1)
    seeds: tuple[Number, ...] = Field(min_length=1)
    factors: FactorsConfig = FactorsConfig()
    training: TrainingConfig = TrainingConfig()
    evaluations: tuple[EvaluationConfig, ...] = Field(min_length=1)
    judges: tuple[JudgeConfig, ...] = Field(default=(), validate_default=True)
    metric: str = "pooled_c50"
    claims: tuple[ClaimConfig, ...] = ()
    serving: ServingConfig = ServingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    layouts: dict[str, LayoutConfig] = Field(default={}, description="by a model's name")
    tracking: TrackingConfig = TrackingConfig()
    retries: int = Field(default=2, ge=0, description="of a transient failure, for each stage")
    store: str | None = None

    @field_validator("name")
    @classmethod
    def _simple_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a sweep name: use {NAME_RULE}")
        return name

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = [seed for seed, count in Counter(seeds).items() if count > 1]
        if twice:
            raise ValueError(f"duplicate seed {twice[0]}: two cells would be the same")
        return seeds

    @field_validator("judges")
    @classmethod
    def _tasks_are_scored(
        cls, judges: tuple[JudgeConfig, ...], info: ValidationInfo
    ) -> tuple[JudgeConfig, ...]:
        """Add the judge that stands for the own scorers of tasks, where it is not written."""
        tasks = [e.inspect is not None for e in info.data.get("evaluations", ())]
        if any(tasks) and not any(judge.scorer for judge in judges):
            judges = (*judges, JudgeConfig(name=SCORER, scorer="inspect"))
        if not all(tasks) and all(judge.scorer for judge in judges):
            if not judges:
                raise PydanticKnownError("missing")
            raise ValueError("a judge is needed for the evaluations that are no tasks of inspect")
        return judges

    @field_validator("models", "variants", "evaluations", "judges")
    @classmethod
    def _distinct_names(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [name for name, count in Counter(i.name for i in items).items() if count > 1]
        if twice:
            raise ValueError(f"duplicate name {twice[0]!r}: give each its own")
        return items

    @field_validator("models", "variants")
    @classmethod
    def _have_names(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        for number, item in enumerate(items):  # a cell's folder is called after both
            if not NAME.fullmatch(item.name.replace(".", "_")):
                text = f"{item.name!r} is not a name: use {NAME_RULE}, and dots"
                raise MistakeAt((number, "name"), text)
        return items

    _metric = field_validator("metric")(check_metric_name)

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepSpec":
        check_spec(self)
        return self

    def judges_of(self, evaluation: EvaluationConfig) -> list[JudgeConfig]:
        """Return the judges that score `evaluation`."""
        if evaluation.inspect is not None:
            return [judge for judge in self.judges if judge.scorer is not None]
        named = evaluation.judges
        asked = [judge for judge in self.judges if judge.scorer is None]
        return [judge for judge in asked if named is None or judge.name in named]

    def metric_of(self, evaluation: EvaluationConfig) -> str:
        """Return the name of the definition that the rate of `evaluation` follows."""
        return evaluation.metric or (TASK_METRIC if evaluation.inspect else self.metric)

    def for_model(self, name: str) -> "SweepSpec":
        """Return the spec as it holds for one model: with its layout, and no `layouts`.

        It is this very spec where the model has none.
        """
        layout = self.layouts.get(name)
        if layout is None:
            return self
        parts = laid_out(layout, self.training, self.serving, self.resources)
        training, serving, resources = parts
        return self.model_copy(
            update={"training": training, "serving": serving, "resources": resources, "layouts": {}}
        )

    @property
    def num_cells(self) -> int:
        """How many cells the grid has, counted without making them."""
        tuned = [variant.name != UNTUNED for variant in self.variants]
        a_seed = sum(len(self.factors.crossed(tuned=tuned_one)) for tuned_one in tuned)
        return len(self.models) * len(self.seeds) * a_seed

    def cells(self) -> list[Cell]:
        """Return the grid in a stable order: base model by base model, then variant, then seed."""
        training = {
            model.name: model.api.training if model.api else self.for_model(model.name).training
            for model in self.models
        }
        return [
            Cell(
                model=model,
                variant=variant,
                seed=seed,
                factors=factors,
                seeds=derive_seeds(seed, **factors),
                training=None if variant.name == UNTUNED else training[model.name],
            )
            for model in self.models
            for variant in self.variants
            for seed in self.seeds
            for factors in self.factors.crossed(tuned=variant.name != UNTUNED)
        ]


def load_spec(path: str | Path) -> SweepSpec:
    """Return the sweep in a YAML file. Raises ValueError with file, line and key of mistakes."""
    path = Path(path)
    data, lines = load_yaml(path)
    try:
        spec = checked(TypeAdapter(SweepSpec), data)
    except ValidationError as error:
        raise ValueError(explain(error, SweepSpec, path=path, data=data, lines=lines)) from error
    return _with_folders(spec, path.resolve().parent)


def _with_folders(spec: SweepSpec, beside: Path) -> SweepSpec:
    """Make model folders absolute: beside the spec where they are there, else where we are."""

    def placed(model: ModelConfig) -> ModelConfig:
        if model.folder is None or model.folder.expanduser().is_absolute():
            return model
        found = beside / model.folder
        return model.model_copy(
            update={"folder": found if found.is_dir() else model.folder.resolve()}
        )

    judges = (
        j.model_copy(update={"model": placed(j.model)}) if j.model else j for j in spec.judges
    )
    return spec.model_copy(
        update={"models": tuple(map(placed, spec.models)), "judges": tuple(judges)}
    )
