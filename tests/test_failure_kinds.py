"""What kind of failure an error is, from the error and from what a store keeps of it."""

import errno
from typing import get_args

import pytest

from cluster.requests import EngineDead, PromptsTooLong
from em.api_judge import JudgeRefusesUs
from em.budget import BudgetSpent
from em.generation import GateFailed
from em.judging import JudgeUnavailable, JudgingStopped
from em.output import TrainingFailed
from sweeps.failure_kinds import (
    CURES,
    KIND_OF_CLASS,
    TRANSIENT,
    FailureKind,
    classify,
    classify_stored,
    deciding,
    is_transient,
)
from sweeps.files import StoreError
from sweeps.training_pass import worth_another_try
from sweeps.yaml_errors import MistakeAt


def named(name: str, *bases: type[Exception]) -> type[Exception]:
    """Return a class of this name, as another library has it."""
    return type(name, bases or (Exception,), {})


RayActorError = named("RayActorError")
ActorDiedError = named("ActorDiedError", RayActorError)


class Preempted(ActorDiedError):  # type: ignore[misc, valid-type]
    preempted = True


class WorkerGroupError(Exception):
    def __init__(self, **failures: Exception) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = dict(enumerate(failures.values()))


ERRORS: list[tuple[Exception, FailureKind]] = [
    (MemoryError(), "out of memory"),
    (named("OutOfMemoryError", RuntimeError)("CUDA out of memory"), "out of memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), "out of memory"),
    (named("NodeDiedError")("gone"), "node lost"),
    (ActorDiedError("The actor died because its node has died. Node Id: 1"), "node lost"),
    (ActorDiedError("The worker died unexpectedly"), "process died"),
    (ActorDiedError("Task was killed due to the node running low on memory."), "out of memory"),
    (named("WorkerCrashedError")("died"), "process died"),
    (EngineDead("gone"), "engine dead"),
    (ConnectionResetError("reset"), "network"),
    (TimeoutError("late"), "network"),
    (StoreError("damaged"), "disk or store"),
    (JudgeUnavailable("away"), "judge unavailable"),
    (JudgingStopped("stopped"), "judge unavailable"),
    (JudgeRefusesUs("wrong key"), "data"),
    (BudgetSpent("spent"), "judge budget"),
    (GateFailed("adapter gate"), "gate"),
    (named("TrainingFailed", RuntimeError)("not finite"), "gate"),
    (ValueError("a bad row"), "data"),
    (MistakeAt(("models", 0), ValueError("bad")), "data"),
    (PromptsTooLong("long", (0,)), "data"),
    (KeyError("x"), "unknown"),
    (RuntimeError("who knows"), "unknown"),
]
# Told by more than the class's name and the message, which are all that older stores have.
TOLD_BY_MORE: list[tuple[Exception, FailureKind]] = [
    (Preempted("died"), "preempted"),
    (named("RayTaskError(EngineDead)", named("RayTaskError"), EngineDead)("x"), "engine dead"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk or store"),
]


@pytest.mark.parametrize(
    ("error", "kind"), [*ERRORS, *TOLD_BY_MORE], ids=lambda value: repr(value)[:40]
)
def test_an_error_has_a_kind(error: Exception, kind: FailureKind) -> None:
    assert classify(error) == kind
    assert is_transient(error) == (kind in TRANSIENT)


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: repr(value)[:40])
def test_what_an_old_store_kept_of_an_error_has_the_same_kind(
    error: Exception, kind: FailureKind
) -> None:
    assert classify_stored(type(error).__name__, str(error)) == kind


def test_data_gates_and_a_spent_budget_are_not_tried_again() -> None:
    assert {"data", "gate", "judge budget", "disk or store", "unknown"} & TRANSIENT == set()


def test_every_kind_has_one_cure_of_one_line() -> None:
    assert set(CURES) == set(get_args(FailureKind))
    assert all("emsweep resume" in cure and "\n" not in cure for cure in CURES.values())


def test_a_group_is_judged_by_the_error_that_lasts() -> None:
    gate = GateFailed("wrong")
    group = ExceptionGroup("parts", [ConnectionError(), ExceptionGroup("inner", [gate])])
    assert deciding(group) is gate
    assert classify(group) == "gate"
    assert classify(ExceptionGroup("parts", [ConnectionError(), TimeoutError()])) == "network"


def test_a_training_on_ranks_failed_as_the_rank_did_that_says_why() -> None:
    error = WorkerGroupError(
        zero=RuntimeError("Connection closed by peer"), one=ActorDiedError("died")
    )
    assert classify(error) == "process died"
    assert classify(WorkerGroupError(zero=RuntimeError("who knows"))) == "unknown"


@pytest.mark.ray
def test_a_rank_whose_process_is_gone_is_told_by_rays_own_error() -> None:
    from ray.exceptions import ActorDiedError, NodeDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    died = WorkerHealthCheckFailedError("no answer", failure=ActorDiedError())
    assert classify(WorkerGroupError(zero=died)) == "process died"
    lost = WorkerHealthCheckFailedError("no answer", failure=NodeDiedError("gone"))
    assert classify(WorkerGroupError(zero=lost)) == "node lost"


@pytest.mark.ray
def test_ray_has_the_errors_that_are_told_by_name() -> None:
    from ray import exceptions

    rays = ["OutOfDiskError", "ObjectStoreFullError", "OutOfMemoryError", "NodeDiedError",
            "LocalRayletDiedError", "WorkerCrashedError", "RayActorError", "ActorDiedError",
            "ActorUnavailableError", "ObjectLostError", "OwnerDiedError"]  # fmt: skip
    for name in rays:
        assert name in KIND_OF_CLASS
        assert hasattr(exceptions, name)
    assert classify(exceptions.RayActorError(preempted=True)) == "preempted"
    assert classify(exceptions.ActorDiedError()) == "process died"


@pytest.mark.parametrize(
    ("errors", "again"),
    [
        ([ConnectionError("reset")], True),
        ([RuntimeError("gloo: closed by peer"), ConnectionError("reset")], True),
        ([RuntimeError("nobody knows")], False),
        ([ValueError("row 3 is empty")], False),
        ([ConnectionError("reset"), ValueError("row 3 is empty")], False),
        ([MemoryError(), ConnectionError("reset")], False),
        ([TrainingFailed("the loss is not a number")], False),
    ],
)
def test_ranks_are_started_again_for_what_passes_only(errors: list[Exception], again: bool) -> None:
    assert worth_another_try(errors) == again
