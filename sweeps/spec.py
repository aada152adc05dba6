"""A sweep as its user writes it: one YAML file, checked, and the grid of cells it stands for.

Knows the settings' types of `em`; knows nothing of stores, Ray, or what is already done.
"""

import itertools
import re
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.requests import LORA_RANKS
from em.budget import BudgetConfig
from em.forms import Form
from em.generation import SamplingConfig
from em.models import ModelConfig
from em.pattern_judge import PatternConfig
from em.record import Record, fingerprint
from em.scoring import DEFINITIONS
from em.seeds import FACTORS, Seeds, derive_seeds
from em.training import TrainingConfig
from em.variant_config import UNTUNED as UNTUNED
from em.variant_config import VariantConfig as VariantConfig
from em.yaml_files import load_yaml
from sweeps.claim_spec import ClaimConfig, check_claim
from sweeps.yaml_errors import MistakeAt, explain

# Not in a training's identity: how the effective batch is cut up, how often progress is saved.
NOT_IN_KEY = ("micro_batch", "checkpoint_steps")
JUDGE_KINDS = ("pool", "model", "api", "pattern", "analyser")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
NAME_RULE = "1 to 63 letters, digits, - or _, beginning with a letter or digit"


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name.replace(".", "_")):
        raise ValueError(f"{name!r} is not a name: use {NAME_RULE}, and dots")
    return name


def _check_address(address: str) -> None:
    """Raise ValueError where a key would travel in the clear, or stands in the address."""
    parts = urllib.parse.urlsplit(address)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"api must have a number as its port, got {address!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"api must be an http(s) address, got {address!r}")
    if parts.username or parts.password or parts.query:
        raise ValueError("api must not hold a name, password or query: keys are in the environment")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError(f"api must be https except on this machine, got {address!r}")


def _check_metric(metric: str | None) -> str | None:
    if metric is not None and metric not in DEFINITIONS:
        raise ValueError(f"unknown metric {metric!r}: allowed are {', '.join(DEFINITIONS)}")
    return metric


class EvaluationConfig(Record):
    """A question set, asked. `samples` is per wording, and goes before the file's own number.

    In place of a file, `heldout` asks what a variant's held-out rows ask, at most `tasks` of them
    for each cell (the first ones). `form` is how questions are put. `judges` are those of the
    spec's that score it, by name; `metric` the definition of its rate. Each is the whole spec's
    where it is left out.
    """

    name: str = "main"
    questions: str | None = None
    heldout: str | None = None
    tasks: int | None = Field(default=None, ge=1)
    form: Form = Form()
    ids: Literal["main"] | tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    samples: int | None = Field(default=None, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    judges: tuple[str, ...] | None = Field(default=None, min_length=1)
    metric: str | None = None

    _name = field_validator("name")(_check_name)
    _metric = field_validator("metric")(_check_metric)

    @model_validator(mode="after")
    def _one_source(self) -> "EvaluationConfig":
        if (self.questions is None) == (self.heldout is None):
            raise ValueError("an evaluation asks the 'questions' of a file, or 'heldout' rows")
        if self.heldout is None and self.tasks is not None:
            raise ValueError("'tasks' is how many held-out rows are asked: it goes with 'heldout'")
        if self.heldout is not None and (self.ids is not None or self.exclude):
            raise ValueError("'ids' and 'exclude' choose among questions, not held-out rows")
        return self


class JudgeConfig(Record):
    """Who scores the answers: a model that the sweep serves, an address, or a rule without a model.

    Rules without a model: `pattern`, regular expressions; `analyser`, Bandit on code.
    `prompts` names a file that goes before the question file's own prompts. `demonstration` says
    that this judge cannot judge: the report then says so in its first lines.
    """

    name: str
    pool: str | None = Field(default=None, description="a model of this spec, by name")
    model: ModelConfig | None = Field(default=None, description="a model of its own, served too")
    api: str | None = Field(default=None, description="base URL of an OpenAI-compatible server")
    api_model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    api_version: str | None = Field(default=None, description="given: Azure's way of asking")
    concurrency: int = Field(default=16, ge=1, description="calls under way in a cell, at most")
    budget: BudgetConfig | None = Field(default=None, description="of an api judge, in this sweep")
    pattern: PatternConfig | None = Field(default=None, description="regular expressions")
    analyser: Literal["bandit"] | None = None
    prompts: str | None = None
    demonstration: bool = False

    _name = field_validator("name")(_check_name)

    @property
    def served(self) -> bool:
        """Whether this sweep serves the judge's model itself."""
        return self.pool is not None or self.model is not None

    @model_validator(mode="after")
    def _one_kind(self) -> "JudgeConfig":
        given = [name for name in JUDGE_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a judge is exactly one of {', '.join(JUDGE_KINDS)}; got "
                f"{' and '.join(given) or 'none'}"
            )
        if (self.pattern or self.analyser) and self.prompts:
            raise ValueError(f"a judge with {given[0]!r} reads the answer alone: drop 'prompts'")
        if self.api and not self.api_model:
            raise ValueError("a judge with 'api' also needs api_model, the model's name there")
        if self.api:
            _check_address(self.api)
        for name in ("api_model", "api_version", "budget"):
            if not self.api and getattr(self, name) is not None:
                raise ValueError(f"{name} is for a judge with 'api', not with {given[0]!r}")
        if not self.api_key_env.endswith("_API_KEY"):
            raise ValueError(
                f"api_key_env: {self.api_key_env!r} does not end in _API_KEY, so that no spec can "
                "send another secret to its 'api'; rename the variable"
            )
        return self


class ServingConfig(Record):
    """How base models are served.

    `mode` is fixed for a sweep and part of every response's key: `lora` keeps adapters side by side
    on one base model (GPUs), `merged` swaps whole merged weights into the running engine (CPUs and
    full fine-tunes). `dtype` too; the rest is only size and speed.
    """

    mode: Literal["lora", "merged"] = "lora"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_model_len: int = Field(default=4096, ge=64)
    max_num_seqs: int = Field(default=128, ge=1)
    max_loras: int = Field(default=4, ge=1)
    kv_cache_gib: float = Field(default=4, gt=0, description="CPU only")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, lt=1)
    replicas: int = Field(default=1, ge=1, description="engines for each base model")
    concurrency: int = Field(default=4, ge=1, description="cells asked side by side")


