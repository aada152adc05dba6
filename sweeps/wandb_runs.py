"""Runs of Weights & Biases: opened, told, closed, and asked for what the server has of them.

The one module that uses W&B's SDK for runs, in a process of its own (see sweeps.publisher). Knows
nothing of cells, of what is told, or of when.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from sweeps.settings import TrackingConfig
from sweeps.tracked_artifacts import Artifact
from sweeps.tracked_cell import Row

# How long a call may wait for W&B, in seconds.
INIT_TIMEOUT_S = 15.0
FINISH_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 30.0  # and a second for every MiB
ASK_TIMEOUT_S = 15
ASK_AGAIN_S = (1, 2, 4, 8)  # what was taken may be shown a little later
# W&B would try again for minutes, and hold up all other runs; sweeps.publisher tries again itself.
PATIENCE: dict[str, float] = {
    f"x_{way}_retry_{what}": value
    for way in ("graphql", "file_stream", "file_transfer")
    for what, value in (("max", 4), ("wait_min_seconds", 0.5), ("wait_max_seconds", 4))
} | {"x_graphql_timeout_seconds": 15, "x_file_stream_timeout_seconds": 15}

# Step metrics: what the values of a group are drawn against.
STEPS = {"train": "train/step", "worker": "train/step", "eval": "eval/step", "judge": "judge/step"}
# Answers that another try would get again: no such key, no right, or a server that is too old.
REFUSED = re.compile(r"HTTP 40[0134]\b|permission denied|Cannot query field")
# The SDK calls it a failed login, too, when nobody answered it: its own process or the server.
UNANSWERED = re.compile(
    r"did not respond in time|is not running|An error occurred while verifying"
    r"|HTTP (429|5\d\d)\b|timed? ?out|deadline exceeded|connection refused|no such host",
    re.IGNORECASE,
)
NONE: Mapping[str, Any] = MappingProxyType({})


class Refused(Exception):
    """W&B answers, and does not take it: its words say why. Another try would end the same."""


class Unreachable(Exception):
    """W&B does not answer, or not in time."""


@dataclass(frozen=True)
class About:
    """What a run is opened with."""

    id: str
    name: str
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]


class WandbRun:
    """An open run. `summary` is what the server had of it when it was opened.

    Every method may raise Refused or Unreachable.
    """

    def __init__(self, run: Any, sdk: Any, *, online: bool) -> None:
        self._run, self._sdk, self._online = run, sdk, online
        self.summary: dict[str, Any] = dict(run.summary) if online else {}
        self.path = f"{run.entity}/{run.project}/{run.id}" if online else ""

    def define(self, group: str, step: str) -> None:
        """Draw all values whose names begin with `group`/ against the value `step`."""
        with _told():
            self._run.define_metric(step, hidden=True)
            self._run.define_metric(f"{group}/*", step_metric=step)

    def log(
        self,
        row: Row,
        *,
        tables: Mapping[str, list[Row]] = NONE,
        pictures: Mapping[str, Path] = NONE,
        pages: Mapping[str, Path] = NONE,
    ) -> None:
        """Add one row to the history: it arrives whole. `pictures` are PNG, `pages` HTML files."""
        with _told():
            found = {name: self._table(rows) for name, rows in tables.items()}
            found |= {name: self._sdk.Image(str(path)) for name, path in pictures.items()}
            for name, path in pages.items():
                found[name] = self._sdk.Html(path.read_text(), inject=False)
            self._run.log(row | found)

    def _table(self, rows: list[Row]) -> Any:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return self._sdk.Table(
            columns=columns, data=[[r.get(key) for key in columns] for r in rows]
        )

    def summarise(self, values: Row) -> None:
        """Set values that a run is listed with."""
        with _told():
            self._run.summary.update(values)

    def tag(self, tags: Sequence[str]) -> None:
        """Replace the words that the run is found by."""
        with _told():
            self._run.tags = tuple(tags)

    def upload(self, content: Artifact) -> str | None:
        """Add an artifact; return the name of its version. Offline it has none yet: None."""
        with _told():
            logged = self._run.log_artifact(self._made(content), aliases=list(content.aliases))
            if not self._online:
                return None
            logged.wait(timeout=int(UPLOAD_TIMEOUT_S + (logged.size or 0) / 2**20))
            return f"{self._run.entity}/{self._run.project}/{logged.name}"

    def _made(self, content: Artifact) -> Any:
        metadata = {key: value for key, value in content.metadata.items() if value is not None}
        made = self._sdk.Artifact(content.name, type=content.type, metadata=metadata)
        for path, data in sorted(content.files.items()):
            if isinstance(data, bytes):
                with made.new_file(path, mode="wb") as file:
                    file.write(data)
            else:
                made.add_file(str(data), name=path, skip_cache=True)
        for path, (address, digest) in sorted(content.references.items()):
            # add_reference would want the bucket's own package here, and ask the bucket.
            entry = self._sdk.sdk.artifacts.artifact_manifest_entry.ArtifactManifestEntry
            made.manifest.add_entry(entry(path=path, digest=digest, ref=address, size=0))
        return made

    def use(self, version: str) -> None:
        """Say that the run is made from an artifact's version, by its name."""
        with _told():
            self._run.use_artifact(version)

    def alert(self, title: str, text: str) -> None:
        """Have W&B send the user a message."""
        with _told():
            self._run.alert(title=title, text=text)

    def close(self, exit_code: int, *, preempted: bool = False) -> None:
        """End the run; `preempted` is one that will be gone on with."""
        with _told():
            if preempted:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)


