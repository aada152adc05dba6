"""The jobs of a cluster, by what each of them waits for or does now.

Knows nothing of room or engines: a schedule moves jobs from stage to stage.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cluster.resources import Demand

Stage = Literal["waiting", "training", "ready", "asking"]
Needs = tuple[str, ...]
Waiting = tuple[tuple[float, float], int, str, Demand]  # its place, a number, its job


@dataclass(frozen=True)
class Job:
    """What is to be done. Seconds are estimates, for the order and for what is worth it.

    `train` is what its training holds (None: nothing to train); `needs` are the kinds of engine
    that it is asked of, all at once; none where nothing is to be asked.
    """

    job_id: str
    train: Demand | None
    needs: tuple[str, ...]
    train_s: float = 1.0
    ask_s: float = 1.0


class Jobs:
    """Jobs by stage; those that wait to be trained in groups of equal demands, largest first.

    So whoever looks at them looks at as many groups for a hundred thousand jobs as for ten.
    """

    def __init__(self) -> None:
        """There are none."""
        self._jobs: dict[str, Job] = {}
        self._stage: dict[str, tuple[Stage, int]] = {}  # and when it came there, as a number
        self._numbers = itertools.count(1)
        self._heaps: dict[Demand, list[Waiting]] = {}
        self._ready: dict[Needs, list[tuple[float, int, str]]] = {}  # heaps, too
        self._num_ready: Counter[Needs] = Counter()
        self._ready_s: defaultdict[Needs, float] = defaultdict(float)
        self._num: Counter[Stage] = Counter()
        self._num_needing: Counter[tuple[str, Stage]] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def add(self, job: Job) -> None:
        """Take up a job; it waits to be trained, or is ready. Raises ValueError if it is there."""
        if job.job_id in self._jobs:
            raise ValueError(f"job {job.job_id}: there already; it must end to be added again")
        self._jobs[job.job_id] = job
        self._enter(job, "ready" if job.train is None else "waiting")

    def move(self, job_id: str, stage: Stage) -> None:
        """Put a job into another stage."""
        self._leave(self._jobs[job_id])
        self._enter(self._jobs[job_id], stage)

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        self._leave(self._jobs.pop(job_id))

    def stage(self, job_id: str) -> Stage | None:
        """Where a job is; None if it is not there."""
        return self._stage[job_id][0] if job_id in self._stage else None

    def num(self, stage: Stage, kind: str | None = None) -> int:
        """How many are in a stage; of those that need a kind of engine, if one is named."""
        return self._num[stage] if kind is None else self._num_needing[kind, stage]

    def trainings(self, *stages: Stage) -> Iterator[Demand]:
        """What the jobs of these stages train with, stage by stage."""
        for wanted in stages:
            for job_id, (stage, _) in self._stage.items():
                train = self._jobs[job_id].train
                if stage == wanted and train is not None:
                    yield train

    def first_waiting(self) -> list[Waiting]:
        """Of each demand the job to train first, as a heap: the least is the first of all."""
        heads = [head for demand in self._heaps if (head := self.next_waiting(demand))]
        heapq.heapify(heads)
        return heads

    def next_waiting(self, demand: Demand) -> Waiting | None:
        """Return the job to train first of those with this demand."""
        heap = self._heaps[demand]
        while heap and self._stage.get(heap[0][2]) != ("waiting", heap[0][1]):
            heapq.heappop(heap)  # it is not there any more
        return heap[0] if heap else None

    def groups(self) -> list[Needs]:
        """What ready jobs need; first what the one needs that will be asked longest."""
        groups = [needs for needs, num in self._num_ready.items() if num]
        return sorted(groups, key=self._longest)

    def first_ready(self, needs: Needs) -> str | None:
        """Return the job that will be asked longest of those that are ready with these needs."""
        heap = self._ready.get(needs, [])
        while heap and self._stage.get(heap[0][2]) != ("ready", heap[0][1]):
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def ready(self, needs: Needs) -> tuple[int, float]:
        """How many are ready with these needs, and the seconds that they will be asked."""
        return self._num_ready[needs], self._ready_s[needs]

    def _longest(self, needs: Needs) -> tuple[float, int]:
        self.first_ready(needs)  # those that are not there any more are off the heap
        return self._ready[needs][0][:2]

    def _enter(self, job: Job, stage: Stage) -> None:
        number = next(self._numbers)
        self._stage[job.job_id] = (stage, number)
        self._count(job, stage, +1)
        if stage == "waiting" and job.train is not None:
            # Large ones first: they need no room freed for them, and small ones fill what is left.
            place = (-job.train.gpus * job.train.count, -job.train_s - job.ask_s)
            heap = self._heaps.setdefault(job.train, [])
            heapq.heappush(heap, (place, number, job.job_id, job.train))
        elif stage == "ready":
            heap_ready = self._ready.setdefault(job.needs, [])
            heapq.heappush(heap_ready, (-job.ask_s, number, job.job_id))

    def _leave(self, job: Job) -> None:
        """Take a job out of its stage; its entry in a heap is passed over later."""
        stage, _ = self._stage.pop(job.job_id)
        self._count(job, stage, -1)

    def _count(self, job: Job, stage: Stage, by: int) -> None:
        self._num[stage] += by
        for kind in job.needs:
            self._num_needing[kind, stage] += by
        if stage == "ready":
            self._num_ready[job.needs] += by
            self._ready_s[job.needs] += by * job.ask_s
