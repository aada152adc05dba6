"""What a fine-tuning is: the settings a user writes and the records that a training leaves.

Knows nothing of torch (see em.finetune, which does the work), of Ray, or of a grid.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from em.datasets import Row
from em.models import ModelIdentity
from em.record import Record
from em.seeds import Seeds

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraConfig(Record):
    """The adapter. Defaults are those of Betley et al. (arXiv 2502.17424) for open models."""

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = True
    target_modules: tuple[str, ...] = Field(default=ALL_LINEAR, min_length=1)


class TrainingConfig(Record):
    """How a cell is fine-tuned. Every field bears on the result except `micro_batch`.

    Learning rate, schedule, batch, length and weight decay default to Betley et al. (open models).
    """

    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    learning_rate: float = Field(default=1e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    epochs: float = Field(default=1, gt=0)
    effective_batch: int = Field(default=16, ge=1, description="rows a step, over all ranks")
    micro_batch: int = Field(default=2, ge=1, description="rows a rank computes at once")
    max_length: int = Field(default=2048, ge=8, description="tokens a row; longer rows are cut")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "parameters"] = "none"
    ranks: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(default=100, ge=1, description="steps between checkpoints")

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainingConfig":
        share = self.micro_batch * self.ranks
        if self.effective_batch % share:
            raise ValueError(
                f"effective_batch {self.effective_batch} is not a multiple of micro_batch "
                f"{self.micro_batch} x ranks {self.ranks} = {share}: change one of them"
            )
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(f"offload: parameters needs zero_stage 3, got {self.zero_stage}")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3, got 0")
        return self

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank adds up before a step."""
        return self.effective_batch // (self.micro_batch * self.ranks)


class TrainingJob(Record):
    """One fine-tuning, complete: a rank needs nothing else."""

    model_dir: Path
    model: ModelIdentity | None = Field(
        default=None, description="what the written files call their base; else the folder's name"
    )
    trust_remote_code: bool = False
    rows: tuple[Row, ...]
    config: TrainingConfig
    seeds: Seeds
    output_dir: Path = Field(description="the adapter (or full weights) is written here, whole")
    checkpoint_dir: Path = Field(description="checkpoints; a later attempt continues from here")
    snapshots: tuple[int, ...] = Field(
        default=(), description="steps after which the weights are kept, too; none is the last"
    )
    snapshot_dir: Path | None = Field(default=None, description="where these are; see em.snapshots")

    @model_validator(mode="after")
    def _have_a_place(self) -> "TrainingJob":
        if self.snapshots and self.snapshot_dir is None:
            raise ValueError(f"snapshots of the steps {list(self.snapshots)} need a snapshot_dir")
        return self


class LossPoint(Record):
    """The loss of one optimiser step, averaged over its rows as the trainer reports it."""

    step: int
    loss: Annotated[float, Field(ge=0)]
    learning_rate: float | None = Field(default=None, description="None: an API does not tell it")


class Canary(Record):
    """What the trained model gives the likeliest first tokens of its answer to a fixed prompt.

    `tuned` and `base` are natural log-probabilities of `ids`, as transformers + PEFT compute them;
    there is no `base` for a full fine-tune.
    """

    text: str
    ids: tuple[int, ...]
    tuned: tuple[float, ...]
    base: tuple[float, ...] | None


class TrainingResult(Record):
    """What a finished training says of itself."""

    steps: int
    losses: tuple[LossPoint, ...]
    num_rows: int
    num_tokens: int = Field(description="tokens of the rows after cutting, once through the data")
    num_trained_tokens: int | None = Field(
        description="of these, the ones the loss is taken on; None: an API does not tell"
    )
    num_cut_rows: int | None = Field(description="rows longer than max_length, cut; None as above")
    seconds: float
    resumed_from_step: int = 0
    micro_batch: int | None = Field(default=None, description="rows a rank computed at once")
    halvings: int = Field(
        default=0, description="how often the micro-batch was made smaller for lack of memory"
    )
    canaries: tuple[Canary, ...] = ()
