"""What a training process uses of its machine: processor, memory, GPU memory.

Measured where the training runs, as nobody else can. Knows nothing of who is told.
"""

import contextlib
import sys

import psutil

from em.record import Record

GIB = 1024**3


class WorkerUse(Record):
    """One measurement of one process. A GPU's fields are None where it uses none."""

    cpu_percent: float
    memory_gib: float
    gpu_memory_gib: float | None = None
    gpu_percent: float | None = None


class WorkerMeter:
    """Measures this process. The processor's share is of the time since the measurement before."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()

    def read(self) -> WorkerUse:
        """Measure once. Where the GPU driver does not tell, its field is None."""
        torch = sys.modules.get("torch")  # who trains has it loaded; nobody loads it for this
        memory = share = None
        if torch is not None and torch.cuda.is_available():
            memory = torch.cuda.memory_reserved() / GIB
            with contextlib.suppress(Exception):  # needs NVIDIA's own library, of whatever state
                share = float(torch.cuda.utilization())
        return WorkerUse(
            cpu_percent=self._process.cpu_percent(),
            memory_gib=self._process.memory_info().rss / GIB,
            gpu_memory_gib=memory,
            gpu_percent=share,
        )
