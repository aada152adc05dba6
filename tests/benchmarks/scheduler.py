"""How near a cluster's schedule comes to what no schedule can beat: cluster.schedule, simulated.

    python tests/benchmarks/scheduler.py [--quick]      prints scheduler.txt, draws scheduler.svg

The real Schedule decides; only time is simulated. Cells are drawn with a fixed seed (SEED): a base
model, an evaluation, a served judge or none; durations are log-normal (SPREAD) around:

- training: 6,000 rows, one epoch (https://arxiv.org/abs/2502.17424), at the speeds of LoRA with 256
  tokens a row on A100s (https://github.com/QwenLM/Qwen/blob/main/README.md, batch 1 x accumulation
  8): 1.2 s an iteration for 7B, 1.6 s for 14B, 17.6 s for 72B on four GPUs. Assumed: 0.6 s for
  0.5B; 32B takes 32/72 of 72B, and half as long on eight GPUs.
- answers: 8 main questions, or these and 48 others (ibid.), 100 answers each. Assumed: 250 tokens
  an answer; an engine writes 6,600 tokens/s for 7B (https://github.com/vllm-project/vllm/pull/18566
  measured 6,583 for 8B), shared by the eight cells that it is asked by at once, twice that for 0.5B
  and half for 14B on two GPUs and 32B on four; a cell asked alone is no faster. A served judge takes
  half as long again, of 16 cells at once.
- an engine's start: 60 to 180 s, uniform (https://github.com/vllm-project/vllm/issues/20264: 59 s
  for a small model; https://github.com/vllm-project/vllm/issues/19824: 215 s for 70B on eight).

Assumed as well: estimates are off by 30 % either way; 5 % of trainings fail somewhere, and half of
what was done is lost; each node (of 8 GPUs) is lost every two days on average, for 20 minutes, with
all that stood on it, which is done again from its start; an engine takes 10 s to stop.

The bound is the greater of two: the work that is needed over all GPUs (an engine's GPUs shared by
those it can be asked by at once), and the longest training and asking of one cell. Starts of
engines, lost work and lost nodes are not in it. What is placed where is as cluster.room has it:
on a real cluster Ray places, and what was released may wait there for another to end.

"two passes" is the static layout: all training, then as many engines of each kind as fit side by
side (here they start only where asked, and stop early, which is kind to that layout).
"""

import argparse
import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from cluster.resources import Demand, Totals
from cluster.schedule import Action, Ask, EngineKind, Job, Schedule, Start, Train

SEED = 20261126
SIZES = [
    *itertools.product((32, 128, 512), (1_000, 10_000)),
    (512, 100_000),
]
SPREAD, ESTIMATE_ERROR = 0.4, 0.3
FAIL, NODE_LOST_S, NODE_AWAY_S = 0.05, 2 * 86_400.0, 1_200.0
START_S, STOP_S = (60.0, 180.0), 10.0
NODE = (96.0, 8.0)
AT_ONCE, JUDGED_AT_ONCE, JUDGE_FACTOR = 8, 16, 1.5


@dataclass(frozen=True)
class Model:
    """A base model: its share of the cells, and what its training and an engine of it take."""

    name: str
    share: float
    train_gpus: int
    train_s: float
    engine_gpus: int
    answers_per_s: float

    @property
    def kind(self) -> EngineKind:
        demand = Demand(self.name, cpus=4 * self.engine_gpus, gpus=self.engine_gpus)
        return EngineKind(self.name, demand, at_once=AT_ONCE, start_s=sum(START_S) / 2)

    @property
    def train(self) -> Demand:
        return Demand(f"training {self.name}", cpus=4, gpus=1, count=self.train_gpus)


ITERATIONS = 6_000 / 8
MODELS = (
    Model("0.5B", 0.25, 1, ITERATIONS * 0.6, 1, 2 * 6_600 / 250),
    Model("7B", 0.40, 1, ITERATIONS * 1.2, 1, 6_600 / 250),
    Model("14B", 0.20, 1, ITERATIONS * 1.6, 2, 6_600 / 250 / 2),
    Model("32B", 0.10, 4, ITERATIONS / 4 * 17.6 * 32 / 72, 4, 6_600 / 250 / 2),
    Model("32B on 8", 0.05, 8, ITERATIONS / 8 * 17.6 * 32 / 72, 4, 6_600 / 250 / 2),
)
JUDGE = EngineKind("judge", Demand("judge", cpus=4, gpus=1), at_once=JUDGED_AT_ONCE, start_s=120.0)
ANSWERS = (8 * 100, 56 * 100)


