"""Which jobs train now, which engines stand, and who is asked: decided anew at every event.

A job trains (or need not), and is then asked of engines. Trainings and engines hold parts of the
same cluster. Rules, in this order: a training is longest first, and smaller ones go before a large
one only where that does not hold it up; engines get room before further trainings once as much is
waiting for them as makes their start worth while, else what trainings leave; an engine that nobody
asks gives its room to whoever wants it, and goes when nobody will ask any more. Nobody holds room
while waiting for other room but engines that answer together, which are started together: so there
is always something that goes on.

A state without a clock: the same object schedules a real cluster and a simulated one. Knows nothing
of Ray, of what a job is, or of how anything is started.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.resources import Demand, Totals
from cluster.room import Room

# In times of an engine's start: how much work must wait for it before it goes before trainings (its
# start then costs a tenth of that), and for another one beside it where nobody else wants the room.
WORTH_STARTS = 10.0
SPARE_STARTS = 2.0


@dataclass(frozen=True)
class Job:
    """What is to be done. Seconds are estimates, and bear on the order alone.

    `train` is what its training holds (None: nothing to train); `needs` are the kinds of engine
    that it is asked of, all at once; none where nothing is to be asked.
    """

    job_id: str
    train: Demand | None
    needs: tuple[str, ...]
    train_s: float = 1.0
    ask_s: float = 1.0


@dataclass(frozen=True)
class EngineKind:
    """Engines of one model: what each holds, how many at most, how many jobs each answers at once.

    `start_s` are the seconds until one answers.
    """

    name: str
    demand: Demand
    most: int = 1
    at_once: int = 1
    start_s: float = 60.0


@dataclass(frozen=True)
class Train:
    """Start the training of a job."""

    job_id: str


@dataclass(frozen=True)
class Ask:
    """Ask a job of these engines, by kind."""

    job_id: str
    engines: Mapping[str, str]


@dataclass(frozen=True)
class Start:
    """Start an engine of a kind."""

    kind: str
    engine: str


@dataclass(frozen=True)
class Stop:
    """Stop an engine that nobody is asking."""

    engine: str


Action = Train | Ask | Start | Stop


@dataclass
class _Engine:
    kind: str
    state: str = "starting"  # up, stopping
    asked: set[str] = field(default_factory=set)


@dataclass
class _Load:
    """The jobs that need a kind of engine: not trained yet, ready, being asked; seconds ready."""

    later: int = 0
    ready: int = 0
    asking: int = 0
    ready_s: float = 0.0

    @property
    def now(self) -> int:
        return self.ready + self.asking


class Schedule:
    """The state of a cluster's work. Tell it events, then ask it to `decide`.

    Jobs are looked at in groups of equal demands, so that a decision takes as long for a hundred
    thousand jobs as for ten.
    """

    def __init__(self, jobs: Iterable[Job], kinds: Iterable[EngineKind], totals: Totals) -> None:
        """Nothing is started yet. Jobs without a training are ready to be asked."""
        self._kinds = {kind.name: kind for kind in kinds}
        self._load = {name: _Load() for name in self._kinds}
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[Demand, list[tuple[float, int, str]]] = {}  # heaps, the longest first
        self._training: set[str] = set()
        self._ready: dict[tuple[str, ...], dict[str, int]] = {}  # in the order of arrival
        self._asking: dict[str, Mapping[str, str]] = {}
        self._gone: set[str] = set()  # ended while they were in a heap
        self._num_waiting = 0
        self._engines: dict[str, _Engine] = {}
        self._numbers = itertools.count(1)
        self._room = Room(totals)
        self.crowded = False  # others want room, too: nothing idle is kept
        self.add(jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        """Take up more jobs."""
        for job in jobs:
            self._jobs[job.job_id] = job
            if job.train is None:
                self._becomes_ready(job)
                continue
            heap = self._waiting.setdefault(job.train, [])
            heapq.heappush(heap, (-job.train_s - job.ask_s, next(self._numbers), job.job_id))
            self._num_waiting += 1
            for kind in job.needs:
                self._load[kind].later += 1

    def set_totals(self, totals: Totals) -> None:
        """Nodes have come or gone."""
        self._room.set_totals(totals)

    # Events --------------------------------------------------------------------------------------

    def trained(self, job_id: str) -> None:
        """The training of a job has ended well: it is ready to be asked."""
        self._leave(self._jobs[job_id])
        self._becomes_ready(self._jobs[job_id])

    def ended(self, job_id: str) -> None:
        """A job is over, wherever it was: done, failed, or another's."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._leave(job)

    def up(self, engine: str) -> None:
        """An engine answers."""
        if self._engines[engine].state == "starting":
            self._engines[engine].state = "up"

    def down(self, engine: str) -> None:
        """An engine is gone, and holds nothing any more."""
        if self._engines.pop(engine, None) is not None:
            self._room.free(engine)

    def _becomes_ready(self, job: Job) -> None:
        self._ready.setdefault(job.needs, {})[job.job_id] = next(self._numbers)
        for kind in job.needs:
            self._load[kind].ready += 1
            self._load[kind].ready_s += job.ask_s

    def _leave(self, job: Job) -> None:
        """Take a job out of where it is."""
        ready = self._ready.get(job.needs, {})
        loads = [self._load[kind] for kind in job.needs]
        if ready.pop(job.job_id, None) is not None:
            for load in loads:
                load.ready -= 1
                load.ready_s -= job.ask_s
        elif job.job_id in self._asking:
            for engine in self._asking.pop(job.job_id).values():
                if engine in self._engines:
                    self._engines[engine].asked.discard(job.job_id)
            for load in loads:
                load.asking -= 1
        else:
            for load in loads:
                load.later -= 1
            if job.job_id in self._training:
                self._training.discard(job.job_id)
                self._room.free(job.job_id)
            else:
                self._num_waiting -= 1
                self._gone.add(job.job_id)

    # What there is -------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether no job is left, and no engine."""
        return not self._jobs and not self._engines

    @property
    def engines(self) -> list[str]:
        """The engines that hold room."""
        return list(self._engines)

    def wanted(self, most: int) -> list[Demand]:
        """Return what is held, and what would be started if there were room: `most` at most."""
        engines = [
            self._kinds[kind].demand
            for kind in self._kinds
            for _ in range(max(self._num_wanted(kind, SPARE_STARTS), self._num(kind)))
        ]
        training = [train for job in self._training if (train := self._jobs[job].train)]
        waiting = (demand for demand, heap in self._waiting.items() for _ in heap)
        return list(itertools.islice([*engines, *training, *itertools.islice(waiting, most)], most))

    # Decisions -----------------------------------------------------------------------------------

    def decide(self) -> list[Action]:
        """Return what to do now; all of it counts as done."""
        self._room.keep_none()
        actions: list[Action] = [*self._ask(), *self._stop_unneeded()]
        actions += self._start(before_trainings=True)
        actions += self._train()
        actions += self._start(before_trainings=False)
        return actions + self._give_way()

    def _ask(self) -> list[Action]:
        """Ask ready jobs, in the order in which they became so, of the least busy engines."""
        actions: list[Action] = []
        for needs in self._groups():
            ready = self._ready[needs]
            while ready:
                chosen = {kind: self._least_busy(kind) for kind in needs}
                engines = {kind: engine for kind, engine in chosen.items() if engine is not None}
                if len(engines) < len(needs):
                    break
                job = self._jobs[next(iter(ready))]
                self._leave(job)
                for kind, engine in engines.items():
                    self._engines[engine].asked.add(job.job_id)
                    self._load[kind].asking += 1
                self._asking[job.job_id] = engines
                actions.append(Ask(job.job_id, engines))
        return actions

    def _groups(self) -> list[tuple[str, ...]]:
        """What ready jobs need, those first whose first job has been ready longest."""
        groups = [needs for needs, ready in self._ready.items() if ready]
        return sorted(groups, key=lambda needs: next(iter(self._ready[needs].values())))

    def _least_busy(self, kind: str) -> str | None:
        most = self._kinds[kind].at_once
        free = [
            (len(engine.asked), name)
            for name, engine in self._engines.items()
            if engine.kind == kind and engine.state == "up" and len(engine.asked) < most
        ]
        return min(free)[1] if free else None

    def _stop_unneeded(self) -> list[Action]:
        """Stop idle engines that nobody will ask any more."""
        actions: list[Action] = []
        for kind, load in self._load.items():
            idle = self._idle(kind)
            if load.now:
                spare = self._num(kind) - math.ceil(load.now / self._kinds[kind].at_once)
                actions += map(self._stop, idle[: max(0, spare)])
            elif self.crowded or not load.later:
                actions += map(self._stop, idle)
        return actions

    def _stop(self, engine: str) -> Stop:
        self._engines[engine].state = "stopping"
        return Stop(engine)

    def _start(self, *, before_trainings: bool) -> list[Action]:
        """Start engines for ready jobs; before trainings only where enough work waits for them."""
        worth = WORTH_STARTS if before_trainings or self._num_waiting else SPARE_STARTS
        actions: list[Action] = []
        for needs in self._groups():
            while start := self._to_start(needs, worth, before_trainings=before_trainings):
                engines = {f"{kind}-{next(self._numbers)}": kind for kind in start}
                demands = {name: self._kinds[kind].demand for name, kind in engines.items()}
                if not self._room.take(demands):
                    break
                for name, kind in engines.items():
                    self._engines[name] = _Engine(kind)
                    actions.append(Start(kind, name))
        return actions

    def _to_start(self, needs: Sequence[str], worth: float, *, before_trainings: bool) -> list[str]:
        """Return kinds to start together: all that are missing, else one that has too few."""
        missing = [kind for kind in needs if not self._num(kind)]
        if missing:
            # A partner that stands already waits for them with what it holds.
            at_once = len(missing) < len(needs) or not before_trainings
            return missing if at_once or any(self._is_worth(k, worth) for k in missing) else []
        few = (kind for kind in needs if self._num(kind) < self._num_wanted(kind, worth))
        return list(itertools.islice(few, 1))

    def _is_worth(self, kind: str, starts: float) -> bool:
        return self._load[kind].ready_s >= starts * self._kinds[kind].start_s

    def _num_wanted(self, kind: str, starts: float) -> int:
        """How many engines have so much work that it is worth their start; one for any work."""
        setting, load = self._kinds[kind], self._load[kind]
        if not load.now:
            return 0
        more = int(load.ready_s / (starts * max(setting.start_s, 1e-9)))
        useful = math.ceil(load.now / setting.at_once)
        return max(1, min(setting.most, useful, more))

    def _train(self) -> list[Action]:
        """Start trainings that fit, the longest first; one that does not keeps a node free."""
        actions: list[Action] = []
        heaps = [(heap[0][0], demand) for demand in self._waiting if (heap := self._heap(demand))]
        for _, demand in sorted(heaps, key=lambda item: item[0]):
            while heap := self._heap(demand):
                job_id = heap[0][2]
                if not self._room.take({job_id: demand}):
                    self._room.keep_for(demand)
                    break
                heapq.heappop(heap)
                self._num_waiting -= 1
                self._training.add(job_id)
                actions.append(Train(job_id))
        return actions

    def _heap(self, demand: Demand) -> list[tuple[float, int, str]]:
        """Return the jobs that wait with this demand, without those that have ended meanwhile."""
        heap = self._waiting[demand]
        while heap and heap[0][2] in self._gone:
            self._gone.discard(heapq.heappop(heap)[2])
        return heap

    def _give_way(self) -> list[Action]:
        """Stop engines that nobody asks now, where somebody who waits for room then has it.

        Where nothing at all goes on (a node was lost), also those that only wait for a partner.
        """
        idle = [name for kind in self._kinds for name in self._idle(kind)]
        unasked = [name for name in idle if not self._load[self._engines[name].kind].now]
        blocked = self._blocked()
        if unasked and blocked and self._room.would_fit(blocked, without=unasked):
            return [*map(self._stop, unasked)]
        if not unasked and blocked and self._is_stuck():
            first = self._groups()[:1]
            others = [n for n in idle if not first or self._engines[n].kind not in first[0]]
            return [*map(self._stop, others)]
        return []

    def _blocked(self) -> list[list[Demand]]:
        """What waits for room, after all that fits has been started: each to be had together."""
        missing = [
            [self._kinds[kind].demand for kind in needs if not self._num(kind)]
            for needs in self._groups()
        ]
        return [[d] for d in self._waiting if self._heap(d)] + [m for m in missing if m]

    def _is_stuck(self) -> bool:
        moving = any(engine.state != "up" for engine in self._engines.values())
        return not (self._training or self._asking or moving)

    def _num(self, kind: str) -> int:
        return sum(e.kind == kind and e.state != "stopping" for e in self._engines.values())

    def _idle(self, kind: str) -> list[str]:
        return [
            name
            for name, engine in self._engines.items()
            if engine.kind == kind and engine.state == "up" and not engine.asked
        ]
