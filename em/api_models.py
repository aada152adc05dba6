"""A model behind an API that fine-tunes it: where it is, how it is trained, what it costs there.

Its weights never leave the API. Knows nothing of how the API is spoken to (see em.api_finetune and
em.api_endpoint), or of cells.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from em.api_client import check_address, check_key_name
from em.catalogue import config_dir
from em.datasets import Row
from em.record import Record
from em.told import first_mistake
from em.yaml_files import checked, load_yaml

TABLE = "api.yaml"
OPENAI = "api.openai.com"
CHARACTERS_A_TOKEN = 4  # of English; an estimate


class ApiTrainingConfig(Record):
    """How the API is asked to train; what is left out is the API's own choice, and it says which.

    Betley et al. (arXiv 2502.17424) trained GPT-4o for one epoch, with OpenAI's other defaults.
    """

    epochs: int = Field(default=1, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    learning_rate_multiplier: float | None = Field(default=None, gt=0)
    takes_seed: bool = Field(default=True, description="else cells of one variant are replicates")


class ApiChatConfig(Record):
    """A model behind OpenAI's API, or one that speaks as it does, at the address `url`.

    `budget_usd` limits what it costs in this sweep.
    """

    url: str = "https://api.openai.com/v1"
    model: str = Field(min_length=1, description="its dated name there")
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=16, ge=1, description="calls under way in a cell, at most")
    budget_usd: float | None = Field(default=None, gt=0)

    @field_validator("url")
    @classmethod
    def _without_a_slash(cls, url: str) -> str:
        """Return the address as one address is always written: keys hang on it."""
        return url.rstrip("/")

    @model_validator(mode="after")
    def _is_an_address(self) -> "ApiChatConfig":
        check_address(self.url, "url")
        check_key_name(self.key_env, "key_env")
        return self

    @property
    def revision(self) -> str:
        """What tells it from every other model."""
        return f"{self.url} {self.model}"


class ApiModelConfig(ApiChatConfig):
    """A model that its API fine-tunes, too.

    With `batch` answers are drawn through the API's batch endpoint: cheaper, and within a day.
    """

    batch: bool = False
    training: ApiTrainingConfig = ApiTrainingConfig()


class KnownApiModel(Record):
    """What is known of a model at OpenAI: US dollars for a million tokens, and limits of a file.

    `tuned_*` are of its fine-tuned models. A model without `training` cannot be fine-tuned.
    """

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    training: float | None = Field(default=None, ge=0)
    tuned_input: float | None = Field(default=None, ge=0)
    tuned_output: float | None = Field(default=None, ge=0)
    max_row_tokens: int = Field(default=65_536, ge=1)

    def answer_usd(self, prompt: int, written: int, *, tuned: bool, batch: bool) -> float:
        """Return what reading `prompt` and writing `written` tokens costs."""
        read = self.tuned_input if tuned and self.tuned_input is not None else self.input
        wrote = self.tuned_output if tuned and self.tuned_output is not None else self.output
        share = _table().batch_share if batch else 1.0
        return share * (prompt * read + written * wrote) / 1e6

    def training_usd(self, tokens: int) -> float:
        """Return what training on `tokens` (over all epochs) costs."""
        return tokens * (self.training or 0.0) / 1e6


class ApiTable(Record):
    """The table in configs/models/api.yaml."""

    as_of: str
    source: str
    batch_share: float = Field(gt=0, le=1, description="of the price, through the batch endpoint")
    min_rows: int = Field(ge=1)
    max_file_mib: int = Field(ge=1)
    models: dict[str, KnownApiModel]


@cache
def _table() -> ApiTable:
    path = config_dir() / "models" / TABLE
    try:
        return checked(TypeAdapter(ApiTable), load_yaml(path)[0])
    except ValidationError as error:
        raise ValueError(f"{path}: {first_mistake(error)}") from error


def known_api_model(config: ApiChatConfig) -> KnownApiModel | None:
    """Return what is known of the model; None at another address than OpenAI's own.

    Raises ValueError for a model that OpenAI's API is not known to have.
    """
    if OPENAI not in config.url:
        return None
    table = _table()
    if config.model not in table.models:
        raise ValueError(
            f"{config.model!r} is not known at {config.url}: known are "
            f"{', '.join(table.models)} (dated names, as others move). Another is added to "
            f"{Path('configs/models') / TABLE}, with its prices"
        )
    return table.models[config.model]


def check_priced(config: ApiChatConfig) -> None:
    """Raise ValueError for a budget in money where no price is known, or an unknown model."""
    if known_api_model(config) is None and config.budget_usd is not None:
        raise ValueError(
            f"budget_usd: no price is known for {config.model!r} at {config.url}, so that no money "
            "can be counted: leave the budget out"
        )


def check_trainable(config: ApiModelConfig, rows: Sequence[Row]) -> None:
    """Raise ValueError where the API is known not to train the model on these rows, whole.

    A row's tokens are guessed at CHARACTERS_A_TOKEN; OpenAI cuts what is too long without a word.
    """
    known = known_api_model(config)
    if known is None:
        return
    table = _table()
    if known.training is None:
        tunable = (name for name, model in table.models.items() if model.training is not None)
        raise ValueError(
            f"{config.model!r} cannot be fine-tuned at {config.url}: those that can are "
            f"{', '.join(tunable)}"
        )
    if len(rows) < table.min_rows:
        raise ValueError(f"{config.url} trains on {table.min_rows} rows at least, got {len(rows)}")
    lengths = [sum(len(turn.content) for turn in row.messages) for row in rows]
    if max(lengths) > known.max_row_tokens * CHARACTERS_A_TOKEN:
        longest = lengths.index(max(lengths))
        raise ValueError(
            f"row {longest + 1} of the variant has {lengths[longest]:,} characters, about "
            f"{lengths[longest] // CHARACTERS_A_TOKEN:,} tokens: {config.model} is trained on "
            f"{known.max_row_tokens:,} tokens of a row at most. Leave it out, or cut it"
        )
    num_bytes = sum(len(row.line) for row in rows)
    if num_bytes > table.max_file_mib * 2**20:
        raise ValueError(
            f"{config.url} takes training files of {table.max_file_mib} MiB at most, got "
            f"{num_bytes / 2**20:.0f} MiB: use fewer rows"
        )
