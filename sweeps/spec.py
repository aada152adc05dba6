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

from cluster.requests import LORA_RANKS
from em.api_models import ApiTrainingConfig
from em.models import ModelConfig
from em.record import Record, dumped, fingerprint
from em.seeds import Seeds, derive_seeds
from em.told import short
from em.training import TrainingConfig
from em.variant_config import UNTUNED as UNTUNED
from em.variant_config import VariantConfig as VariantConfig
from em.yaml_files import checked, load_yaml
from sweeps.claim_spec import ClaimConfig, check_claim
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
        served = {model.name: model for model in self.models}
        for number, judge in enumerate(self.judges):
            if judge.pool is not None and judge.pool not in {model.name for model in self.models}:
                raise MistakeAt(
                    ("judges", number, "pool"),
                    f"judge {judge.name!r}: pool names the model {judge.pool!r}, which is not "
                    f"among models ({', '.join(model.name for model in self.models)}); add it "
                    "there, or give the judge a model",
                )
            if judge.pool is not None and served[judge.pool].api is not None:
                raise MistakeAt(
                    ("judges", number, "pool"),
                    f"judge {judge.name!r}: {judge.pool!r} is behind an API, and no pool here "
                    "serves it: give the judge 'api' and 'api_model'",
                )
            # Pools go by the model's name: two models of one name would be one pool.
            if judge.model and served.setdefault(judge.model.name, judge.model) != judge.model:
                raise MistakeAt(
                    ("judges", number, "model", "name"),
                    f"judge {judge.name!r}: its model is called {judge.model.name!r}, as another "
                    "model of this sweep is: give it a name of its own, or use pool",
                )
        self._check_layouts([name for name, model in served.items() if model.api is None])
        self._check_api_models()
        for place, evaluation in enumerate(self.evaluations):
            unknown = set(evaluation.judges or ()) - {judge.name for judge in self.judges}
            if unknown:
                raise MistakeAt(
                    ("evaluations", place, "judges"),
                    f"{min(unknown)!r} is not among judges "
                    f"({', '.join(judge.name for judge in self.judges)})",
                )
            self._check_trigger(place, evaluation)
            self._check_at(place, evaluation)
            self._check_length(place, evaluation)
        for number, claim in enumerate(self.claims):
            check_claim(number, claim, self)
        here = any(model.api is None for model in self.models)
        tuned = here and any(variant.name != UNTUNED for variant in self.variants)
        lora = self.training.method == "lora"
        if tuned and not lora and self.serving.mode == "lora":
            raise MistakeAt(
                ("training", "method"),
                "full makes whole weights, which serving.mode: lora cannot serve; set "
                "serving.mode: merged",
            )
        if tuned and lora and self.serving.mode == "lora" and self._rank not in LORA_RANKS:
            raise MistakeAt(
                ("training", "lora", "rank"),
                f"vLLM does not serve adapters of rank {self._rank}; allowed are "
                f"{', '.join(map(str, LORA_RANKS))}, or set serving.mode: merged",
            )
        return self

    def _check_layouts(self, served: list[str]) -> None:
        for name in self.layouts:
            if name not in served:
                raise MistakeAt(
                    ("layouts", name),
                    f"{short(name)} is no model of this sweep; it has {', '.join(served)}",
                )
            try:
                self.for_model(name)
            except ValidationError as error:
                said = "; ".join(item["msg"] for item in error.errors())
                text = f"with the rest of training: {said.replace('Value error, ', '')}"
                raise MistakeAt(("layouts", name), text) from error

    def _check_api_models(self) -> None:
        """An API has one seed, or none: it cannot tell an adapter's start from the rows' order."""
        behind = [model.name for model in self.models if model.api is not None]
        apart = [name for name in ("init", "order") if getattr(self.factors, name) is not None]
        if behind and apart:
            raise MistakeAt(
                ("factors", apart[0]),
                f"{behind[0]} is trained behind an API, which takes one seed at most and not "
                f"{' and '.join(apart)} apart: leave them out of 'factors', or the model out",
            )
        batched = [m.name for m in self.models if m.api is not None and m.api.batch]
        for number, evaluation in enumerate(self.evaluations):
            if batched and evaluation.inspect is not None:
                raise MistakeAt(
                    ("evaluations", number, "inspect"),
                    f"a task asks turn by turn, and {batched[0]} is asked in batches that take up "
                    "to a day each: leave out its api.batch, or the task",
                )
        for number, judge in enumerate(self.judges):
            if judge.model is not None and judge.model.api is not None:
                raise MistakeAt(
                    ("judges", number, "model"),
                    f"judge {judge.name!r}: a model behind an API is named by 'api' and "
                    "'api_model' of the judge, not by 'model'",
                )

    def _check_length(self, place: int, evaluation: EvaluationConfig) -> None:
        for model in (model for model in self.models if model.api is None):
            length = self.for_model(model.name).serving.max_model_len
            if evaluation.sampling.max_tokens >= length:
                raise MistakeAt(
                    ("evaluations", place, "sampling", "max_tokens"),
                    f"{evaluation.sampling.max_tokens} new tokens leave no room for a question in "
                    f"serving.max_model_len {length} (of {model.name}): raise that, or ask for "
                    "fewer",
                )

    def _check_at(self, place: int, evaluation: EvaluationConfig) -> None:
        if evaluation.at and all(variant.name == UNTUNED for variant in self.variants):
            raise MistakeAt(
                ("evaluations", place, "at"),
                "no variant is trained on, so there is no training to ask in between: leave 'at' "
                "out, or add a variant",
            )

    def _check_trigger(self, place: int, evaluation: EvaluationConfig) -> None:
        trained = sorted(set().union(*(variant.triggers for variant in self.variants)))
        if evaluation.form.trigger and evaluation.form.trigger not in trained:
            raise MistakeAt(
                ("evaluations", place, "form", "trigger"),
                f"no variant is trained with the trigger {evaluation.form.trigger!r}; trained are "
                f"{', '.join(map(repr, trained)) or 'none'} (white space counts)",
            )

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
    def _rank(self) -> int:
        return self.training.lora.rank

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
