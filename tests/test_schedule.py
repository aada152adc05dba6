"""What a cluster's work does next, told by what happens in it: no Ray, no clock."""

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.actions import Action, Ask, EngineKind, Start, Stop, Train
from cluster.jobs import Job
from cluster.resources import Demand, Totals
from cluster.room import Room
from cluster.schedule import Schedule

ONE = Demand("small", cpus=1, gpus=1)
GANG = Demand("gang", cpus=1, gpus=1, count=4)
WHOLE = Demand("whole node", cpus=1, gpus=8)


def nodes(*gpus: float) -> Totals:
    return Totals(nodes=tuple((100.0, each) for each in gpus))


def kind(name: str, gpus: float = 1, **settings: float) -> EngineKind:
    return EngineKind(name, Demand(name, cpus=1, gpus=gpus), **settings)  # type: ignore[arg-type]


def job(
    name: str, *needs: str, train: Demand | None = ONE, s: float = 1.0, ask: float = 1.0
) -> Job:
    return Job(name, train, needs, train_s=s, ask_s=ask)


def trains(actions: Iterable[Action]) -> list[str]:
    return [action.job_id for action in actions if isinstance(action, Train)]


def starts(actions: Iterable[Action]) -> list[str]:
    return [action.kind for action in actions if isinstance(action, Start)]


def engines(actions: Iterable[Action]) -> list[str]:
    return [action.engine for action in actions if isinstance(action, Start)]


def asks(actions: Iterable[Action]) -> list[str]:
    return [action.job_id for action in actions if isinstance(action, Ask)]


def stops(actions: Iterable[Action]) -> list[str]:
    return [action.engine for action in actions if isinstance(action, Stop)]


def standing(schedule: Schedule) -> list[str]:
    """Take up what was decided, until every engine that was started answers; return those."""
    started = engines(schedule.decide())
    for engine in started:
        schedule.up(engine)
    return started


def test_one_job_from_training_to_its_end() -> None:
    schedule = Schedule([job("a", "base")], [kind("base")], nodes(1))
    assert schedule.decide() == [Train("a")]
    assert schedule.decide() == []
    schedule.trained("a")
    (start,) = schedule.decide()
    assert isinstance(start, Start) and start.kind == "base"
    assert schedule.decide() == []
    schedule.up(start.engine)
    assert schedule.decide() == [Ask("a", {"base": start.engine})]
    assert schedule.decide() == []
    schedule.ended("a")
    assert schedule.decide() == [Stop(start.engine)]
    assert not schedule.is_done
    schedule.down(start.engine)
    assert schedule.is_done and schedule.decide() == []


def test_the_longest_training_is_first() -> None:
    jobs = [job("short", s=1), job("long", s=3), job("asked long", s=1, ask=4), job("mid", s=2)]
    schedule = Schedule(jobs, [], nodes(2))
    assert trains(schedule.decide()) == ["asked long", "long"]
    schedule.trained("long")
    assert trains(schedule.decide()) == ["mid"]


def test_large_trainings_go_before_long_ones() -> None:
    jobs = [job("long", s=9), job("large", train=GANG, s=1), job("larger", train=WHOLE, s=0)]
    assert trains(Schedule(jobs, [], nodes(8, 5)).decide()) == ["larger", "large", "long"]


def test_equal_jobs_keep_their_order() -> None:
    schedule = Schedule([job(str(n)) for n in range(5)], [], nodes(5))
    assert trains(schedule.decide()) == ["0", "1", "2", "3", "4"]


def test_longest_first_holds_between_demands() -> None:
    other = Demand("other", cpus=2, gpus=1)
    jobs = [job("a", s=4), job("b", s=2), job("c", s=3, train=other), job("d", s=1, train=other)]
    assert trains(Schedule(jobs, [], nodes(2)).decide()) == ["a", "c"]


def test_a_job_that_needs_no_training_is_asked_and_one_that_needs_no_engine_ends() -> None:
    schedule = Schedule(
        [job("a", "base", train=None), job("b", train=None)], [kind("base")], nodes(1)
    )
    assert asks(actions := schedule.decide()) == ["b"]
    assert starts(actions) == ["base"]


def test_trainings_go_before_an_engine_that_little_waits_for() -> None:
    base = kind("base", start_s=10)
    schedule = Schedule([job("ready", "base", train=None, ask=49), job("b")], [base], nodes(1))
    assert schedule.decide() == [Train("b")]


def test_an_engine_goes_before_trainings_once_much_waits_for_it() -> None:
    base = kind("base", start_s=10)
    schedule = Schedule([job("ready", "base", train=None, ask=50), job("b")], [base], nodes(1))
    assert starts(schedule.decide()) == ["base"]


