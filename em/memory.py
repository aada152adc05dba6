"""Running out of memory: which errors mean it, and with which micro-batch a training goes on.

What was learned stands in a file beside the checkpoints, so that it outlives the process that
learned it. Knows nothing of torch or Ray: their errors are told by class name and by message.
"""

import gc
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from em.record import Record
from em.training import TrainingConfig, TrainingJob, TrainingResult

NOTE = "micro_batch.json"
# Python's, torch's on a device, and Ray's where its monitor killed a process.
CLASSES = {"MemoryError", "OutOfMemoryError"}
# In plain errors, in small letters: CUDA's libraries, torch's allocator on CPU, and Ray's of an
# actor that its monitor killed.
MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "running low on memory",
)


class OutOfMemory(MemoryError):
    """A training does not fit into memory, not even with one row at a time."""


class MicroBatchNote(Record):
    """The micro-batch that a training goes on with, after it ran out of memory."""

    micro_batch: int = Field(ge=1)
    halvings: int = Field(ge=1, description="how often it has been made smaller")


def smaller_micro_batch(micro_batch: int, *, effective_batch: int, ranks: int) -> int | None:
    """Return half of `micro_batch`, or the next smaller number that divides a step; None at 1."""
    halves = range(micro_batch // 2, 0, -1)
    return next((rows for rows in halves if effective_batch % (rows * ranks) == 0), None)


def tells_of_memory(message: str) -> bool:
    """Whether the message of an error of no telling class is about a lack of memory."""
    return any(text in message.lower() for text in MESSAGES)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, one of its group, or what it was raised from is a lack of memory."""
    if error is None:
        return False
    if CLASSES & {c.__name__ for c in type(error).__mro__}:
        return True
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_out_of_memory, error.exceptions))
    if not isinstance(error, OSError | ValueError) and tells_of_memory(str(error)):
        return True
    return is_out_of_memory(error.__cause__ or error.__context__)


def train_within_memory(
    job: TrainingJob, train: Callable[[TrainingJob], TrainingResult]
) -> TrainingResult:
    """Return `train(job)`; each time that it runs out of memory, again with a smaller micro-batch.

    A step keeps its rows, so it is the same training; it goes on from its last whole checkpoint.
    The first try has the micro-batch that earlier attempts came to. Raises OutOfMemory where 1 is
    too many, and the errors of `train`.
    """
    while True:
        note = noted(job.config, job.checkpoint_dir)
        now = job if note is None else _with_micro_batch(job, note.micro_batch)
        try:
            result = train(now)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not make_smaller(job.config, job.checkpoint_dir):
                raise OutOfMemory(
                    f"out of memory with a micro-batch of {now.config.micro_batch} row(s) a rank, "
                    "the smallest there is: set gradient_checkpointing, a higher zero_stage or "
                    f"offload, lower max_length, or use more memory ({error})"
                ) from error
        else:
            return result.model_copy(update={"halvings": note.halvings if note else 0})
        # Only here, after the error, nothing refers any more to the tensors of its frames.
        gc.collect()


def noted(config: TrainingConfig, checkpoint_dir: Path) -> MicroBatchNote | None:
    """Return what earlier attempts learned, where it is less than what `config` asks for."""
    try:
        note = MicroBatchNote.model_validate_json((checkpoint_dir / NOTE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    fits = config.effective_batch % (note.micro_batch * config.ranks) == 0
    return note if fits and note.micro_batch < config.micro_batch else None


def make_smaller(config: TrainingConfig, checkpoint_dir: Path) -> bool:
    """Note that the micro-batch in use is too large; return whether there is a smaller one."""
    note = noted(config, checkpoint_dir)
    smaller = smaller_micro_batch(
        note.micro_batch if note else config.micro_batch,
        effective_batch=config.effective_batch,
        ranks=config.ranks,
    )
    if smaller is None:
        return False
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    partial = checkpoint_dir / f".{NOTE}.part"
    next_note = MicroBatchNote(micro_batch=smaller, halvings=note.halvings + 1 if note else 1)
    partial.write_text(next_note.model_dump_json())
    partial.replace(checkpoint_dir / NOTE)
    return True


def _with_micro_batch(job: TrainingJob, rows: int) -> TrainingJob:
    config = job.config.model_copy(update={"micro_batch": rows})
    return job.model_copy(update={"config": config})
