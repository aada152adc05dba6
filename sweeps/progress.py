"""What a person sees while a sweep runs: counts, rates, an estimate; live, or as plain lines.

Knows nothing of how the stages are carried out.
"""

import threading
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from sweeps.console import printable

LABELS = {"train": "trained", "generate": "answered", "judge": "judged"}


class SweepProgress:
    """Cells done by stage. In a terminal a live table, else a plain line for each event."""

    def __init__(self, out: TextIO, to_do: Mapping[str, Collection[str]]) -> None:
        """Show on `out`; `to_do` are the ids of the cells that each stage has to do."""
        self._to_do = {stage: frozenset(cells) for stage, cells in to_do.items() if cells}
        self._through: dict[str, set[str]] = {stage: set() for stage in self._to_do}
        self._since: dict[str, float] = {}
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._console = Console(file=out, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                console=self._console,
                refresh_per_second=4,
            )
            for stage, cells in self._to_do.items():
                self._tasks[stage] = self._live.add_task(LABELS[stage], total=len(cells), rate="")

    def __enter__(self) -> "SweepProgress":
        """Begin to show."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line of news."""
        self._console.print(f"{self._clock()}  {text}", markup=False)

    def begin(self, stage: str) -> None:
        """Say that the first cell of `stage` begins now: its rate is counted from here."""
        self._since.setdefault(stage, time.monotonic())

    def done(self, stage: str, cell_id: str) -> None:
        """Count one cell that was to do as through `stage`, once however often it is told."""
        with self._lock:
            if cell_id not in self._to_do.get(stage, ()) or cell_id in self._through[stage]:
                return
            self._through[stage].add(cell_id)
            rate = self._rate(stage)
            if self._live:
                self._live.update(self._tasks[stage], advance=1, rate=rate)
            else:
                n, of = len(self._through[stage]), len(self._to_do[stage])
                self.say(f"{LABELS[stage]:>8} {n}/{of}  {cell_id}  {rate}")

    def failed(self, cell_id: str, stage: str, message: str) -> None:
        """Say that a cell failed, and why."""
        # The text may come from a judge or a model: none of its escape sequences reach a terminal.
        first = printable(message.strip().split("\n")[0])
        self.say(f"FAILED in {stage}: {cell_id}: {first}")

    def _rate(self, stage: str) -> str:
        passed = time.monotonic() - self._since.get(stage, self._started)
        done = len(self._through[stage])
        left = len(self._to_do[stage]) - done
        each = passed / max(done, 1)
        return f"{each:.1f} s a cell" + (f", about {duration(each * left)} left" if left else "")

    def _clock(self) -> str:
        return time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - self._started))


class Counted:
    """Like things done one by one: a line every few seconds, with about how long the rest takes."""

    def __init__(self, out: TextIO, done: str, total: int, *, every_s: float = 3.0) -> None:
        """Say on `out` how many of `total` are `done` (a word such as checked)."""
        self._out, self._done, self._total, self._every_s = out, done, total, every_s
        self._count = 0
        self._started = self._said = time.monotonic()

    def step(self) -> None:
        """Count one."""
        self._count += 1
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        left = (now - self._started) / self._count * (self._total - self._count)
        line = f"{self._done} {self._count}/{self._total}, about {duration(left)} left"
        print(line, file=self._out, flush=True)


def duration(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