def test_much_is_counted_in_time_of_an_engine_that_answers_several_at_once() -> None:
    base = kind("base", start_s=10, at_once=4)
    ready = [job(str(n), "base", train=None, ask=100) for n in range(3)]
    assert trains(Schedule([*ready, job("b")], [base], nodes(1)).decide()) == ["b"]


def test_an_engine_starts_for_anything_where_nobody_else_wants_the_room() -> None:
    base = kind("base", start_s=10)
    schedule = Schedule([job("ready", "base", train=None), job("b")], [base], nodes(2))
    assert starts(actions := schedule.decide()) == ["base"]
    assert trains(actions) == ["b"]


def test_more_engines_where_more_waits_and_no_more_than_are_of_use() -> None:
    def started(num: int, **settings: float) -> int:
        base = kind("base", start_s=10, **settings)
        ready = [job(str(n), "base", train=None, ask=100) for n in range(num)]
        return len(starts(Schedule(ready, [base], nodes(8)).decide()))

    assert started(3, most=8) == 3
    assert started(3, most=2) == 2
    assert started(3, most=8, at_once=2) == 2
    assert started(30, most=20) == 8


def test_partners_are_started_together_or_not_at_all() -> None:
    needs = [kind("base", gpus=2), kind("judge", gpus=2)]
    jobs = [job("ready", "base", "judge", train=None), job("b", s=9, train=GANG)]
    schedule = Schedule(jobs, needs, nodes(4))
    assert schedule.decide() == [Train("b")]
    schedule.ended("b")
    assert starts(schedule.decide()) == ["base", "judge"]
    schedule = Schedule([job("ready", "base", "judge", train=None)], needs, nodes(3))
    assert schedule.decide() == []


def test_a_missing_partner_goes_before_trainings_as_the_other_one_waits_for_it() -> None:
    kinds = [kind("base"), kind("judge")]
    jobs = [job("ready", "base", "judge", train=None), job("b"), job("c")]
    schedule = Schedule(jobs[:1], kinds, nodes(2))
    base, judge = standing(schedule)
    schedule.down(judge)
    schedule.add(jobs[1:])
    assert starts(schedule.decide()) == ["judge"]
    assert base in schedule.engines


def test_another_partner_starts_where_an_engine_stands_idle_for_the_one_that_is_full() -> None:
    kinds = [kind("a"), kind("b", start_s=1), kind("judge", most=2, start_s=1)]
    schedule = Schedule([job("first", "a", "judge", train=None)], kinds, nodes(4))
    standing(schedule)
    assert asks(schedule.decide()) == ["first"]
    schedule.add([job("next", "b", "judge", train=None, ask=5), *(job(str(n)) for n in range(9))])
    actions = schedule.decide()
    assert (starts(actions), trains(actions)) == (["b"], ["0"])
    schedule.up(*engines(actions))
    assert schedule.decide() == []
    schedule.ended("0")
    (judge,) = standing(schedule)
    assert judge.startswith("judge")
    assert asks(schedule.decide()) == ["next"]


def test_jobs_are_asked_the_longest_first_of_the_least_busy_engine() -> None:
    ready = [job(str(n), "base", train=None, ask=1000 - n) for n in range(5)]
    schedule = Schedule(ready, [kind("base", most=2, at_once=2)], nodes(2))
    first, second = standing(schedule)
    asked = [(a.job_id, a.engines["base"]) for a in schedule.decide() if isinstance(a, Ask)]
    assert asked == [("0", first), ("1", second), ("2", first), ("3", second)]
    schedule.ended("1")
    assert schedule.decide() == [Ask("4", {"base": second})]


def wave(*, trainings: int) -> tuple[Schedule, list[str]]:
    """Two engines of two askings at once, each of them asked two; and trainings that wait."""
    ready = [job(str(n), "base", train=None, ask=1000) for n in range(4)]
    schedule = Schedule(ready, [kind("base", most=2, at_once=2)], nodes(2))
    started = standing(schedule)
    schedule.add(job(f"training {n}") for n in range(trainings))
    assert asks(schedule.decide()) == ["0", "1", "2", "3"]
    return schedule, started


def test_while_trainings_wait_jobs_are_asked_of_the_busiest_engine() -> None:
    """So that the other one comes free."""
    schedule, (first, second) = wave(trainings=1)
    schedule.add([job("next", "base", train=None, ask=5000)])
    for each in ("1", "2", "3"):
        schedule.ended(each)
    assert schedule.decide() == [Stop(second), Ask("next", {"base": first})]


