"""A process's place among the ranks that train together, and its share of the machine.

Knows nothing of Ray (which sets the same variables as torchrun), of models or of rows.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from em.training import TrainingConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int
    world: int


@contextmanager
def joined_ranks(config: TrainingConfig) -> Iterator[Ranks]:
    """Join the other ranks (or be the only one), and use this rank's share of the cores."""
    alone = "WORLD_SIZE" not in os.environ
    own = _environment_of_one_rank() if alone else {}
    local_world = int({**own, **os.environ}.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, len(os.sched_getaffinity(0)) // local_world)
    own.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(threads)))
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        ranks = Ranks(rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]))
        if ranks.world != config.ranks:
            raise ValueError(
                f"ranks is {config.ranks} in the training's settings, but {ranks.world} "
                "process(es) were started (WORLD_SIZE): they must agree"
            )
        _check_dtype(config)
        # Ray and torchrun ask for one thread a process; and sums depend on the number of threads.
        torch.set_num_threads(threads)
        _join(ranks, alone=alone)
        yield ranks
    finally:
        for name, value in before.items():  # the next job may be one of several ranks
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _environment_of_one_rank() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _check_dtype(config: TrainingConfig) -> None:
    if config.dtype != "bfloat16" or not torch.cuda.is_available():
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"dtype: bfloat16 is not supported by the device {torch.cuda.get_device_name()}; "
            "set dtype: float32, or use a GPU of the Ampere generation or later"
        )


def _join(ranks: Ranks, *, alone: bool) -> None:
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    if dist.is_initialized() and dist.get_world_size() != ranks.world:
        raise ValueError(
            f"this process has already joined {dist.get_world_size()} rank(s) and cannot train as "
            f"one of {ranks.world}: use a fresh process"
        )
    if not dist.is_initialized() and alone:
        # One rank meets nobody: a store in memory needs no port, which another could take first.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    import deepspeed  # after DS_ACCELERATOR, which it reads once

    # Its all-reduce for CPU inference, which no training uses, is compiled on first use (25 s, and
    # an error where there is no compiler).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def from_rank_0(ranks: Ranks, decide: Callable[[], T]) -> T:
    """Return on every rank what `decide` returns on rank 0, or raise there what it raised."""
    answer: list[Any] = [None, None]
    if ranks.rank == 0:
        try:
            answer[0] = decide()
        except Exception as error:  # noqa: BLE001  (raised below, on the others too)
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result
