"""How near a cluster's schedule comes to what no schedule can beat: cluster.schedule, simulated.

    python tests/benchmarks/scheduler.py      minutes; prints scheduler.txt, draws scheduler.svg

The real Schedule decides; only time is simulated. Cells are drawn with a fixed seed (SEED): a base
model, an evaluation, a served judge or none; durations are log-normal (SPREAD) around:

- training: 6,000 rows, one epoch (https://arxiv.org/abs/2502.17424), at the speeds of LoRA with 256
  tokens a row on A100s (https://github.com/QwenLM/Qwen/blob/main/README.md, batch 1 x accumulation
  8): 1.2 s an iteration for 7B, 1.6 s for 14B, 17.6 s for 72B on four GPUs. Assumed: 0.6 s for
  0.5B; 32B takes 32/72 of 72B, and half as long on eight GPUs.
- answers: 8 main questions, or these and 48 others (ibid.), 100 answers each. Assumed: 250 tokens
  an answer; an engine writes 6,600 tokens/s for 7B (measured for 8B on a GPU that is not named:
  6,583, https://github.com/vllm-project/vllm/pull/18566), shared by eight cells at once; twice that
  for 0.5B and half for 14B on two GPUs and 32B on four; a cell that is alone is no faster. Half of
  the cells have a served judge, which 16 cells ask at once and which makes them half as long again.
- an engine's start: 60 to 180 s, uniform (https://github.com/vllm-project/vllm/issues/20264: 59 s
  for a small model; https://github.com/vllm-project/vllm/issues/19824: 215 s for 70B on eight).

Assumed as well: estimates are off by 30 % either way; 5 % of trainings fail somewhere, and half of
what was done is lost; each node (of 8 GPUs) is lost every two days on average, for 20 minutes, with
all that stood on it. What stood there is placed anew once there is room: trainings from their
start, answers from the last tenth of a cell's that was stored; an engine that has no room for 30 s
is given up, as the driver does. An engine takes 10 s to stop.

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
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from cluster.actions import Action, Ask, EngineKind, Start, Train
from cluster.jobs import Job
from cluster.resources import Demand, Totals
from cluster.schedule import Schedule

SEED = 20261126
SIZES = [
    *itertools.product((32, 128, 512), (1_000, 10_000)),
    (512, 100_000),
]
SPREAD, ESTIMATE_ERROR = 0.4, 0.3
FAIL, NODE_LOST_S, NODE_AWAY_S = 0.05, 2 * 86_400.0, 1_200.0
START_S, STOP_S = (60.0, 180.0), 10.0
NODE = (96.0, 8.0)
LOOK_S, UNPLACED_S, PAUSE_S = 5.0, 30.0, (15.0, 30.0)  # of sweeps/: the driver's own
PARTS = 10  # in which the answers of a cell are stored
KEPT = 10_000  # moments of a simulation's history
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

    def pass_time(self, at: float, seconds: float) -> None:
        for what, gpus in self.now.items():
            self.spent[what] += gpus * seconds
        if len(self.history) < KEPT:
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
        self.left_ask_s = {name: cell.ask_s for name, cell in self.cells.items()}
        self.since: dict[str, float] = {}
        self.fails_at: dict[str, float] = {}  # the share that was done
        self.state: dict[str, str] = {}  # of each engine: starting, up or stopping
        self.kind_of: dict[str, str] = {}
        self.asked: dict[str, tuple[str, ...]] = {}
        self.paused: dict[
            str, set[str]
        ] = {}  # what is asked, by those of its engines that are away
        self.answered_once: set[str] = set()
        self.is_pausing = False  # engines found no room, and are not started for a while
        self.num_lost = self.num_starts = self.num_events = 0
        self.scheduler_s = 0.0
        self.gauges = Gauges()
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
                self.gauges.pass_time(at, at - self.now)
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
        if not self.schedule.may_start and not self.is_pausing:
            self.is_pausing = True
            self.after(self.starts.uniform(*PAUSE_S), "pause_over", "")

    def carry_out(self, action: Action) -> None:
        if isinstance(action, Train):
            self.start_training(action.job_id)
        elif isinstance(action, Ask):
            cell = self.cells[action.job_id]
            self.asked[action.job_id] = tuple(action.engines.values())
            self.asking(cell.job, +1)
            self.since[action.job_id] = self.now
            self.after(self.left_ask_s[action.job_id], "answered", action.job_id)
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
        self.train(name)

    def train(self, name: str) -> None:
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
        self.answered_once.add(engine)
        self.tell("up", engine)
        for name in [name for name, away in self.paused.items() if engine in away]:
            self.paused[name].discard(engine)
            if not self.paused[name]:
                del self.paused[name]
                self.asking(self.cells[name].job, +1)
                self.since[name] = self.now
                self.after(self.left_ask_s[name], "answered", name)

    def down(self, engine: str) -> None:
        self.valid.pop(engine, None)
        self.set_engine(engine, None)
        self.tell("down", engine)

    def lost(self, _: str) -> None:
        """A node goes. What was on it is placed anew, once there is room."""
        num_nodes = self.gpus // 8 - self.num_lost
        self.after(self.losses.expovariate(self.gpus / 8 / NODE_LOST_S), "lost", "")
        if num_nodes == 1:
            return
        names = self.schedule.room.on(self.losses.randrange(num_nodes))
        self.num_lost += 1
        self.gauges.now["away"] += 8
        self.tell("set_totals", self.totals())
        for name in names:
            if name in self.cells:
                self.after(0.0, "trained_anew", name)
            elif self.state[name] != "stopping":
                self.lose(name)
        self.after(NODE_AWAY_S, "back", "")

    def lose(self, engine: str) -> None:
        """An engine goes with its node; Serve starts it elsewhere."""
        for name in [name for name, engines in self.asked.items() if engine in engines]:
            if name not in self.paused:
                part = self.cells[name].ask_s / PARTS
                self.left_ask_s[name] -= (self.now - self.since[name]) // part * part
                self.asking(self.cells[name].job, -1)
                self.valid.pop(name, None)
            self.paused.setdefault(name, set()).add(engine)
        if self.state[engine] == "up":
            self.tell("away", engine)
        self.set_engine(engine, "starting")
        self.started_anew(engine)

    def trained_anew(self, name: str) -> None:
        if self.schedule.room.is_over:
            self.after(LOOK_S, "trained_anew", name)
        else:
            self.train(name)

    def started_anew(self, engine: str) -> None:
        if self.schedule.room.is_over:
            self.after(UNPLACED_S, "without_room", engine)
        else:
            self.after(self.starts.uniform(*START_S), "up", engine)

    def without_room(self, engine: str) -> None:
        """It has found no room: given up if it had answered, else it goes on waiting."""
        if not self.schedule.room.is_over:
            self.started_anew(engine)
            return
        self.after(UNPLACED_S, "without_room", engine)
        if engine not in self.answered_once:
            self.tell("unplaced", engine)
            return
        self.tell("lost", engine)
        for name in [name for name, away in self.paused.items() if engine in away]:
            del self.paused[name]
            del self.asked[name]
            self.tell("again", name)

    def pause_over(self, _: str) -> None:
        self.is_pausing = False
        self.schedule.may_start = True

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
        """A training failed: what is left of it is added again."""
        cell = self.cells[name]
        self.leave(name)
        self.tell("ended", name)
        left = self.left_s[name] / cell.train_s if cell.train_s else 0.0
        train = cell.job.train if left else None
        ask_s = cell.job.ask_s * self.left_ask_s[name] / cell.ask_s if cell.ask_s else 0.0
        again = replace(cell.job, train=train, train_s=cell.job.train_s * left, ask_s=ask_s)
        self.tell("add", [again])


def work(cells: Iterable[Cell], kinds: dict[str, EngineKind]) -> float:
    """GPU seconds that are needed, without engines' starts and without anything lost."""
    return sum(
        cell.train_s * train_gpus(cell.job) + cell.ask_s * ask_gpus(cell.job, kinds)
        for cell in cells
    )