def test_a_wave_that_ended_is_not_taken_up_again_for_little_while_trainings_wait() -> None:
    schedule, (first, second) = wave(trainings=2)
    schedule.ended("0")
    schedule.decide()
    schedule.add([job("late", "base", train=None, ask=1)])
    assert schedule.decide() == []
    schedule.ended("1")
    assert schedule.decide() == [Stop(first)]
    schedule.down(first)
    assert trains(schedule.decide()) == ["training 0"]
    schedule.ended("2")
    schedule.ended("3")
    assert schedule.decide() == [Stop(second)]
    schedule.down(second)
    assert trains(schedule.decide()) == ["training 1"]
    schedule.ended("training 1")
    assert starts(schedule.decide()) == ["base"]


def test_a_wave_is_taken_up_again_where_no_training_waits() -> None:
    schedule, (first, _) = wave(trainings=0)
    schedule.ended("0")
    schedule.decide()
    schedule.add([job("late", "base", train=None, ask=1)])
    assert schedule.decide() == [Ask("late", {"base": first})]


def test_a_shared_judge_is_asked_with_each_base() -> None:
    kinds = [kind("a"), kind("b"), kind("judge", at_once=2)]
    ready = [job("1", "a", "judge", train=None), job("2", "b", "judge", train=None)]
    schedule = Schedule(ready, kinds, nodes(3))
    assert len(standing(schedule)) == 3
    asked = {a.job_id: a.engines for a in schedule.decide() if isinstance(a, Ask)}
    assert set(asked) == {"1", "2"}
    assert asked["1"]["judge"] == asked["2"]["judge"]


def idle_engine(*others: Job, gpus: float = 2) -> tuple[Schedule, str]:
    """A schedule in which an engine stands idle, as "later" will be asked of it."""
    jobs = [job("first", "base", train=None), job("later", "base", s=9)]
    schedule = Schedule(jobs, [kind("base"), kind("large", gpus=2)], nodes(gpus))
    (engine,) = standing(schedule)
    schedule.decide()
    schedule.ended("first")
    schedule.add(others)
    return schedule, engine


def test_an_idle_engine_stays_while_nobody_wants_its_room() -> None:
    schedule, engine = idle_engine()
    assert schedule.decide() == []
    schedule.trained("later")
    assert schedule.decide() == [Ask("later", {"base": engine})]


def test_an_idle_engine_gives_way_to_a_training_and_to_another_engine() -> None:
    schedule, engine = idle_engine(job("b"))
    assert schedule.decide() == [Stop(engine)]
    schedule.down(engine)
    assert schedule.decide() == [Train("b")]
    schedule, engine = idle_engine(job("b", "large", train=None), gpus=3)
    assert schedule.decide() == [Stop(engine)]
    schedule.down(engine)
    assert starts(schedule.decide()) == ["large"]


def test_an_idle_engine_does_not_give_way_to_its_partner() -> None:
    schedule, engine = idle_engine(job("b", "base", "large", train=None), gpus=3)
    assert schedule.decide() == []
    schedule.ended("later")
    assert starts(schedule.decide()) == ["large"]
    assert engine in schedule.engines


def test_an_idle_engine_stays_where_its_going_would_not_help() -> None:
    schedule, _ = idle_engine(job("b", train=GANG))
    assert schedule.decide() == []
    schedule, _ = idle_engine(job("b", "large", train=None))
    assert schedule.decide() == []


def test_an_idle_engine_does_not_go_for_room_that_is_kept_for_another() -> None:
    schedule, _ = idle_engine(job("gang", train=Demand("gang", cpus=1, gpus=4), s=5), gpus=4)
    schedule.add([job("b", s=1)])
    assert schedule.decide() == []


def test_no_more_engines_give_way_than_is_needed() -> None:
    first = [job(str(n), "base", train=None, ask=1000) for n in range(3)]
    schedule = Schedule(
        [*first, *(job(f"later {n}", "base", s=9) for n in range(3))],
        [kind("base", most=3)],
        nodes(6),
    )
    assert len(standing(schedule)) == 3
    schedule.decide()
    for each in first:
        schedule.ended(each.job_id)
    schedule.add([job("b", train=Demand("two", cpus=1, gpus=2))])
    assert len(stops(schedule.decide())) == 2


def test_an_idle_engine_goes_when_others_crowd() -> None:
    schedule, engine = idle_engine()
    schedule.crowded = True
    assert schedule.decide() == [Stop(engine)]


def test_spare_engines_go_as_soon_as_what_is_left_needs_fewer() -> None:
    ready = [job(str(n), "base", train=None, ask=1000) for n in range(2)]
    schedule = Schedule(ready, [kind("base", most=2)], nodes(2))
    first, second = standing(schedule)
    assert asks(schedule.decide()) == ["0", "1"]
    schedule.ended("0")
    assert schedule.decide() == [Stop(first)]
    schedule.ended("1")
    assert schedule.decide() == [Stop(second)]