class WandbRuns:
    """Opens runs; one process has one of these. Offline they are written below `folder`/wandb."""

    def __init__(self, config: TrackingConfig, sweep: str, folder: Path, *, online: bool) -> None:
        """Open and write nothing yet. Raises ImportError where the SDK is not installed."""
        import wandb

        self._config, self._sweep, self._folder, self.online = config, sweep, folder, online
        # What the SDK keeps for itself is ours for as long as this process, and its place, which
        # is named in what it sends, says nothing. The store has all that is in it. Offline, what
        # artifacts are made of stays beside the runs.
        self._own = tempfile.TemporaryDirectory(
            prefix="emsweep-wandb-", dir="/tmp", ignore_cleanup_errors=True
        )
        staged = self._own.name if online else str(folder / "wandb" / "files")
        os.environ |= {"WANDB_DATA_DIR": staged, "WANDB_CACHE_DIR": self._own.name}
        self._sdk: Any = wandb
        self._api: Any = None

    def entity(self) -> str:
        """Return whose project runs are in; offline nobody's. Raises Refused or Unreachable."""
        if not self.online:
            return ""
        with _told():
            return self._config.entity or str(self._asked().default_entity)

    def _asked(self) -> Any:
        if self._api is None:
            self._api = self._sdk.Api(timeout=ASK_TIMEOUT_S)
        return self._api

    def open(self, about: About) -> WandbRun:
        """Begin or go on with a run. Raises Refused or Unreachable."""
        if not self.online:
            self._remove_offline(about.id)
        with _told():
            run = self._sdk.init(
                id=about.id,
                name=about.name,
                group=self._sweep,
                job_type=about.job_type,
                project=self._config.project,
                entity=self._config.entity,
                tags=list(about.tags),
                config=dict(about.config),
                dir=self._own.name if self.online else str(self._folder),
                mode="online" if self.online else "offline",
                resume="allow" if self.online else None,
                reinit="create_new",
                settings=self._sdk.Settings(
                    console="off", silent=True, disable_git=True, disable_code=True,
                    save_code=False, disable_job_creation=True, program="",
                    x_disable_machine_info=True, x_disable_meta=True, x_disable_stats=True,
                    x_save_requirements=False, init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S, finish_timeout_raises=True, **PATIENCE,
                ),
            )  # fmt: skip
            return WandbRun(run, self._sdk, online=self.online)

    def has(self, path: str, key: str, value: Any) -> bool:
        """Whether the server shows `value` in the summary of the run at `path`, soon or now.

        It is asked, because the SDK says "finished" of what it gave up, too. Raises Refused or
        Unreachable.
        """
        for wait_s in (0, *ASK_AGAIN_S):
            time.sleep(wait_s)
            with _told():
                self._asked().flush()
                if self._asked().run(path).summary.get(key) == value:
                    return True
        return False

    def drop(self) -> None:
        """End W&B's own process, which may hold runs that it cannot send; open starts another.

        It is killed: asked to end, it would tell W&B that all open runs are finished. Where it
        ended badly, the SDK would end our process.
        """
        self._api = None
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if "wandb-core" in child.name():
                    child.kill()
        with contextlib.suppress(Exception, SystemExit):
            self._sdk.teardown()

    def close(self) -> None:
        """End W&B's own process, and remove what it kept."""
        self.drop()
        self._own.cleanup()

    def _remove_offline(self, run_id: str) -> None:
        """Remove what was written offline of a run before: it is written anew, whole."""
        for old in (self._folder / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what W&B raises, of many kinds, into Refused or Unreachable."""
    try:
        yield
    except (Refused, Unreachable):
        raise
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if UNANSWERED.search(text):
            raise Unreachable(text) from error
        if "UsageError" in kinds or "AuthenticationError" in kinds:
            raise Refused(text) from error
        answered = "Error" in kinds and "CommError" not in kinds and "input:" in text
        if answered or REFUSED.search(text):
            raise Refused(text) from error
        raise Unreachable(text) from error
