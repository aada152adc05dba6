"""Which jobs train now, which engines stand, and who is asked: decided anew at every event.

A job trains (or need not), and is then asked of engines. Trainings and engines hold parts of the
same cluster. Rules: large trainings go before small ones, long ones before short ones; what is too
large for what is free has nodes kept for it, and smaller ones go where that does not hold it up.
Jobs that need the same engines are asked in waves: engines start before further trainings once so
much waits for them that their start is worth it, or in room that trainings leave; a wave ends when
nobody is ready, and its engines then give their room to whoever waits for it, and stop when nobody
will ask them any more. Engines that answer together are started together, and nobody else holds
room while waiting for other room: so there is always something that goes on. Where somebody else
has taken the room of one of them meanwhile, the others give theirs back, and all are tried again.

A state without a clock: the same object schedules a real cluster and a simulated one. Knows nothing
of Ray, of what a job is, or of how anything is started.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.actions import Action, Ask, EngineKind, Start, Stop, Train
from cluster.jobs import Job, Jobs, Needs
from cluster.resources import Demand, Totals
from cluster.room import Room

# How much work must wait for an engine, in times of what a wave of it costs: for it to go before
# trainings (which then costs a fifth of that work), and where nobody else wants the room.
WORTH_STARTS = 5.0
SPARE_STARTS = 1.0


@dataclass
class _Engine:
    kind: str
    is_up: bool = False
    has_answered: bool = False
    asked: set[str] = field(default_factory=set)


class Schedule:
    """The state of a cluster's work. Tell it events, then ask it to `decide`.

    Events about jobs and engines that are over are let pass: they may be late.
    """

    def __init__(self, jobs: Iterable[Job], kinds: Iterable[EngineKind], totals: Totals) -> None:
        """Nothing is started yet. Jobs without a training are ready to be asked."""
        self._kinds = {kind.name: kind for kind in kinds}
        self._jobs = Jobs()
        self._asking: dict[str, Mapping[str, str]] = {}
        self._open: set[Needs] = set()  # the waves that are under way, by what their jobs need
        self._engines: dict[str, _Engine] = {}  # that hold room
        self._standing: dict[str, dict[str, _Engine]] = {name: {} for name in self._kinds}
        self._numbers = itertools.count(1)
        self.room = Room(totals)
        self.crowded = False  # others want room, too: nothing idle is kept
        self.may_start = True  # engines; not for a while after they have given their room back
        self._unplaced: set[str] = set()
        self._lost: set[str] = set()
        self.add(jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        """Take up more jobs, or again one that has ended. Raises ValueError if it has not."""
        for job in jobs:
            if unknown := set(job.needs) - set(self._kinds):
                raise ValueError(
                    f"job {job.job_id} needs {sorted(unknown)}, of {sorted(self._kinds)}"
                )
            self._jobs.add(job)

    def set_totals(self, totals: Totals) -> None:
        """Nodes have come or gone. What stood on them is told of by `ended` and `down`."""
        self.room.set_totals(totals)

    # Events --------------------------------------------------------------------------------------

    def trained(self, job_id: str) -> None:
        """The training of a job has ended well, here or elsewhere: it is ready to be asked."""
        if self._jobs.stage(job_id) in ("waiting", "training"):
            self.room.free(job_id)
            self._jobs.move(job_id, "ready")

    def ended(self, job_id: str) -> None:
        """A job is over, wherever it was: done, failed, or another's."""
        if job_id not in self._jobs:
            return
        self.room.free(job_id)
        self._leave(job_id)
        self._jobs.remove(job_id)

    def again(self, job_id: str) -> None:
        """A job was asked of an engine that is lost: it is ready to be asked of another."""
        if self._jobs.stage(job_id) == "asking":
            self._leave(job_id)
            self._jobs.move(job_id, "ready")

    def _leave(self, job_id: str) -> None:
        for engine in self._asking.pop(job_id, {}).values():
            if engine in self._engines:
                self._engines[engine].asked.discard(job_id)

    def up(self, engine: str) -> None:
        """An engine answers."""
        if engine in self._engines:
            self._engines[engine].is_up = self._engines[engine].has_answered = True

    def away(self, engine: str) -> None:
        """An engine does not answer for now: it is asked nothing more until it is `up` again."""
        if engine in self._engines:
            self._engines[engine].is_up = False

    def unplaced(self, engine: str) -> None:
        """An engine that starts finds no room: somebody else has it, or Ray's order is another."""
        if engine in self._engines and not self._engines[engine].has_answered:
            self._unplaced.add(engine)

    def lost(self, engine: str) -> None:
        """An engine will not answer any more, and is to be stopped. What it was asked is not over.

        Whoever asks it must be told `again` or `ended`.
        """
        if engine in self._engines:
            self._engines[engine].is_up = False
            self._lost.add(engine)

    def down(self, engine: str) -> None:
        """An engine is gone, and holds nothing any more. Jobs that it is asked of are not over."""
        if engine in self._engines:
            kind = self._engines.pop(engine).kind
            self._standing[kind].pop(engine, None)
            self.room.free(engine)

    # What there is -------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether no job is left, and no engine."""
        return not self._jobs and not self._engines

    @property
    def engines(self) -> list[str]:
        """The engines that hold room."""
        return list(self._engines)

    @property
    def num_waiting(self) -> int:
        """How many jobs wait to be trained."""
        return self._jobs.num("waiting")

    def wanted(self, most: int) -> list[Demand]:
        """Return what is held, and what would be started if there were room: `most` at most."""
        groups = self._jobs.groups()
        engines = (
            setting.demand
            for kind, setting in self._kinds.items()
            for _ in range(
                max(self._num_wanted(kind, SPARE_STARTS, groups), len(self._standing[kind]))
            )
        )
        trainings = self._jobs.trainings("training", "waiting")
        return list(itertools.islice(itertools.chain(engines, trainings), most))

    # Decisions -----------------------------------------------------------------------------------

    def decide(self) -> list[Action]:
        """Return what to do now; all of it counts as done."""
        self.room.keep_none()
        self._open.intersection_update(self._jobs.groups())
        actions: list[Action] = [self._stop(name) for name in self._lost if self._stands(name)]
        self._lost = set()
        actions += self._make_room()
        actions += self._start(before_trainings=True)
        actions += self._train()
        actions += self._give_way((), [[demand] for *_, demand in self._jobs.first_waiting()])
        actions += self._start(before_trainings=False)
        actions += self._ask()
        actions += self._give_back()
        actions += self._stop_unneeded()
        for needs in self._jobs.groups():
            if missing := self._missing(needs):
                actions += self._give_way(needs, [self._demands(missing)])
        return actions or self._start_over()

    def _make_room(self) -> list[Action]:
        """Stop idle engines where something lost its room with a node: it waits for other room."""
        if not self.room.is_over:
            return []
        return [self._stop(name) for kind in self._kinds for name in self._idle(kind)]

    def _train(self) -> list[Action]:
        """Start trainings that fit, the first first."""
        actions: list[Action] = []
        heads = self._jobs.first_waiting()
        while heads:
            *_, job_id, demand = heads[0]
            following = None
            if self.room.take({job_id: demand}):
                self._jobs.move(job_id, "training")
                actions.append(Train(job_id))
                following = self._jobs.next_waiting(demand)
            else:
                self.room.keep_for([demand])
            if following:
                heapq.heapreplace(heads, following)
            else:
                heapq.heappop(heads)
        return actions

    def _start(self, *, before_trainings: bool) -> list[Action]:
        """Begin waves and start their engines; before trainings only where enough work waits."""
        worth = WORTH_STARTS if before_trainings or self._jobs.num("waiting") else SPARE_STARTS
        actions: list[Action] = []
        for needs in self._jobs.groups():
            if needs not in self._open and not self._may_begin(needs, before_trainings):
                continue
            missing = self._missing(needs)
            if missing and self.may_start:
                actions += self._start_together(missing)
            if self._missing(needs):
                continue
            self._open.add(needs)
            for kind in needs if self.may_start else ():
                groups = [group for group in self._open if kind in group]
                while len(self._standing[kind]) < self._num_wanted(kind, worth, groups):
                    started = self._start_together([kind])
                    if not started:
                        break
                    actions += started
        return actions

    def _may_begin(self, needs: Needs, before_trainings: bool) -> bool:
        """Whether a wave is worth its engines: those that no wave under way keeps anyway."""
        more = [kind for kind in needs if not any(kind in group for group in self._open)]
        if before_trainings and self._jobs.num("waiting"):
            groups = self._jobs.groups()
            return all(self._num_worth(kind, WORTH_STARTS, groups) > 0 for kind in more)
        # Those that still answer the last of another wave are left to end, and to give way.
        return not self._jobs.num("waiting") or all(
            not self._standing[kind] or bool(self._idle(kind)) for kind in more
        )

    def _start_together(self, kinds: Sequence[str]) -> list[Action]:
        """Start one engine of each kind, or none where there is no room for all."""
        engines = {f"{kind}-{next(self._numbers)}": kind for kind in kinds}
        demands = dict(zip(engines, self._demands(kinds), strict=True))
        if not self.room.take(demands, lasting=True):
            self.room.keep_for([*demands.values()])
            return []
        for name, kind in engines.items():
            self._engines[name] = self._standing[kind][name] = _Engine(kind)
        return [Start(kind, name) for name, kind in engines.items()]

    def _demands(self, kinds: Iterable[str]) -> list[Demand]:
        return [self._kinds[kind].demand for kind in kinds]

    def _missing(self, needs: Needs) -> list[str]:
        """Kinds of which none stands, or for more of which an idle engine of another waits."""
        is_idle = any(self._idle(kind) for kind in needs)
        return [
            kind
            for kind in dict.fromkeys(needs)
            if not self._standing[kind] or (is_idle and self._is_full(kind))
        ]

    def _is_full(self, kind: str) -> bool:
        setting, standing = self._kinds[kind], self._standing[kind].values()
        asked = all(engine.is_up and len(engine.asked) >= setting.at_once for engine in standing)
        return asked and len(standing) < setting.most

    def _num_worth(self, kind: str, times: float, groups: Sequence[Needs]) -> int:
        """How many engines have so many times as much work in these groups as a wave costs.

        That is its start, and the time in which the last of them leave it half empty.
        """
        setting = self._kinds[kind]
        ready = [self._jobs.ready(group) for group in groups if kind in group]
        num, ask_s = sum(num for num, _ in ready), sum(seconds for _, seconds in ready)
        end_s = (1 - 1 / setting.at_once) * ask_s / max(1, num) / 2
        return int(ask_s / setting.at_once / max(times * (setting.start_s + end_s), 1e-9))

    def _num_wanted(self, kind: str, times: float, groups: Sequence[Needs]) -> int:
        """How many engines are worth their start; one for any work."""
        most = min(self._kinds[kind].most, self._num_useful(kind, groups))
        return min(most, max(1, self._num_worth(kind, times, groups)))

    def _num_useful(self, kind: str, groups: Iterable[Needs], later: int = 0) -> int:
        """How many engines can be asked something, if these groups are."""
        ready = sum(self._jobs.ready(group)[0] for group in groups if kind in group)
        jobs = ready + self._jobs.num("asking", kind) + later
        return math.ceil(jobs / self._kinds[kind].at_once)

    def _ask(self) -> list[Action]:
        """Ask ready jobs of waves under way, the longest first, of engines that have room."""
        actions: list[Action] = []
        for needs in self._jobs.groups():
            while needs in self._open and (job_id := self._jobs.first_ready(needs)) is not None:
                chosen = {kind: self._to_ask(kind) for kind in needs}
                engines = {kind: engine for kind, engine in chosen.items() if engine is not None}
                if len(engines) < len(chosen):
                    break
                self._jobs.move(job_id, "asking")
                self._asking[job_id] = engines
                for engine in engines.values():
                    self._engines[engine].asked.add(job_id)
                actions.append(Ask(job_id, engines))
        return actions

    def _to_ask(self, kind: str) -> str | None:
        """The least busy engine; the busiest where trainings wait, so that others come free."""
        most = self._kinds[kind].at_once
        sign = -1 if self._jobs.num("waiting") else 1
        free = (
            (sign * len(engine.asked), name)
            for name, engine in self._standing[kind].items()
            if engine.is_up and len(engine.asked) < most
        )
        return min(free, default=(0, None))[1]

    def _give_back(self) -> list[Action]:
        """Stop what finds no room, and the idle engines that wait for it.

        Two who share a cluster would else wait for each other, each with one engine of a pair.
        """
        unplaced = [name for name in self._unplaced if self._stands(name)]
        self._unplaced = set()
        kinds = {self._engines[name].kind for name in unplaced}
        waiting = {
            name
            for needs in self._jobs.groups()
            for kind in (needs if kinds & set(needs) else ())
            for name in self._idle(kind)
        }
        if not waiting:
            return []
        self.may_start = False
        stopped = [*unplaced, *sorted(waiting)]
        return [self._stop(name) for name in stopped if self._stands(name)]

    def _stands(self, name: str) -> bool:
        return name in self._engines and name in self._standing[self._engines[name].kind]

    def _stop_unneeded(self) -> list[Action]:
        """Stop engines that nobody will ask any more, idle or still starting."""
        groups = self._jobs.groups()
        return [
            self._stop(engine)
            for kind in self._kinds
            for engine in self._spare(
                kind, groups, 0 if self.crowded else self._num_later(kind), starting=True
            )
        ]

    def _num_later(self, kind: str) -> int:
        return self._jobs.num("waiting", kind) + self._jobs.num("training", kind)

    def _idle(self, kind: str) -> list[str]:
        standing = self._standing[kind].items()
        return [name for name, engine in standing if engine.is_up and not engine.asked]

    def _spare(
        self, kind: str, groups: Iterable[Needs], later: int = 0, *, starting: bool = False
    ) -> list[str]:
        """Unasked engines of a kind, beyond those that these groups can use."""
        num = len(self._standing[kind]) - self._num_useful(kind, groups, later)
        standing = self._standing[kind].items()
        unasked = [
            (e.is_up, name) for name, e in standing if not e.asked and (e.has_answered or starting)
        ]
        return [name for _, name in sorted(unasked)][: max(0, num)]  # those that are away first

    def _give_way(self, needs: Needs, blocked: Sequence[Sequence[Demand]]) -> list[Action]:
        """Stop idle engines of no wave and not of `needs`, where who is blocked has room then."""
        others = (kind for kind in self._kinds if kind not in needs)
        spare = [name for kind in others for name in self._spare(kind, self._open)]
        for demands in blocked if spare else ():
            if self.room.would_fit(demands, without=spare):
                for name in [*spare]:
                    fewer = [other for other in spare if other != name]
                    if self.room.would_fit(demands, without=fewer):
                        spare = fewer
                return [self._stop(name) for name in spare]
        return []

    def _stop(self, engine: str) -> Stop:
        del self._standing[self._engines[engine].kind][engine]
        return Stop(engine)

    def _start_over(self) -> list[Action]:
        """Where nothing goes on: stop all engines if one then has room with its partners.

        Each stands, and waits for a partner that has no room beside the others: a node was lost.
        """
        moves = self._jobs.num("training") or self._jobs.num("asking")
        if moves or not self.may_start or not all(self._is_up(name) for name in self._engines):
            return []
        self.room.keep_none()
        groups = [self._demands(dict.fromkeys(needs)) for needs in self._jobs.groups()]
        if any(self.room.would_fit(group, without=self._engines) for group in groups):
            return [self._stop(name) for name in self._engines]
        return []

    def _is_up(self, name: str) -> bool:
        return self._engines[name].is_up and self._stands(name)