@pytest.mark.parametrize("large", [GANG, Demand("half a node", cpus=1, gpus=4)])
@pytest.mark.parametrize("cluster", [nodes(4), nodes(4, 4)])
def test_small_trainings_do_not_starve_a_large_one(large: Demand, cluster: Totals) -> None:
    small = [job(str(n), s=10) for n in range(1000)]
    schedule = Schedule(small, [], cluster)
    training = trains(schedule.decide())
    schedule.add([job("large", train=large, s=20)])
    draws = random.Random(1)
    ended = 0
    while "large" not in training and ended < 30:
        schedule.ended(training.pop(draws.randrange(len(training))))
        training += trains(schedule.decide())
        ended += 1
    assert "large" in training


def test_small_trainings_do_not_starve_a_large_engine() -> None:
    schedule = Schedule([job(str(n), s=10) for n in range(1000)], [kind("base", gpus=4)], nodes(4))
    training = trains(schedule.decide())
    schedule.add([job("large", "base", train=None, ask=1e5)])
    for _ in range(3):
        schedule.ended(training.pop())
        assert schedule.decide() == []
    schedule.ended(training.pop())
    assert starts(schedule.decide()) == ["base"]


def test_a_lost_node_takes_its_room_and_what_is_told_of_it_is_done_again() -> None:
    schedule = Schedule([job("a", s=3), job("b", s=2), job("c", s=1)], [], nodes(1, 1))
    assert trains(schedule.decide()) == ["a", "b"]
    schedule.set_totals(nodes(1))
    schedule.ended("a")
    schedule.add([job("a", s=3)])
    assert schedule.decide() == []
    schedule.set_totals(nodes(1, 1))
    assert schedule.decide() == [Train("a")]


def test_a_lost_engine_is_started_again_for_the_jobs_that_were_asked_of_it() -> None:
    ready = [job("a", "base", train=None)]
    schedule = Schedule(ready, [kind("base")], nodes(1))
    (engine,) = standing(schedule)
    assert asks(schedule.decide()) == ["a"]
    schedule.down(engine)
    schedule.ended("a")
    schedule.add(ready)
    (again,) = standing(schedule)
    assert again != engine
    assert schedule.decide() == [Ask("a", {"base": again})]


def test_engines_that_lost_their_partners_and_the_room_for_them_start_over_together() -> None:
    """Half of each pair was lost with a node: no pair has room beside the half of another."""
    kinds = [kind(name) for name in "abcd"]
    ready = [job("1", "a", "b", train=None), job("2", "c", "d", train=None)]
    schedule = Schedule(ready, kinds, nodes(2, 2))
    a, b, c, d = standing(schedule)
    schedule.down(b)
    schedule.down(d)
    schedule.set_totals(nodes(2))
    assert stops(schedule.decide()) == [a, c]
    assert schedule.decide() == []
    schedule.down(a)
    schedule.down(c)
    assert starts(schedule.decide()) == ["a", "b"]


def test_engines_wait_for_a_lost_node_where_starting_over_would_not_help() -> None:
    schedule = Schedule([job("1", "a", "b", train=None)], [kind("a"), kind("b")], nodes(1, 1))
    a, b = standing(schedule)
    schedule.down(b)
    schedule.set_totals(nodes(1))
    assert schedule.decide() == []
    schedule.set_totals(nodes(1, 1))
    assert starts(schedule.decide()) == ["b"]
    assert a in schedule.engines


def test_a_job_may_end_elsewhere_while_it_waits_trains_is_ready_or_is_asked() -> None:
    jobs = [job(name, "base", s=s) for name, s in [("trains", 9), ("waits", 5)]]
    jobs += [job(name, "base", train=None, ask=1000) for name in ("asked", "ready")]
    schedule = Schedule(jobs, [kind("base")], nodes(2))
    (engine,) = standing(schedule)
    assert asks(schedule.decide()) == ["asked"]
    for name in ("waits", "ready"):
        schedule.ended(name)
        assert schedule.decide() == []
    schedule.ended("asked")
    assert schedule.decide() == []
    schedule.ended("trains")
    assert schedule.decide() == [Stop(engine)]
    schedule.down(engine)
    assert schedule.is_done
    assert schedule.room.left == [(100, 2)]


def test_late_news_of_what_is_over_changes_nothing() -> None:
    schedule = Schedule([job("a", "base", s=2), job("b", "base")], [kind("base")], nodes(1))
    schedule.decide()
    schedule.ended("a")
    schedule.ended("a")
    schedule.trained("a")
    schedule.up("base-99")
    schedule.down("base-99")
    assert schedule.decide() == [Train("b")]
    schedule.trained("b")
    schedule.trained("b")
    assert starts(schedule.decide()) == ["base"]