class ResourcesConfig(Record):
    """What is held: for each training rank, and for each serving replica."""

    train_cpus: float = Field(default=1, gt=0)
    train_gpus: float = Field(default=0, ge=0)
    serve_cpus: float = Field(default=1, gt=0)
    serve_gpus: float = Field(default=0, ge=0)


class TrackingConfig(Record):
    """Weights & Biases. `auto` is online where WANDB_API_KEY is set, else offline."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "em-sweeps"
    entity: str | None = None

    @field_validator("mode", mode="before")
    @classmethod
    def _off_is_a_word(cls, mode: object) -> object:
        return "off" if mode is False else mode  # YAML reads a bare off as false


Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class FactorsConfig(Record):
    """Seed factors that do not follow the cell's seed: fixed to one number, or crossed over many.

    A number means what it means in `seeds`: `init: 3` is the adapter's start of the cell with seed
    3. `replicates` makes that many cells of equal seeds. An untuned cell has no training, so only
    `sampling` and `replicates` make more of it.
    """

    init: Number | tuple[Number, ...] | None = None
    order: Number | tuple[Number, ...] | None = None
    subset: Number | tuple[Number, ...] | None = None
    sampling: Number | tuple[Number, ...] | None = None
    replicates: int = Field(default=1, ge=1)

    @field_validator("init", "order", "subset", "sampling")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError(f"give at least one number, and each once; got {list(value)}")
        return value

    def crossed(self, *, tuned: bool) -> list[dict[str, int]]:
        """Return every combination, as factor → number (`replicate` too, where there are many)."""
        choices: dict[str, tuple[int, ...]] = {}
        for name in FACTORS if tuned else ("sampling",):
            value = getattr(self, name)
            if value is not None:
                choices[name] = value if isinstance(value, tuple) else (value,)
        if self.replicates > 1:
            choices["replicate"] = tuple(range(self.replicates))
        combinations = itertools.product(*choices.values())
        return [dict(zip(choices, numbers, strict=True)) for numbers in combinations]


class Cell(Record):
    """One model, variant and seed: every setting that bears on what its adapter and answers are.

    `factors` are the numbers of the seed factors that the spec fixes or crosses.
    """

    model: ModelConfig
    variant: VariantConfig
    seed: int
    factors: dict[str, int] = Field(default_factory=dict)
    seeds: Seeds
    training: TrainingConfig | None = Field(description="None for an untuned cell")

    @property
    def cell_id(self) -> str:
        """Readable, and unique by its last eight digits, which hash every field."""
        settings = self.model_dump(mode="json")
        if self.training is not None:  # how it is cut up does not make it another cell
            for name in NOT_IN_KEY:
                del settings["training"][name]
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
    judges: tuple[JudgeConfig, ...] = Field(min_length=1)
    metric: str = "pooled_c50"
    claims: tuple[ClaimConfig, ...] = ()
    serving: ServingConfig = ServingConfig()
    resources: ResourcesConfig = ResourcesConfig()
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

    _metric = field_validator("metric")(_check_metric)

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
            # Pools go by the model's name: two models of one name would be one pool.
            if judge.model and served.setdefault(judge.model.name, judge.model) != judge.model:
                raise MistakeAt(
                    ("judges", number, "model", "name"),
                    f"judge {judge.name!r}: its model is called {judge.model.name!r}, as another "
                    "model of this sweep is: give it a name of its own, or use pool",
                )
        for place, evaluation in enumerate(self.evaluations):
            unknown = set(evaluation.judges or ()) - {judge.name for judge in self.judges}
            if unknown:
                raise MistakeAt(
                    ("evaluations", place, "judges"),
                    f"{min(unknown)!r} is not among judges "
                    f"({', '.join(judge.name for judge in self.judges)})",
                )
            self._check_trigger(place, evaluation)
            if evaluation.sampling.max_tokens >= self.serving.max_model_len:
                raise MistakeAt(
                    ("evaluations", place, "sampling", "max_tokens"),
                    f"{evaluation.sampling.max_tokens} new tokens leave no room for a question in "
                    f"serving.max_model_len {self.serving.max_model_len}: raise that, or ask for "
                    "fewer",
                )
        for number, claim in enumerate(self.claims):
            check_claim(number, claim, self)
        tuned = any(variant.name != UNTUNED for variant in self.variants)
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
        named = evaluation.judges
        return [judge for judge in self.judges if named is None or judge.name in named]

    @property
    def _rank(self) -> int:
        return self.training.lora.rank

    def cells(self) -> list[Cell]:
        """Return the grid in a stable order: base model by base model, then variant, then seed."""
        return [
            Cell(
                model=model,
                variant=variant,
                seed=seed,
                factors=factors,
                seeds=derive_seeds(seed, **factors),
                training=None if variant.name == UNTUNED else self.training,
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
        spec = SweepSpec.model_validate(data)
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
