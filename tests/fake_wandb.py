"""W&B as sweeps.publisher uses it, kept in memory: for faults and speed.

What the real SDK does is tried in tests/test_wandb_online.py. Knows nothing of what a test does.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeps.tracked_artifacts import Artifact
from sweeps.wandb_runs import NONE, About, Refused, Unreachable


@dataclass
class Kept:
    """What W&B has of one run."""

    about: About
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    media: list[str] = field(default_factory=list)
    uploads: list[Artifact] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    is_open: bool = False


class FakeRun:
    """An open run: what it is told is kept at once, but nothing where W&B is out of reach."""

    def __init__(self, runs: "FakeRuns", kept: Kept) -> None:
        self._runs, self._kept = runs, kept
        self.summary = dict(kept.summary) if runs.online else {}
        self.path = kept.about.id

    def define(self, group: str, step: str) -> None:
        """The order in which values are drawn is W&B's own."""

    def log(
        self, row: dict[str, Any], *, tables: Mapping[str, list[dict[str, Any]]] = NONE,
        pictures: Mapping[str, Path] = NONE, pages: Mapping[str, Path] = NONE,
    ) -> None:  # fmt: skip
        if not self._runs.out:
            self._kept.rows.append(row)
            self._kept.summary |= row
            self._kept.tables |= tables
            self._kept.media += [*pictures, *pages]

    def tag(self, tags: Sequence[str]) -> None:
        self._runs.check()
        self._kept.tags.append(tuple(tags))

    def summarise(self, values: dict[str, Any]) -> None:
        if not self._runs.out:
            self._kept.summary |= values

    def upload(self, content: Artifact) -> str | None:
        self._runs.check()
        files = {
            path: data if isinstance(data, bytes) else data.read_bytes()
            for path, data in content.files.items()
        }
        self._kept.uploads.append(replace(content, files=files))  # as they are now
        return f"{content.name}:v{len(self._kept.uploads)}" if self._runs.online else None

    def use(self, version: str) -> None:
        self._kept.used.append(version)

    def alert(self, title: str, text: str) -> None:
        self._kept.alerts.append(title)

    def close(self, exit_code: int, *, preempted: bool = False) -> None:
        self._runs.check()
        self._kept.is_open = False
        self._kept.ends.append("preempted" if preempted else "failed" if exit_code else "finished")


class FakeRuns:
    """W&B. `out`: it does not answer. `refused` are ids that it does not take.

    Without `shows` it takes what it is told, and does not show it.
    """

    def __init__(self, *, online: bool = True) -> None:
        self.online, self.out, self.shows = online, False, True
        self.account = "e"
        self.refused: set[str] = set()
        self.unreachable: set[str] = set()
        self.no_report = False
        self.kept: dict[str, Kept] = {}
        self.calls: dict[str, int] = defaultdict(int)
        self.drops = 0

    def check(self) -> None:
        if self.out:
            raise Unreachable("no answer")

    def entity(self) -> str:
        self.check()
        return self.account if self.online else ""

    def open(self, about: About) -> FakeRun:
        self.check()
        if about.id in self.unreachable or (self.no_report and about.job_type == "report"):
            raise Unreachable("not in time")
        self.calls["open"] += 1
        if about.id in self.refused:
            raise Refused("it was previously created and deleted")
        kept = self.kept.setdefault(about.id, Kept(about))
        kept.about, kept.is_open = about, True
        return FakeRun(self, kept)

    def has(self, path: str, key: str, value: Any) -> bool:
        self.check()
        return self.shows and self.kept[path].summary.get(key) == value

    def drop(self) -> None:
        self.drops += 1
        for kept in self.kept.values():
            kept.is_open = False

    def cells(self) -> list[Kept]:
        """Return the runs of cells."""
        return [kept for kept in self.kept.values() if kept.about.job_type == "cell"]

    def report(self) -> Kept:
        """Return the sweep's own run."""
        (kept,) = (kept for kept in self.kept.values() if kept.about.job_type == "report")
        return kept