def test_a_job_that_was_trained_elsewhere_while_it_waited_is_ready() -> None:
    schedule = Schedule([job("a", s=2), job("b")], [], nodes(1))
    assert schedule.decide() == [Train("a")]
    schedule.trained("b")
    assert schedule.decide() == [Ask("b", {})]


def test_a_job_is_added_again_with_other_estimates_and_demands() -> None:
    schedule = Schedule([job("a", s=9), job("b", s=5), job("c", s=1)], [], nodes(1))
    schedule.ended("a")
    schedule.add([job("a", s=2, train=Demand("other", cpus=2, gpus=1))])
    order = []
    for _ in range(3):
        order += trains(schedule.decide())
        schedule.ended(order[-1])
    assert order == ["b", "a", "c"]
    assert schedule.is_done


def test_a_job_twice_or_of_no_engine_is_refused() -> None:
    schedule = Schedule([job("a")], [kind("base")], nodes(1))
    with pytest.raises(ValueError, match="job a: there already"):
        schedule.add([job("a")])
    with pytest.raises(ValueError, match=r"job b needs \['judge'\], of \['base'\]"):
        schedule.add([job("b", "judge")])


def test_what_is_wanted_is_what_is_held_and_what_waits() -> None:
    jobs = [job("a", s=2), job("b", s=1), job("c", "base", train=None)]
    schedule = Schedule(jobs, [kind("base")], nodes(3))
    assert sorted(d.name for d in schedule.wanted(10)) == ["base", "small", "small"]
    schedule.decide()
    assert sorted(d.name for d in schedule.wanted(10)) == ["base", "small", "small"]
    assert len(schedule.wanted(2)) == 2
    for name in "abc":
        schedule.ended(name)
    assert [d.name for d in schedule.wanted(10)] == ["base"]


# Whatever happens --------------------------------------------------------------------------------


class World:
    """A cluster in which things happen in a random order, and go wrong now and then."""

    def __init__(
        self, jobs: list[Job], kinds: list[EngineKind], totals: Totals, draws: random.Random
    ) -> None:
        self.jobs = {job.job_id: job for job in jobs}
        self.kinds = {kind.name: kind for kind in kinds}
        self.totals, self.draws = totals, draws
        self.schedule = Schedule(jobs, kinds, totals)
        self.training: set[str] = set()
        self.asking: dict[str, set[str]] = {}
        self.engines: dict[str, tuple[str, str]] = {}  # kind; starting, up, away or stopping
        self.trained: set[str] = {job.job_id for job in jobs if job.train is None}
        self.done: Counter[str] = Counter()
        self.faults_left = draws.randrange(6)
        self.lost_nodes = 0
        self.num_started = 0

    def decide(self) -> None:
        before = self.schedule.room.left
        actions = self.schedule.decide()
        for (cpus, gpus), (had_cpus, had_gpus) in zip(self.schedule.room.left, before, strict=True):
            assert cpus >= min(0, had_cpus) - 1e-6 and gpus >= min(0, had_gpus) - 1e-6
        for action in actions:
            self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        if isinstance(action, Train):
            assert action.job_id not in self.trained | self.training
            self.training.add(action.job_id)
        elif isinstance(action, Ask):
            job_id = action.job_id
            assert job_id in self.trained and job_id not in self.asking and not self.done[job_id]
            assert set(action.engines) == set(self.jobs[job_id].needs)
            self.asking[job_id] = set(action.engines.values())
            for kind, engine in action.engines.items():
                assert self.engines[engine] == (kind, "up")
                asked = sum(engine in engines for engines in self.asking.values())
                assert asked <= self.kinds[kind].at_once
        elif isinstance(action, Start):
            self.engines[action.engine] = (action.kind, "starting")
            self.num_started += 1
            standing = [k for k, state in self.engines.values() if state != "stopping"]
            assert standing.count(action.kind) <= self.kinds[action.kind].most
        else:
            kind, state = self.engines[action.engine]
            asked = any(action.engine in engines for engines in self.asking.values())
            assert state in ("starting", "away") or (state == "up" and not asked)
            self.engines[action.engine] = (kind, "stopping")

    def happen(self) -> bool:
        """One thing that goes on ends; return whether there was any."""
        if self.faults_left and self.draws.random() < 0.1:
            self.faults_left -= 1
            faults = [self.lose_job, self.lose_engine, self.lose_node, self.find_no_room]
            self.draws.choice(faults)()
            return True
        going = [("engine", e) for e, (_, state) in self.engines.items() if state != "up"]
        going += [("train", name) for name in self.training] + [("ask", n) for n in self.asking]
        going += [("node", "")] * bool(self.lost_nodes)
        going += [("pause", "")] * (not self.schedule.may_start)
        if not going:
            return False
        what, name = self.draws.choice(sorted(going))
        if what == "train":
            self.training.discard(name)
            self.trained.add(name)
            self.schedule.trained(name)
        elif what == "ask":
            if all(self.engines.get(e, ("", ""))[1] == "up" for e in self.asking.pop(name)):
                self.done[name] += 1
                self.schedule.ended(name)
            else:
                self.schedule.again(name)
        elif what == "node":
            self.lost_nodes -= 1
            self.set_totals()
        elif what == "pause":
            self.schedule.may_start = True
        elif self.engines[name][1] == "away":
            if self.draws.random() < 0.3:
                self.engines[name] = (self.engines[name][0], "up")
                self.schedule.up(name)
            else:
                self.schedule.lost(name)
        elif self.engines[name][1] == "starting":
            self.engines[name] = (self.engines[name][0], "up")
            self.schedule.up(name)
        else:
            del self.engines[name]
            self.schedule.down(name)
        return True

    def lose_job(self, name: str = "") -> None:
        running = sorted([*self.training, *self.asking])
        if not name and not running:
            return
        name = name or self.draws.choice(running)
        self.training.discard(name)
        self.asking.pop(name, None)
        self.schedule.ended(name)
        job = self.jobs[name]
        train = None if name in self.trained else job.train
        self.schedule.add([Job(name, train, job.needs, job.train_s, job.ask_s)])

    def lose_engine(self, engine: str = "") -> None:
        """An engine that has answered is away; it may come back, or be lost for good."""
        up = sorted(name for name, (_, state) in self.engines.items() if state == "up")
        if (engine or up) and (not engine or engine in up):
            engine = engine or self.draws.choice(up)
            self.engines[engine] = (self.engines[engine][0], "away")
            self.schedule.away(engine)

    def find_no_room(self) -> None:
        """What starts waits for room in vain; it may have it in the end all the same."""
        for name, (_, state) in sorted(self.engines.items()):
            if state == "starting" and self.draws.random() < 0.5:
                self.schedule.unplaced(name)

    def lose_node(self) -> None:
        if not self.schedule.room.left:
            return
        lost = self.schedule.room.on(0)
        self.lost_nodes += 1
        if self.draws.random() < 0.5:  # told of late
            self.set_totals()
        for name in lost:
            if self.draws.random() < 0.5:
                self.decide()
            if name in self.engines:
                self.lose_engine(name)
            elif name in self.training:
                self.lose_job(name)
        self.set_totals()

    def set_totals(self) -> None:
        self.schedule.set_totals(Totals(nodes=self.totals.nodes[self.lost_nodes :]))


