"""Running one function on N ranks through Ray Train, from inside a trial.

Knows nothing of what the function does: it is called with one plain value on every rank.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Machines taken back with notice. Each time the work goes on from a checkpoint written at the
# notice, so these are no failures; bounded all the same.
MAX_PREEMPTIONS = 100
# Ray Train's minute would count as failures: room for the ranks may be there only when another
# training has ended, as after the loss of a node.
MAX_WAIT_S = 7 * 86_400


def run_on_ranks(
    function: Callable[[Any], None],
    value: Any,
    *,
    ranks: int,
    cpus: float,
    gpus: float,
    name: str,
    storage_dir: Path,
    failures: int,
    again: Callable[[Sequence[Exception]], bool] = lambda errors: True,
) -> None:
    """Call `function(value)` on `ranks` processes of one torch process group, and wait for all.

    Each rank holds `cpus` and `gpus`; the group uses NCCL with GPUs and gloo without. A lost rank
    restarts the group up to `failures` times, as long as `again` says so of what the ranks raised;
    a preempted one does so besides. `function` continues from what it left on disk. Raises Ray
    Train's error, from a group of what the ranks raised.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    storage_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(MAX_WAIT_S))
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    for left in range(failures, -1, -1):
        trainer = TorchTrainer(
            function,
            train_loop_config=value,
            scaling_config=ScalingConfig(
                num_workers=ranks, use_gpu=bool(gpus), resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(
                name=name,
                storage_path=str(storage_dir),
                # Not its own restarts, which ask nobody whether the same work can succeed.
                failure_config=FailureConfig(
                    max_failures=0,
                    controller_failure_limit=failures,
                    max_preemption_failures=MAX_PREEMPTIONS,
                ),
            ),
        )
        try:
            trainer.fit()
            return
        except WorkerGroupError as error:
            errors = [_original(raised) for raised in error.worker_failures.values()]
            if not left or not again(errors):
                raise error from ExceptionGroup("what the ranks raised", errors)


def preemption_noticed() -> bool:
    """Whether a machine of the ranks will be taken back; the same on all, and all must ask."""
    from ray.train import get_preemption_info

    return get_preemption_info() is not None


def _original(error: Exception) -> Exception:
    """Return what ended a rank: where its process is gone, Ray's own error about that."""
    lost = getattr(error, "health_check_failure", None)
    return lost if isinstance(lost, Exception) else error
