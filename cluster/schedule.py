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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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


Stage = Literal["waiting", "training", "ready", "asking"]


@dataclass
class _Engine:
    kind: str
    is_up: bool = False
    asked: set[str] = field(default_factory=set)


@dataclass
class _Load:
    """The jobs that need a kind of engine, by stage; the seconds of those that are ready."""

    num: Counter[Stage] = field(default_factory=Counter)
    ready_s: float = 0.0

    @property
    def now(self) -> int:
        return self.num["ready"] + self.num["asking"]

    @property
    def later(self) -> int:
        return self.num["waiting"] + self.num["training"]


class Schedule:
    """The state of a cluster's work. Tell it events, then ask it to `decide`.

    Events about jobs and engines that are over are let pass: they may be late. Jobs are looked at
    in groups of equal demands, so that a decision takes as long for a hundred thousand as for ten.
    """

    def __init__(self, jobs: Iterable[Job], kinds: Iterable[EngineKind], totals: Totals) -> None:
        """Nothing is started yet. Jobs without a training are ready to be asked."""
        self._kinds = {kind.name: kind for kind in kinds}
        self._load = {name: _Load() for name in self._kinds}
        self._jobs: dict[str, Job] = {}
        self._stage: dict[str, tuple[Stage, int]] = {}  # and its place in the order of arrival
        self._num: Counter[Stage] = Counter()
        self._waiting: dict[Demand, list[tuple[float, int, str]]] = {}  # heaps, the longest first
        self._ready: dict[tuple[str, ...], dict[str, int]] = {}  # in the order of arrival
        self._asking: dict[str, Mapping[str, str]] = {}
        self._engines: dict[str, _Engine] = {}  # that hold room
        self._standing: dict[str, dict[str, _Engine]] = {name: {} for name in self._kinds}
        self._numbers = itertools.count(1)
        self.room = Room(totals)
        self.crowded = False  # others want room, too: nothing idle is kept
        self.add(jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        """Take up more jobs, or again one that has ended."""
        for job in jobs:
            if job.job_id in self._jobs:
                raise ValueError(f"job {job.job_id}: there already; it must end to be added again")
            if unknown := set(job.needs) - set(self._kinds):
                raise ValueError(
                    f"job {job.job_id} needs {sorted(unknown)}, of {sorted(self._kinds)}"
                )
            self._jobs[job.job_id] = job
            self._enter(job, "ready" if job.train is None else "waiting")

    def set_totals(self, totals: Totals) -> None:
        """Nodes have come or gone. What stood on them is told of by `ended` and `down`."""
        self.room.set_totals(totals)

    # Events --------------------------------------------------------------------------------------

    def trained(self, job_id: str) -> None:
        """The training of a job has ended well, here or elsewhere: it is ready to be asked."""
        if self._stage.get(job_id, ("", 0))[0] in ("waiting", "training"):
            self._leave(self._jobs[job_id])
            self._enter(self._jobs[job_id], "ready")

    def ended(self, job_id: str) -> None:
        """A job is over, wherever it was: done, failed, or another's."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._leave(job)

    def up(self, engine: str) -> None:
        """An engine answers."""
        if engine in self._engines:
            self._engines[engine].is_up = True

    def down(self, engine: str) -> None:
        """An engine is gone, and holds nothing any more. Jobs that it is asked of are not over."""
        if engine in self._engines:
            kind = self._engines.pop(engine).kind
            self._standing[kind].pop(engine, None)
            self.room.free(engine)

    def _enter(self, job: Job, stage: Stage) -> None:
        number = next(self._numbers)
        self._stage[job.job_id] = (stage, number)
        self._num[stage] += 1
        for kind in job.needs:
            self._load[kind].num[stage] += 1
        if stage == "waiting" and job.train is not None:
            heap = self._waiting.setdefault(job.train, [])
            heapq.heappush(heap, (-job.train_s - job.ask_s, number, job.job_id))
        elif stage == "ready":
            self._ready.setdefault(job.needs, {})[job.job_id] = number
            for kind in job.needs:
                self._load[kind].ready_s += job.ask_s

    def _leave(self, job: Job) -> None:
        """Take a job out of its stage. Its entry in a heap is passed over later."""
        stage, _ = self._stage.pop(job.job_id)
        self._num[stage] -= 1
        for kind in job.needs:
            self._load[kind].num[stage] -= 1
        if stage == "training":
            self.room.free(job.job_id)
        elif stage == "ready":
            del self._ready[job.needs][job.job_id]
            for kind in job.needs:
                self._load[kind].ready_s -= job.ask_s
        elif stage == "asking":
            for engine in self._asking.pop(job.job_id).values():
                if engine in self._engines:
                    self._engines[engine].asked.discard(job.job_id)

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
        engines = (
            setting.demand
            for kind, setting in self._kinds.items()
            for _ in range(max(self._num_wanted(kind, SPARE_STARTS), len(self._standing[kind])))
        )
        demands = {"training": list[Demand](), "waiting": list[Demand]()}
        for job_id, (stage, _) in self._stage.items():
            train = self._jobs[job_id].train
            if stage in demands and train is not None:
                demands[stage].append(train)
        return list(itertools.islice(itertools.chain(engines, *demands.values()), most))

    # Decisions -----------------------------------------------------------------------------------

    def decide(self) -> list[Action]:
        """Return what to do now; all of it counts as done."""
        self.room.keep_none()
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
                if len(engines) < len(chosen):
                    break
                job = self._jobs[next(iter(ready))]
                self._leave(job)
                self._enter(job, "asking")
                self._asking[job.job_id] = engines
                for engine in engines.values():
                    self._engines[engine].asked.add(job.job_id)
                actions.append(Ask(job.job_id, engines))
        return actions

    def _groups(self) -> list[tuple[str, ...]]:
        """What ready jobs need, those first whose first job has been ready longest."""
        groups = [needs for needs, ready in self._ready.items() if ready]
        return sorted(groups, key=lambda needs: next(iter(self._ready[needs].values())))

    def _least_busy(self, kind: str) -> str | None:
        most = self._kinds[kind].at_once
        free = (
            (len(engine.asked), name)
            for name, engine in self._standing[kind].items()
            if engine.is_up and len(engine.asked) < most
        )
        return min(free, default=(0, None))[1]

    def _stop_unneeded(self) -> list[Action]:
        """Stop idle engines that nobody will ask any more."""
        return [
            self._stop(engine)
            for kind, load in self._load.items()
            for engine in self._spare(kind, load.now + (0 if self.crowded else load.later))
        ]

    def _spare(self, kind: str, jobs: int) -> list[str]:
        """Idle engines of a kind, beyond those that this many jobs can use."""
        standing = self._standing[kind]
        num = len(standing) - math.ceil(jobs / self._kinds[kind].at_once)
        idle = (name for name, engine in standing.items() if engine.is_up and not engine.asked)
        return list(itertools.islice(idle, max(0, num)))

    def _stop(self, engine: str) -> Stop:
        del self._standing[self._engines[engine].kind][engine]
        return Stop(engine)

    def _start(self, *, before_trainings: bool) -> list[Action]:
        """Start engines for ready jobs; before trainings only where enough work waits for them."""
        worth = WORTH_STARTS if before_trainings or self._num["waiting"] else SPARE_STARTS
        actions: list[Action] = []
        for needs in self._groups():
            missing = self._missing(needs)
            # A partner that stands already waits for them with what it holds.
            at_once = len(missing) < len(set(needs)) or not before_trainings
            if missing and (at_once or any(self._num_worth(kind, worth) for kind in missing)):
                actions += self._start_together(missing)
            if self._missing(needs):
                continue
            for kind in needs:
                while len(self._standing[kind]) < self._num_wanted(kind, worth):
                    started = self._start_together([kind])
                    if not started:
                        break
                    actions += started
        return actions

    def _start_together(self, kinds: Sequence[str]) -> list[Action]:
        """Start one engine of each kind, or none where there is no room for all."""
        engines = {f"{kind}-{next(self._numbers)}": kind for kind in kinds}
        demands = {name: self._kinds[kind].demand for name, kind in engines.items()}
        if not self.room.take(demands):
            self.room.keep_for([*demands.values()])
            return []
        for name, kind in engines.items():
            self._engines[name] = self._standing[kind][name] = _Engine(kind)
        return [Start(kind, name) for name, kind in engines.items()]

    def _missing(self, needs: Sequence[str]) -> list[str]:
        return [kind for kind in dict.fromkeys(needs) if not self._standing[kind]]

    def _num_worth(self, kind: str, starts: float) -> int:
        """How many engines have work that takes them so many times as long as their start."""
        setting = self._kinds[kind]
        work_s = self._load[kind].ready_s / setting.at_once
        return int(work_s / max(starts * setting.start_s, 1e-9))

    def _num_wanted(self, kind: str, starts: float) -> int:
        """How many engines are worth their start; one for any work."""
        setting, now = self._kinds[kind], self._load[kind].now
        useful = min(setting.most, math.ceil(now / setting.at_once))
        return min(useful, max(1, self._num_worth(kind, starts)))

    def _train(self) -> list[Action]:
        """Start trainings that fit, the longest first."""
        actions: list[Action] = []
        heads = [(*heap[0], demand) for demand in self._waiting if (heap := self._heap(demand))]
        heapq.heapify(heads)
        while heads:
            *_, job_id, demand = heads[0]
            if not self.room.take({job_id: demand}):
                self.room.keep_for([demand])
                heapq.heappop(heads)
                continue
            self._leave(self._jobs[job_id])
            self._enter(self._jobs[job_id], "training")
            actions.append(Train(job_id))
            heap = self._heap(demand)
            if heap:
                heapq.heapreplace(heads, (*heap[0], demand))
            else:
                heapq.heappop(heads)
        return actions

    def _heap(self, demand: Demand) -> list[tuple[float, int, str]]:
        """Return the jobs that wait with this demand, without those that do not any more."""
        heap = self._waiting[demand]
        while heap and self._stage.get(heap[0][2]) != ("waiting", heap[0][1]):
            heapq.heappop(heap)
        return heap

    def _give_way(self) -> list[Action]:
        """Stop idle engines that nobody asks now, where somebody who waits for room then has it."""
        if self._is_stuck():
            return self._start_over()
        spare = [name for kind, load in self._load.items() for name in self._spare(kind, load.now)]
        for demands in self._blocked() if spare else ():
            if self.room.would_fit(demands, without=spare):
                for name in [*spare]:
                    without = [other for other in spare if other != name]
                    if self.room.would_fit(demands, without=without):
                        spare = without
                return [self._stop(name) for name in spare]
        return []

    def _blocked(self) -> list[list[Demand]]:
        """What waits for room, after all that fits has been started: each to be had together."""
        engines = [[self._kinds[k].demand for k in self._missing(n)] for n in self._groups()]
        return [m for m in engines if m] + [[d] for d in self._waiting if self._heap(d)]

    def _is_stuck(self) -> bool:
        """Whether ready jobs wait, and nothing goes on that could end: each lacks an engine."""
        moves = self._num["training"] or self._num["asking"]
        all_up = all(engine.is_up for engine in self._engines.values())
        stopping = len(self._engines) - sum(map(len, self._standing.values()))
        return bool(self._num["ready"]) and not moves and all_up and not stopping

    def _start_over(self) -> list[Action]:
        """Stop all engines where that gives room to one with its partners (a node was lost)."""
        self.room.keep_none()
        demands = ([self._kinds[kind].demand for kind in needs] for needs in self._groups())
        if any(self.room.would_fit(group, without=self._engines) for group in demands):
            return [self._stop(name) for name in self._engines]
        return []