DEMANDS = st.builds(
    Demand,
    st.just("training"),
    cpus=st.sampled_from([0.0, 1.0, 2.0]),
    gpus=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    count=st.sampled_from([1, 1, 2, 4]),
)
SECONDS = st.sampled_from([1.0, 10.0, 100.0, 5000.0])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    size = st.tuples(st.sampled_from([2.0, 8.0]), st.sampled_from([0.0, 1.0, 2.0, 4.0]))
    totals = Totals(nodes=tuple(draw(st.lists(size, min_size=1, max_size=3))))
    kinds = [
        EngineKind(
            name,
            Demand(name, draw(st.sampled_from([0.0, 1.0])), draw(st.sampled_from([0.5, 1.0, 2.0]))),
            most=draw(st.integers(1, 3)),
            at_once=draw(st.integers(1, 3)),
            start_s=draw(SECONDS),
        )
        for name in ("a", "b", "c", "judge")
    ]
    demand = {kind.name: kind.demand for kind in kinds}
    needs = st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True)
    trainings = draw(st.lists(DEMANDS, min_size=1, max_size=3))
    jobs = [
        Job(str(number), train, (*some, *judge), train_s, ask_s)
        for number, (train, some, judge, train_s, ask_s) in enumerate(
            draw(
                st.lists(
                    st.tuples(
                        st.sampled_from([None, *trainings]),
                        needs.map(tuple),
                        st.sampled_from([(), ("judge",)]),
                        SECONDS,
                        SECONDS,
                    ),
                    max_size=25,
                )
            )
        )
        if Room(totals).take({"training": train} if train else {})
        and Room(totals).take({kind: demand[kind] for kind in (*some, *judge)})
    ]
    return World(jobs, kinds, totals, draw(st.randoms(use_true_random=False)))


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_every_job_is_asked_once_after_its_training_and_all_engines_stop(world: World) -> None:
    world.decide()
    events = 0
    while not world.schedule.is_done:
        assert world.happen(), "nothing goes on, and yet it is not done"
        if world.draws.random() < 0.8 or not (world.training or world.asking):
            world.decide()
        events += 1
        assert events < 30 * (len(world.jobs) + 10)
    assert world.done == Counter([*world.jobs])
    assert world.schedule.engines == [] and not world.engines
    sizes = world.totals.nodes[world.lost_nodes :]
    assert sorted(world.schedule.room.left) == sorted(sizes)


