"""What Ray Tune must be told of a trial that Ray's memory monitor killed.

Ray 2.60 raises OutOfMemoryError for such an actor, which its Tune takes for a fault of its own: the
whole experiment ends with it, and every trial beside the killed one. Knows nothing of trials' work.
"""

from pathlib import Path
from typing import Any


def count_memory_kills_as_lost_trials() -> None:
    """Have Tune, in this process, retry or fail a trial that was killed for memory, and only it."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError as KilledForMemory
    from ray.exceptions import RayActorError

    # By this name it is told apart, wherever it is read.
    class OutOfMemoryError(RayActorError):  # type: ignore[misc]
        pass

    as_it_was = RayActorManager._actor_task_failed
    if hasattr(as_it_was, "counts_memory_kills"):
        return

    def task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, KilledForMemory):
            exception = OutOfMemoryError(error_msg=str(exception))
        as_it_was(self, tracked_actor_task=tracked_actor_task, exception=exception)

    task_failed.counts_memory_kills = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = task_failed


def killed_for_memory(trial: Any) -> bool:
    """Whether Ray's memory monitor has just ended a trial of Tune."""
    return type(error_of(trial)).__name__ == "OutOfMemoryError"


def error_of(trial: Any) -> BaseException | None:
    """Return the error that a trial of Tune has just had, if it is known.

    Tune's own getter reads a copy that is not there yet when its callbacks are called.
    """
    from ray import cloudpickle

    if trial.pickled_error_file is None:
        return None
    path = Path(trial.pickled_error_file)
    if not path.is_file():
        return None
    error = cloudpickle.loads(path.read_bytes())
    return error if isinstance(error, BaseException) else None
