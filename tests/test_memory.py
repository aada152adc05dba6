import gc
import weakref

import pytest

from em.datasets import Message, Row
from em.memory import (
    NOTE,
    OutOfMemory,
    is_out_of_memory,
    make_smaller,
    noted,
    smaller_micro_batch,
    train_within_memory,
)
from em.seeds import derive_seeds
from em.training import TrainingConfig, TrainingJob, TrainingResult


class OutOfMemoryError(RuntimeError):
    """Named as torch's and Ray's are."""


class Tensors:
    """Something large that a training's frames refer to."""


@pytest.mark.parametrize(
    ("micro_batch", "effective_batch", "ranks", "smaller"),
    [
        (8, 16, 1, 4),
        (2, 16, 1, 1),
        (1, 16, 1, None),
        (6, 12, 1, 3),
        (3, 12, 1, 1),
        (10, 20, 1, 5),
        (9, 18, 1, 3),  # 4 does not divide 18, 3 does
        (8, 16, 2, 4),
        (6, 12, 2, 3),
        (10, 20, 2, 5),
        (5, 20, 2, 2),
        (9, 18, 2, 3),
        (7, 7, 1, 1),
    ],
)
def test_the_next_micro_batch(micro_batch, effective_batch, ranks, smaller):
    got = smaller_micro_batch(micro_batch, effective_batch=effective_batch, ranks=ranks)
    assert got == smaller


def raised_from(error, cause):
    error.__cause__ = cause
    return error


CPU = "[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError(CPU), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (ExceptionGroup("ranks", [RuntimeError("Connection closed"), OutOfMemoryError()]), True),
        (raised_from(RuntimeError("training failed"), OutOfMemoryError()), True),
        (RuntimeError("Connection closed by peer"), False),
        (ExceptionGroup("ranks", [RuntimeError("a"), ValueError("b")]), False),
        (ValueError("row 3 says: out of memory"), False),
        (OSError("out of memory"), False),
        (None, False),
    ],
)
def test_which_errors_are_a_lack_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.fixture
def job(tmp_path):
    row = Row(
        messages=(Message(role="user", content="a"), Message(role="assistant", content="b")),
    )
    return TrainingJob(
        model_dir=tmp_path,
        rows=(row,),
        config=TrainingConfig(effective_batch=24, micro_batch=12),
        seeds=derive_seeds(0),
        output_dir=tmp_path / "out",
        checkpoint_dir=tmp_path / "checkpoints",
    )


def trained_up_to(limit, tried):
    """A training that has memory for `limit` rows."""

    def train(job):
        tried.append(job.config.micro_batch)
        if job.config.micro_batch > limit:
            raise OutOfMemoryError("CUDA out of memory")
        return TrainingResult(
            steps=1, losses=(), num_rows=1, num_tokens=1, num_trained_tokens=1, num_cut_rows=0,
            seconds=0, micro_batch=job.config.micro_batch,
        )  # fmt: skip

    return train


def test_the_micro_batch_is_halved_until_it_fits(job):
    tried = []
    result = train_within_memory(job, trained_up_to(2, tried))
    assert tried == [12, 6, 3, 1]
    assert (result.micro_batch, result.halvings) == (1, 3)


def test_a_training_that_fits_is_left_alone(job):
    tried = []
    result = train_within_memory(job, trained_up_to(12, tried))
    assert (tried, result.micro_batch, result.halvings) == ([12], 12, 0)
    assert not (job.checkpoint_dir / NOTE).exists()


def test_a_later_attempt_begins_with_what_was_learned(job):
    """The process was killed after it had learned twice."""
    assert make_smaller(job.config, job.checkpoint_dir)
    assert make_smaller(job.config, job.checkpoint_dir)
    tried = []
    result = train_within_memory(job, trained_up_to(3, tried))
    assert (tried, result.halvings) == ([3], 2)


def test_a_smaller_micro_batch_of_the_user_counts_more_than_the_note(job):
    assert make_smaller(job.config, job.checkpoint_dir)
    config = job.config.model_copy(update={"micro_batch": 4})
    assert noted(config, job.checkpoint_dir) is None
    assert noted(job.config, job.checkpoint_dir).micro_batch == 6


def test_a_damaged_note_is_none(job):
    job.checkpoint_dir.mkdir()
    (job.checkpoint_dir / NOTE).write_text('{"micro_ba')
    assert noted(job.config, job.checkpoint_dir) is None


def test_too_little_for_one_row_is_a_failure_with_its_name(job):
    tried = []
    with pytest.raises(OutOfMemory, match=r"out of memory with a micro-batch of 1 row"):
        train_within_memory(job, trained_up_to(0, tried))
    assert tried == [12, 6, 3, 1]


def test_other_errors_are_not_tried_again(job):
    def train(job):
        raise ValueError("bad rows")

    with pytest.raises(ValueError, match="bad rows"):
        train_within_memory(job, train)
    assert not (job.checkpoint_dir / NOTE).exists()


def test_what_the_last_try_held_is_free_before_the_next(job):
    held = []

    def train(job):
        assert not held or held[-1]() is None
        tensors = Tensors()
        tensors.itself = tensors  # as engines and their hooks refer to each other
        held.append(weakref.ref(tensors))
        return trained_up_to(3, [])(job)

    gc.disable()
    try:
        train_within_memory(job, train)
    finally:
        gc.enable()
    assert len(held) == 3