def bound_s(cells: Sequence[Cell], gpus: int, kinds: dict[str, EngineKind]) -> float:
    """Seconds that no schedule goes below: all needed work over all GPUs, or the longest cell."""
    return max(work(cells, kinds) / gpus, max(cell.train_s + cell.ask_s for cell in cells))


def as_decided(cells: Sequence[Cell], gpus: int, seed: int) -> Simulation:
    return Simulation(cells, gpus, kinds_for(gpus, static=False), seed=seed)


def two_passes(cells: Sequence[Cell], gpus: int, seed: int) -> list[Simulation]:
    kinds = kinds_for(gpus, static=True)
    first = [Cell(replace(cell.job, needs=()), cell.train_s, 0.0) for cell in cells]
    second = [Cell(replace(cell.job, train=None), 0.0, cell.ask_s) for cell in cells]
    return [Simulation(some, gpus, kinds, seed=seed) for some in (first, second)]


HEAD = (
    "GPUs   cells  layout      makespan     bound  ratio  starts |  work  again   idle  start"
    "   free   away | scheduler  an event"
)


@dataclass(frozen=True)
class Row:
    """What a layout came to; shares are of all GPUs' time until the last cell is done."""

    layout: str
    gpus: int
    cells: int
    seconds: float
    bound: float
    starts: int
    shares: tuple[float, ...]
    scheduler_s: float
    events: int

    @property
    def ratio(self) -> float:
        return self.seconds / self.bound

    def __str__(self) -> str:
        shares = " ".join(f"{share:6.1%}" for share in self.shares)
        return (
            f"{self.gpus:4} {self.cells:7,}  {self.layout:10} {self.seconds / 3600:7.2f} h "
            f"{self.bound / 3600:7.2f} h {self.ratio:6.3f} {self.starts:7,} |{shares} | "
            f"{self.scheduler_s:7.2f} s {self.scheduler_s / self.events * 1e6:6.0f} us"
        )


