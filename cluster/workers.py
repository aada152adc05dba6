"""Running one function on N ranks through Ray Train, from inside a trial.

Knows nothing of what the function does: it is called with one plain value on every rank.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any


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
) -> None:
    """Call `function(value)` on `ranks` processes of one torch process group, and wait for all.

    Each rank holds `cpus` and `gpus`; the group uses NCCL with GPUs and gloo without. A lost rank
    restarts the group up to `failures` times; `function` continues from what it left on disk.
    Raises the ranks' error.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    storage_dir.mkdir(parents=True, exist_ok=True)
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    TorchTrainer(
        function,
        train_loop_config=value,
        scaling_config=ScalingConfig(
            num_workers=ranks, use_gpu=bool(gpus), resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage_dir),
            failure_config=FailureConfig(max_failures=failures, controller_failure_limit=failures),
        ),
    ).fit()