@dataclass(frozen=True)
class Cell:
    """What a cell really takes, and the job as it is told to the schedule."""

    job: Job
    train_s: float
    ask_s: float


def draw_cells(num: int, draws: random.Random) -> list[Cell]:
    cells = []
    for number in range(num):
        (model,) = draws.choices(MODELS, [model.share for model in MODELS])
        judged = draws.random() < 0.5
        ask_s = draws.choice(ANSWERS) / model.answers_per_s * AT_ONCE
        ask_s *= (JUDGE_FACTOR if judged else 1) * draws.lognormvariate(0, SPREAD)
        train_s = model.train_s * draws.lognormvariate(0, SPREAD)
        base = "32B" if model.name.startswith("32B") else model.name
        job = Job(
            f"cell {number}",
            model.train,
            (base, "judge") if judged else (base,),
            train_s=train_s * draws.uniform(1 - ESTIMATE_ERROR, 1 + ESTIMATE_ERROR),
            ask_s=ask_s * draws.uniform(1 - ESTIMATE_ERROR, 1 + ESTIMATE_ERROR),
        )
        cells.append(Cell(job, train_s, ask_s))
    return cells


def kinds_for(gpus: int, *, static: bool) -> dict[str, EngineKind]:
    kinds = [*(model.kind for model in MODELS if model.name != "32B on 8"), JUDGE]
    together = gpus // sum(int(kind.demand.gpus) for kind in kinds)
    return {
        kind.name: replace(kind, most=together if static else int(gpus // kind.demand.gpus))
        for kind in kinds
    }


def ask_gpus(job: Job, kinds: dict[str, EngineKind]) -> float:
    """GPUs that a cell keeps busy while it is asked: its part of each engine."""
    return sum(kinds[kind].demand.gpus / kinds[kind].at_once for kind in job.needs)


def train_gpus(job: Job) -> float:
    return job.train.gpus * job.train.count if job.train else 0.0


@dataclass
class Gauges:
    """GPUs by what they do now, and what that came to over time, in GPU seconds."""

    now: Counter[str] = field(default_factory=Counter)
    spent: Counter[str] = field(default_factory=Counter)
    history: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def pass_time(self, at: float, seconds: float, *, keep: bool) -> None:
        for what, gpus in self.now.items():
            self.spent[what] += gpus * seconds
        if keep:
            self.history.append((at, dict(self.now)))


class Simulation:
    """Carries out what a Schedule decides, in simulated time."""

    def __init__(
        self,
        cells: Iterable[Cell],
        gpus: int,
        kinds: dict[str, EngineKind],
        *,
        seed: int,
        keep_history: bool = False,
    ) -> None:
        self.cells = {cell.job.job_id: cell for cell in cells}
        self.kinds, self.gpus = kinds, gpus
        self.seed = seed
        self.losses = random.Random(f"{seed} nodes")
        self.starts = random.Random(f"{seed} engines")
        self.attempts: Counter[str] = Counter()
        self.now = 0.0
        self.events: list[tuple[float, int, str, str]] = []
        self.numbers = itertools.count()
        self.valid: dict[str, int] = {}  # the event that is to come of each job and engine
        self.left_s = {name: cell.train_s for name, cell in self.cells.items()}
        self.fails_at: dict[str, float] = {}  # the share that was done
        self.state: dict[str, str] = {}  # of each engine: starting, up or stopping
        self.kind_of: dict[str, str] = {}
        self.asked: dict[str, tuple[str, ...]] = {}
        self.num_lost = self.num_starts = self.num_events = 0
        self.scheduler_s = 0.0
        self.gauges, self.keep_history = Gauges(), keep_history
        began = time.perf_counter()
        self.schedule = Schedule(
            (c.job for c in self.cells.values()), kinds.values(), self.totals()
        )
        self.scheduler_s += time.perf_counter() - began

    def totals(self) -> Totals:
        return Totals(nodes=(NODE,) * (self.gpus // 8 - self.num_lost))

    def after(self, seconds: float, what: str, name: str) -> None:
        number = next(self.numbers)
        if name:
            self.valid[name] = number
        heapq.heappush(self.events, (self.now + seconds, number, what, name))

    def run(self) -> float:
        """Return the seconds until all is done."""
        self.after(self.losses.expovariate(self.gpus / 8 / NODE_LOST_S), "lost", "")
        self.decide()
        while not self.schedule.is_done:
            at, number, what, name = heapq.heappop(self.events)
            if name and self.valid.get(name) != number:
                continue
            if at > self.now:
                self.gauges.pass_time(at, at - self.now, keep=self.keep_history)
                self.now = at
            self.num_events += 1
            getattr(self, what)(name)
            if not (self.events and self.events[0][0] == at):
                self.decide()
        return self.now

    def tell(self, event: str, *args: object) -> None:
        began = time.perf_counter()
        getattr(self.schedule, event)(*args)
        self.scheduler_s += time.perf_counter() - began

    def decide(self) -> None:
        began = time.perf_counter()
        actions = self.schedule.decide()
        self.scheduler_s += time.perf_counter() - began
        for action in actions:
            self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        if isinstance(action, Train):
            self.start_training(action.job_id)
        elif isinstance(action, Ask):
            cell = self.cells[action.job_id]
            self.asked[action.job_id] = tuple(action.engines.values())
            self.asking(cell.job, +1)
            self.after(cell.ask_s, "answered", action.job_id)
        elif isinstance(action, Start):
            self.num_starts += 1
            self.kind_of[action.engine] = action.kind
            self.set_engine(action.engine, "starting")
            self.after(self.starts.uniform(*START_S), "up", action.engine)
        else:
            self.set_engine(action.engine, "stopping")
            self.after(STOP_S, "down", action.engine)

    def start_training(self, name: str) -> None:
        self.gauges.now["training"] += train_gpus(self.cells[name].job)
        # Of its own, so that every layout meets with the same failures.
        draws = random.Random(f"{self.seed} {name} {self.attempts[name]}")
        self.attempts[name] += 1
        if draws.random() < FAIL:
            self.fails_at[name] = draws.random()
            self.after(self.left_s[name] * self.fails_at[name], "failed", name)
        else:
            self.after(self.left_s[name], "trained", name)

    def asking(self, job: Job, sign: int) -> None:
        self.gauges.now["serving"] += sign * ask_gpus(job, self.kinds)
        self.gauges.now["idle"] -= sign * ask_gpus(job, self.kinds)

    def set_engine(self, engine: str, state: str | None) -> None:
        gpus = self.kinds[self.kind_of[engine]].demand.gpus
        gauge = {"starting": "starting", "up": "idle", "stopping": "starting"}
        if engine in self.state:
            self.gauges.now[gauge[self.state.pop(engine)]] -= gpus
        if state is not None:
            self.gauges.now[gauge[state]] += gpus
            self.state[engine] = state

    # What happens --------------------------------------------------------------------------------

    def trained(self, name: str) -> None:
        self.leave(name)
        self.left_s[name] = 0.0
        self.tell("trained", name)

    def failed(self, name: str) -> None:
        """Half of what was done is lost."""
        self.left_s[name] *= 1 - self.fails_at.pop(name) / 2
        self.again(name)

    def answered(self, name: str) -> None:
        self.leave(name)
        self.tell("ended", name)

    def up(self, engine: str) -> None:
        self.set_engine(engine, "up")
        self.tell("up", engine)

    def down(self, engine: str) -> None:
        self.valid.pop(engine, None)
        self.set_engine(engine, None)
        self.tell("down", engine)

    def lost(self, _: str) -> None:
        """A node goes: engines and trainings on it, and what those engines were asked."""
        num_nodes = self.gpus // 8 - self.num_lost
        self.after(self.losses.expovariate(self.gpus / 8 / NODE_LOST_S), "lost", "")
        if num_nodes == 1:
            return
        names = self.schedule.room.on(self.losses.randrange(num_nodes))
        for name in names:
            if name in self.cells:
                self.again(name)
            else:
                self.down(name)
        gone = {name for name in names if name not in self.cells}
        for name in [name for name, engines in self.asked.items() if gone.intersection(engines)]:
            self.again(name)
        self.num_lost += 1
        self.gauges.now["away"] += 8
        self.tell("set_totals", self.totals())
        self.after(NODE_AWAY_S, "back", "")

    def back(self, _: str) -> None:
        self.num_lost -= 1
        self.gauges.now["away"] -= 8
        self.tell("set_totals", self.totals())

    def leave(self, name: str) -> None:
        """A job's training or asking is over, one way or another."""
        self.valid.pop(name, None)
        job = self.cells[name].job
        if self.asked.pop(name, None) is not None:
            self.asking(job, -1)
        else:
            self.gauges.now["training"] -= train_gpus(job)

    def again(self, name: str) -> None:
        """A training or an asking was lost: what is left of it is added again."""
        self.leave(name)
        self.tell("ended", name)
        cell = self.cells[name]
        left = self.left_s[name] / cell.train_s
        train = cell.job.train if left else None
        self.tell("add", [replace(cell.job, train=train, train_s=cell.job.train_s * left)])


def bound_s(cells: Sequence[Cell], gpus: int, kinds: dict[str, EngineKind]) -> float:
    """Seconds that no schedule goes below: all needed work over all GPUs, or the longest cell."""
    work = sum(
        cell.train_s * train_gpus(cell.job) + cell.ask_s * ask_gpus(cell.job, kinds)
        for cell in cells
    )
    return max(work / gpus, max(cell.train_s + cell.ask_s for cell in cells))


def two_passes(cells: Sequence[Cell], gpus: int) -> list[Simulation]:
    kinds = kinds_for(gpus, static=True)
    train_only = [Cell(replace(cell.job, needs=()), cell.train_s, 0.0) for cell in cells]
    ask_only = [Cell(replace(cell.job, train=None), cell.train_s, cell.ask_s) for cell in cells]
    first = Simulation(train_only, gpus, kinds, seed=SEED + 1)
    second = Simulation(ask_only, gpus, kinds, seed=SEED + 2)
    second.left_s = dict.fromkeys(second.left_s, 0.0)
    return [first, second]


HEAD = (
    "GPUs   cells  layout      makespan     bound  ratio   starts   work  again   idle  start"
    "   free   away   scheduler   an event"
)


def row(name: str, cells: Sequence[Cell], gpus: int, simulations: Sequence[Simulation]) -> str:
    seconds = sum(simulation.run() for simulation in simulations)
    bound = bound_s(cells, gpus, simulations[0].kinds)
    spent: Counter[str] = Counter()
    for simulation in simulations:
        spent.update(simulation.gauges.spent)
    needed = sum(
        cell.train_s * train_gpus(cell.job) + cell.ask_s * ask_gpus(cell.job, simulations[0].kinds)
        for cell in cells
    )
    shares = {
        "work": needed,
        "again": spent["training"] + spent["serving"] - needed,
        "idle": spent["idle"],
        "starting": spent["starting"],
        "free": gpus * seconds - sum(spent.values()),
        "away": spent["away"],
    }
    text = " ".join(f"{share / (gpus * seconds):6.1%}" for share in shares.values())
    scheduler_s = sum(simulation.scheduler_s for simulation in simulations)
    events = sum(simulation.num_events for simulation in simulations)
    starts = sum(simulation.num_starts for simulation in simulations)
    return (
        f"{gpus:4} {len(cells):7,}  {name:10} {seconds / 3600:7.2f} h {bound / 3600:7.2f} h "
        f"{seconds / bound:6.3f} {starts:8,} {text} {scheduler_s:9.2f} s {scheduler_s / events * 1e6:7.0f} us"
    )


def main() -> None:
    """Print a line for each size and layout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="only the two smallest")
    quick = parser.parse_args().quick
    print(HEAD)
    for gpus, num in SIZES[:2] if quick else SIZES:
        cells = draw_cells(num, random.Random(SEED))
        kinds = kinds_for(gpus, static=False)
        simulation = Simulation(cells, gpus, kinds, seed=SEED, keep_history=(gpus, num) == SIZES[0])
        print(row("as decided", cells, gpus, [simulation]), flush=True)
        print(row("two passes", cells, gpus, two_passes(cells, gpus)), flush=True)


if __name__ == "__main__":
    main()