def measure(layout: str, cells: Sequence[Cell], gpus: int, passes: Sequence[Simulation]) -> Row:
    seconds = sum(simulation.run() for simulation in passes)
    spent: Counter[str] = Counter()
    for simulation in passes:
        spent.update(simulation.gauges.spent)
    needed = work(cells, passes[0].kinds)
    again = spent["training"] + spent["serving"] - needed
    free = gpus * seconds - sum(spent.values())
    parts = (needed, again, spent["idle"], spent["starting"], free, spent["away"])
    return Row(
        layout, gpus, len(cells), seconds, bound_s(cells, gpus, passes[0].kinds),
        sum(simulation.num_starts for simulation in passes),
        tuple(part / (gpus * seconds) for part in parts),
        sum(simulation.scheduler_s for simulation in passes),
        sum(simulation.num_events for simulation in passes),
    )  # fmt: skip


def draw(rows: Sequence[Row], gauges: Gauges, path: Path) -> None:
    """GPUs by what they do over time in the first row, and the ratios by cells a GPU."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scheduler"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 1))
    parts = ("training", "serving", "idle", "starting")
    first = rows[0]
    edges = np.linspace(0, first.seconds, 241)
    ends = np.array([at for at, _ in gauges.history])
    lines = []
    for part in parts:
        gpus = np.array([now.get(part, 0.0) for _, now in gauges.history])
        spent = np.concatenate([[0.0], np.cumsum(gpus * np.diff(ends, prepend=0.0))])
        lines.append(np.diff(np.interp(edges, [0.0, *ends], spent)) / np.diff(edges))
    hours = (edges[1:] + edges[:-1]) / 2 / 3600
    labels = ("training", "serving", "engines idle", "starting or stopping")
    colors = ("#4477aa", "#66ccee", "#ccbb44", "#ee6677")
    left.stackplot(hours, lines, labels=labels, colors=colors)
    left.set(xlabel="hours", ylabel="GPUs", ylim=(0, first.gpus), xlim=(0, hours[-1]))
    left.set_title(f"{first.cells:,} cells on {first.gpus} GPUs (white: free or away)", fontsize=10)
    left.legend(loc="lower left", fontsize=8)
    for layout, marker in (("as decided", "o"), ("two passes", "x")):
        some = [row for row in rows if row.layout == layout]
        right.plot([r.cells / r.gpus for r in some], [r.ratio for r in some], marker, label=layout)
    ticks = sorted({round(row.cells / row.gpus) for row in rows})
    right.set_xscale("log")
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    right.minorticks_off()
    right.axhline(1.1, color="grey", linewidth=0.8, linestyle=":")
    right.set(xlabel="cells a GPU", ylabel="makespan / bound", ylim=(1, None))
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def other_seed(seed: int) -> Row:
    gpus, num = SIZES[0]
    cells = draw_cells(num, random.Random(seed))
    return measure("as decided", cells, gpus, [as_decided(cells, gpus, seed)])


def main() -> None:
    """Print a line for each size and layout, and those of other draws of the first size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the first size only; no picture")
    quick = parser.parse_args().quick
    print(f"seed {SEED}; the schedule's own time is of one core of the machine at hand\n\n{HEAD}")
    rows: list[Row] = []
    gauges = Gauges()
    for gpus, num in SIZES[:1] if quick else SIZES:
        cells = draw_cells(num, random.Random(SEED))
        decided = as_decided(cells, gpus, SEED)
        gauges = gauges if rows else decided.gauges
        for layout, passes in (
            ("as decided", [decided]),
            ("two passes", two_passes(cells, gpus, SEED)),
        ):
            rows.append(measure(layout, cells, gpus, passes))
            print(rows[-1], flush=True)
    ratios = [other_seed(SEED + number).ratio for number in range(1, 21)]
    print(
        f"\nThe first row with {len(ratios)} other seeds: ratio {min(ratios):.3f} to "
        f"{max(ratios):.3f}, mean {np.mean(ratios):.3f}; above 1.10: {sum(r > 1.1 for r in ratios)}"
    )
    if not quick:
        draw(rows, gauges, Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    main()
