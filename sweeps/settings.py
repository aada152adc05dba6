"""The parts of a sweep's spec that a user writes: evaluations, judges, serving, resources, seeds.

Each checks itself; what must fit together is checked by sweeps.spec. Knows nothing of cells.
"""

import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from em.api_client import check_address, check_key_name
from em.budget import BudgetConfig
from em.forms import Form
from em.generation import SamplingConfig
from em.inspect_tasks import GraderConfig
from em.models import ModelConfig
from em.pattern_judge import PatternConfig
from em.record import Record
from em.sandboxes import Sandbox
from em.scoring import DEFINITIONS
from em.seeds import FACTORS
from sweeps.cards import check_card

JUDGE_KINDS = ("pool", "model", "api", "pattern", "analyser", "scorer")
TASK_METRIC = "correct_share"  # of a task's own scores, where the evaluation names no other
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
TASK_NAME = re.compile(r"\w+/[\w./-]*\w|[^@]+\.py@\w+")
NAME_RULE = "1 to 63 letters, digits, - or _, beginning with a letter or digit"
# W&B's own rule for the name of a project.
WANDB_NAME = re.compile(r"[^/\\#?%:\s][^/\\#?%:\n]{0,127}")
WANDB_RULE = r"1 to 128 letters, and none of / \ # ? % :"
Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


def check_name(name: str) -> str:
    """Return `name`. Raises ValueError where it is none: folders and tags are called after it."""
    if not NAME.fullmatch(name.replace(".", "_")):
        raise ValueError(f"{name!r} is not a name: use {NAME_RULE}, and dots")
    return name


def check_metric_name(metric: str | None) -> str | None:
    """Return `metric`. Raises ValueError where no definition has that name."""
    if metric is not None and metric not in DEFINITIONS:
        raise ValueError(f"unknown metric {metric!r}: allowed are {', '.join(DEFINITIONS)}")
    return metric


class EvaluationConfig(Record):
    """A question set, asked. `samples` is per wording, and goes before the file's own number.

    In place of a file, `heldout` asks what a variant's held-out rows ask, at most `tasks` of them
    for each cell (the first ones). `inspect` runs a task of Inspect, `PACKAGE/NAME` or
    `FILE.py@NAME` beside the spec, with `task_args`, on its first `limit` samples; its own `scorer`
    (named where it has several) scores them. `grader` is who it asks where it asks another model,
    `sandbox` where code is run where it runs some. `form` is how questions are put. `judges` are
    those of the spec's that score it, by name; `metric` the definition of its rate. Each is the
    whole spec's where it is left out. `at` are fractions of the training after which the cell is
    asked, too; at its end it always is.
    """

    name: str = "main"
    questions: str | None = None
    heldout: str | None = None
    tasks: int | None = Field(default=None, ge=1)
    inspect: str | None = None
    task_args: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)
    scorer: str | None = None
    grader: GraderConfig | None = None
    sandbox: Sandbox | None = None
    form: Form = Form()
    ids: Literal["main"] | tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    samples: int | None = Field(default=None, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    judges: tuple[str, ...] | None = Field(default=None, min_length=1)
    metric: str | None = None
    at: tuple[float, ...] | None = Field(default=None, min_length=1)

    _name = field_validator("name")(check_name)
    _metric = field_validator("metric")(check_metric_name)

    @field_validator("at")
    @classmethod
    def _of_a_training(cls, at: tuple[float, ...] | None) -> tuple[float, ...] | None:
        fractions = at or ()
        rising = all(first < second for first, second in itertools.pairwise(fractions))
        if not rising or not all(0 < fraction <= 1 for fraction in fractions):
            raise ValueError(
                "'at' are fractions of a training, above 0 and up to 1, each larger than the one "
                f"before it, such as [0.25, 0.5]; got {list(fractions)}"
            )
        return at

    @model_validator(mode="after")
    def _one_source(self) -> "EvaluationConfig":
        given = [n for n in ("questions", "heldout", "inspect") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                "an evaluation asks the 'questions' of a file, or 'heldout' rows, or runs a task "
                f"of 'inspect'; got {' and '.join(given) or 'none'}"
            )
        self._check_task()
        if self.heldout is None and self.tasks is not None:
            raise ValueError("'tasks' is how many held-out rows are asked: it goes with 'heldout'")
        if self.heldout is not None and (self.ids is not None or self.exclude):
            raise ValueError("'ids' and 'exclude' choose among questions, not held-out rows")
        return self

    @field_validator("inspect")
    @classmethod
    def _is_a_task(cls, name: str | None) -> str | None:
        if name is not None and not TASK_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} names no task: write PACKAGE/NAME, or FILE.py@NAME for one of your own"
            )
        return name

    def _check_task(self) -> None:
        if self.inspect is None:
            for name in ("task_args", "limit", "scorer", "grader", "sandbox"):
                if getattr(self, name):
                    raise ValueError(f"{name!r} goes with 'inspect'")
            return
        if self.form != Form() or self.ids is not None or self.exclude or self.judges is not None:
            raise ValueError(
                "a task of 'inspect' asks and scores in its own way: drop form, ids, exclude and "
                "judges ('limit' says how many samples, 'task_args' what the task takes)"
            )