@settings(max_examples=75, deadline=None)
@given(worlds())
def test_jobs_that_end_elsewhere_leave_nothing_behind(world: World) -> None:
    world.faults_left = 0
    names = sorted(world.jobs)
    world.draws.shuffle(names)
    for name in names:
        world.decide()
        world.happen()
        world.training.discard(name)
        world.asking.pop(name, None)
        world.done[name] += 1
        world.schedule.ended(name)
    for _ in range(10 * len(names) + 20):
        world.decide()
        world.happen()
    assert world.schedule.is_done
    assert world.schedule.room.left == list(world.totals.nodes)


def test_an_engine_that_is_away_is_asked_nothing_and_goes_when_nobody_waits_for_it() -> None:
    jobs = [job("a", "base", train=None), job("b", "base", train=None)]
    schedule = Schedule(jobs, [kind("base", at_once=1)], nodes(1))
    (engine,) = standing(schedule)
    assert asks(schedule.decide()) == ["a"]
    schedule.away(engine)
    schedule.ended("a")
    assert schedule.decide() == []
    schedule.up(engine)
    assert asks(schedule.decide()) == ["b"]
    schedule.away(engine)
    schedule.ended("b")
    assert stops(schedule.decide()) == [engine]


# Others on the same cluster -----------------------------------------------------------------------


def pair(name: str) -> Schedule:
    """One job that is asked of two engines, on two GPUs."""
    return Schedule([job("j", name, "judge", train=None)], [kind(name), kind("judge")], nodes(2))


def test_an_engine_gives_its_room_back_where_its_partner_finds_none() -> None:
    schedule = pair("base")
    base, judge = engines(schedule.decide())
    schedule.up(base)
    assert schedule.decide() == []
    schedule.unplaced(judge)
    assert stops(schedule.decide()) == [judge, base]
    assert not schedule.may_start
    for engine in (judge, base):
        schedule.down(engine)
        assert schedule.decide() == []
    schedule.may_start = True
    again = standing(schedule)
    assert len(again) == 2
    assert asks(schedule.decide()) == ["j"]


def test_who_holds_nothing_waits_for_room() -> None:
    schedule = pair("base")
    base, judge = engines(schedule.decide())
    schedule.unplaced(base)
    schedule.unplaced(judge)
    assert schedule.decide() == [] and schedule.may_start
    schedule.up(base)
    schedule.up(judge)
    schedule.unplaced(judge)  # told late
    assert asks(schedule.decide()) == ["j"]


def test_an_engine_that_is_asked_meanwhile_is_kept() -> None:
    kinds = [kind("base", at_once=1), kind("judge", most=2)]
    jobs = [job(name, "base", "judge", train=None, ask=600.0) for name in "ab"]
    schedule = Schedule(jobs, kinds, nodes(3))
    base, *judges = engines(schedule.decide())
    schedule.up(base)
    schedule.up(judges[0])
    assert len(asks(schedule.decide())) == 1
    for engine in judges[1:]:
        schedule.unplaced(engine)
    assert stops(schedule.decide()) == []


@pytest.mark.parametrize("seed", range(20))
def test_two_who_share_a_cluster_do_not_wait_for_each_other_for_ever(seed: int) -> None:
    """Each counts both GPUs as its own; they are given to whoever asks first, one by one."""
    chance = random.Random(seed)
    sweeps = {"x": pair("x"), "y": pair("y")}
    waiting: list[tuple[str, str]] = []  # engines that no GPU was free for yet, in order
    placed: set[tuple[str, str]] = set()
    paused = dict.fromkeys(sweeps, 0)
    done: set[str] = set()

    def act(name: str) -> None:
        schedule = sweeps[name]
        for action in schedule.decide():
            match action:
                case Start(_, engine):
                    waiting.append((name, engine))
                case Stop(engine):
                    placed.discard((name, engine))
                    if (name, engine) in waiting:
                        waiting.remove((name, engine))
                    schedule.down(engine)
                case Ask(job_id, _):
                    schedule.ended(job_id)
                    done.add(name)

    for _turn in range(200):
        for name in chance.sample(sorted(sweeps), 2):
            act(name)
        chance.shuffle(waiting)
        while waiting and len(placed) < 2:
            name, engine = waiting.pop(0)
            placed.add((name, engine))
            sweeps[name].up(engine)
        for name, engine in waiting:
            sweeps[name].unplaced(engine)
        for name, schedule in sweeps.items():
            if not schedule.may_start:
                paused[name] = paused[name] or chance.randint(1, 8)
                paused[name] -= 1
                schedule.may_start = not paused[name]
    assert done == set(sweeps)


def test_during_the_pause_those_that_stand_are_asked_and_kept() -> None:
    kinds = [kind("a"), kind("b"), kind("judge")]
    jobs = [job("j", "a", "judge", train=None, ask=60), job("later", "a", "judge"),
            job("k", "b", "judge", train=None)]  # fmt: skip
    schedule = Schedule(jobs, kinds, nodes(4))
    started = {
        action.kind: action.engine for action in schedule.decide() if isinstance(action, Start)
    }
    schedule.up(started["a"])
    schedule.up(started["judge"])
    assert asks(schedule.decide()) == ["j"]
    schedule.may_start = False
    schedule.ended("j")
    schedule.trained("later")
    actions = schedule.decide()
    assert asks(actions) == ["later"]
    assert stops(actions) == starts(actions) == []


# Engines that are lost ---------------------------------------------------------------------------


def test_an_engine_that_is_lost_is_replaced_and_what_it_was_asked_is_asked_again() -> None:
    schedule = Schedule([job("j", "base", train=None)], [kind("base")], nodes(1))
    (engine,) = standing(schedule)
    assert asks(schedule.decide()) == ["j"]
    schedule.away(engine)
    assert schedule.decide() == []
    schedule.lost(engine)
    assert stops(schedule.decide()) == [engine]
    schedule.again("j")
    assert schedule.decide() == []  # it still holds its room
    schedule.down(engine)
    (other,) = standing(schedule)
    assert schedule.decide() == [Ask("j", {"base": other})]


def test_where_a_lost_engine_has_no_room_any_more_idle_ones_give_theirs() -> None:
    kinds = [kind("base", most=2, at_once=1), kind("judge")]
    jobs = [job(str(n), "base", "judge", train=None, ask=1000) for n in range(6)]
    schedule = Schedule(jobs, kinds, nodes(1, 1, 1))
    started = {
        action.engine: action.kind for action in schedule.decide() if isinstance(action, Start)
    }
    assert sorted(started.values()) == ["base", "base", "judge"]
    for engine in started:
        schedule.up(engine)
    asked = asks(schedule.decide())
    (judge,) = [engine for engine, name in started.items() if name == "judge"]
    schedule.lost(judge)
    assert stops(schedule.decide()) == [judge]
    schedule.set_totals(nodes(1, 1))  # its node is gone
    schedule.down(judge)
    for name in asked:
        schedule.again(name)
    stopped = stops(schedule.decide())
    assert {started[engine] for engine in stopped} == {"base"}
    for engine in stopped:
        schedule.down(engine)
    standing(schedule)
    assert len(asks(schedule.decide())) == 1


def test_an_idle_engine_gives_way_to_a_training_that_lost_its_room() -> None:
    ranks = Demand("ranks", cpus=1, gpus=1, count=2)
    jobs = [job("asked", "base", train=None), job("trained", "base", train=ranks)]
    schedule = Schedule(jobs, [kind("base")], nodes(1, 1, 1))
    actions = schedule.decide()
    assert trains(actions) == ["trained"]
    (engine,) = engines(actions)
    schedule.up(engine)
    assert asks(schedule.decide()) == ["asked"]
    schedule.ended("asked")
    assert schedule.decide() == []  # it is kept for the answers of what is being trained
    schedule.set_totals(nodes(1, 1))
    assert stops(schedule.decide()) == [engine]
    schedule.down(engine)
    assert schedule.decide() == [] and not schedule.room.is_over
    schedule.trained("trained")
    assert len(standing(schedule)) == 1
    assert asks(schedule.decide()) == ["trained"]


def test_a_node_that_joins_is_kept_for_what_lost_its_room() -> None:
    ranks = Demand("ranks", cpus=1, gpus=1, count=2)
    jobs = [job("asked", "base", train=None), job("trained", "base", train=ranks)]
    schedule = Schedule(jobs, [kind("base")], nodes(1, 1))
    assert trains(schedule.decide()) == ["trained"]
    schedule.set_totals(nodes(1))
    assert schedule.decide() == []
    schedule.set_totals(nodes(1, 1))
    assert schedule.decide() == []
    schedule.trained("trained")
    assert starts(schedule.decide()) == ["base"]


def test_an_engine_that_still_starts_is_stopped_when_nobody_needs_it() -> None:
    kinds = [kind("base", most=2, at_once=1)]
    jobs = [job(name, "base", train=None, ask=1000) for name in "ab"]
    schedule = Schedule(jobs, kinds, nodes(2))
    first, second = engines(schedule.decide())
    schedule.up(first)
    stopped = []
    for _ in range(3):
        actions = schedule.decide()
        stopped += stops(actions)
        for name in asks(actions):
            schedule.ended(name)
    assert sorted(stopped) == [first, second]
    schedule.down(first)
    schedule.down(second)
    assert schedule.is_done