class JudgeConfig(Record):
    """Who scores the answers: a model that the sweep serves, an address, or a rule without a model.

    Rules without a model: `pattern`, regular expressions; `analyser`, Bandit on code; `scorer`,
    whatever a task of `inspect` scores with (a spec with such an evaluation has one by itself).
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
    scorer: Literal["inspect"] | None = None
    prompts: str | None = None
    demonstration: bool = False

    _name = field_validator("name")(check_name)

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
        if (self.pattern or self.analyser or self.scorer) and self.prompts:
            raise ValueError(f"a judge with {given[0]!r} reads the answer alone: drop 'prompts'")
        if self.api and not self.api_model:
            raise ValueError("a judge with 'api' also needs api_model, the model's name there")
        if self.api:
            check_address(self.api)
        for name in ("api_model", "api_version", "budget"):
            if not self.api and getattr(self, name) is not None:
                raise ValueError(f"{name} is for a judge with 'api', not with {given[0]!r}")
        check_key_name(self.api_key_env, "api_key_env")
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
    replicas: int = Field(default=1, ge=1, description="engines of each base model, at most")
    concurrency: int = Field(default=4, ge=1, description="cells side by side, of an engine")
    stall_limit_s: float = Field(
        default=300,
        ge=1,
        description="an engine that is asked and gives no token so long is killed",
    )


class ResourcesConfig(Record):
    """What is held: for each training rank, and for each serving replica.

    `card` is the kind of GPU, for `plan` to reckon hours and cost with, and to
    compare memory with where no GPU is seen; it bears on nothing else.
    """

    train_cpus: float = Field(default=1, gt=0)
    train_gpus: float = Field(default=0, ge=0)
    serve_cpus: float = Field(default=1, gt=0)
    serve_gpus: float = Field(default=0, ge=0)
    card: str | None = None

    _card = field_validator("card")(check_card)


class TrackingConfig(Record):
    """Weights & Biases. `auto` is online where there is a key for it, else offline.

    Adapters of up to `adapters_mib` MiB are sent whole, larger ones by hash. With `alerts`, W&B
    sends a message for each failed cell.
    """

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "em-sweeps"
    entity: str | None = None
    adapters_mib: float = Field(default=0, ge=0)
    alerts: bool = False

    @field_validator("project", "entity")
    @classmethod
    def _is_a_name_there(cls, name: str | None) -> str | None:
        if name is not None and not WANDB_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name in W&B: use {WANDB_RULE}")
        return name

    @field_validator("mode", mode="before")
    @classmethod
    def _off_is_a_word(cls, mode: object) -> object:
        return "off" if mode is False else mode  # YAML reads a bare off as false


class FactorsConfig(Record):
    """Seed factors that do not follow the cell's seed: fixed to one number, or crossed over many.

    A number means what it means in `seeds`: `init: 3` is the adapter's start of the cell with seed
    3. `replicates` makes that many cells of equal seeds. An untuned cell has no training, so only
    `sampling` and `replicates` make more of it; a fixed `subset` says which held-out rows it is
    asked.
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
        for name in FACTORS:
            value = getattr(self, name)
            applies = tuned or name == "sampling" or (name == "subset" and isinstance(value, int))
            if value is not None and applies:
                choices[name] = value if isinstance(value, tuple) else (value,)
        if self.replicates > 1:
            choices["replicate"] = tuple(range(self.replicates))
        combinations = itertools.product(*choices.values())
        return [dict(zip(choices, numbers, strict=True)) for numbers in combinations]
