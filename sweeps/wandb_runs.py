"""Runs of Weights & Biases: opened, told, closed, and asked for what the server has of them.

The one module that uses W&B's SDK for runs, in a process of its own (see sweeps.publisher). Knows
nothing of cells, of what is told, or of when.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sweeps.settings import TrackingConfig
from sweeps.tracked_cell import Artifact, Row

# How long a call may wait for W&B, in seconds.
INIT_TIMEOUT_S = 15.0
FINISH_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 30.0  # and a second for every MiB
ASK_TIMEOUT_S = 15
# W&B would try again for minutes, and hold up all other runs; sweeps.publisher tries again itself.
PATIENCE: dict[str, float] = {
    f"x_{way}_retry_{what}": value
    for way in ("graphql", "file_stream", "file_transfer")
    for what, value in (("max", 4), ("wait_min_seconds", 0.5), ("wait_max_seconds", 4))
} | {"x_graphql_timeout_seconds": 15, "x_file_stream_timeout_seconds": 15}

# Step metrics: what the values of a group are drawn against.
STEPS = {"train": "train/step", "worker": "train/step", "eval": "eval/step", "judge": "judge/step"}
# Answers that another try would get again: no such key, no right, or a server that is too old.
REFUSED = (
    "HTTP 400",
    "HTTP 401",
    "HTTP 403",
    "HTTP 404",
    "permission denied",
    "Cannot query field",
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
    """An open run. `summary` is what the server had of it when it was opened."""

    def __init__(self, run: Any, about: About, sdk: Any, *, online: bool) -> None:
        self._run, self._sdk, self._online = run, sdk, online
        self.about = about
        self.summary: dict[str, Any] = dict(run.summary) if online else {}
        self.path = f"{run.entity}/{run.project}/{about.id}" if online else ""

    def define(self, group: str, step: str) -> None:
        """Draw all values whose names begin with `group`/ against the value `step`."""
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
        self._run.summary.update(values)

    def upload(self, content: Artifact) -> str | None:
        """Add an artifact; return the name of its version. Offline it has none yet: None."""
        made = self._sdk.Artifact(
            content.name, type=content.type, metadata=_plain(content.metadata)
        )
        for path, data in sorted(content.files.items()):
            if isinstance(data, bytes):
                with made.new_file(path, mode="wb") as file:
                    file.write(data)
            else:
                made.add_file(str(data), name=path)
        for path, (address, digest) in sorted(content.references.items()):
            # add_reference would want the bucket's own package here, and ask the bucket.
            entry = self._sdk.sdk.artifacts.artifact_manifest_entry.ArtifactManifestEntry
            made.manifest.add_entry(entry(path=path, digest=digest, ref=address, size=0))
        logged = self._run.log_artifact(made, aliases=list(content.aliases))
        if not self._online:
            return None
        with _told():
            logged.wait(timeout=int(UPLOAD_TIMEOUT_S + (made.size or 0) / 2**20))
            return f"{self._run.entity}/{self._run.project}/{logged.name}"

    def use(self, version: str) -> None:
        """Say that the run is made from an artifact's version, by its name."""
        with _told():
            self._run.use_artifact(version)

    def alert(self, title: str, text: str) -> None:
        """Have W&B send the user a message."""
        with _told():
            self._run.alert(title=title, text=text)

    def close(self, exit_code: int, *, preempted: bool = False) -> None:
        """End the run. Raises Unreachable where W&B has not taken all of it in time."""
        with _told():
            if preempted:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)


class WandbRuns:
    """Opens runs below `folder`/wandb; one process has one of these."""

    def __init__(
        self, config: TrackingConfig, sweep: str, folder: Path, *, online: bool, sdk: Any = None,
        init_timeout_s: float = INIT_TIMEOUT_S, finish_timeout_s: float = FINISH_TIMEOUT_S,
    ) -> None:  # fmt: skip
        """`sdk` is wandb. Nothing is opened or written yet."""
        self._config, self._sweep, self._folder, self.online = config, sweep, folder, online
        self._init_timeout_s, self._finish_timeout_s = init_timeout_s, finish_timeout_s
        # What an artifact is staged in is named in its manifest: no folder of the user's.
        os.environ.setdefault("WANDB_DATA_DIR", tempfile.gettempdir())
        if sdk is None:
            import wandb as sdk
        self._sdk = sdk
        self._api: Any = None

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
                dir=str(self._folder),
                mode="online" if self.online else "offline",
                resume="allow" if self.online else None,
                reinit="create_new",
                settings=self._sdk.Settings(
                    console="off", silent=True, disable_git=True, disable_code=True,
                    save_code=False, disable_job_creation=True, program="",
                    x_disable_machine_info=True, x_disable_meta=True, x_disable_stats=True,
                    x_save_requirements=False, init_timeout=self._init_timeout_s,
                    finish_timeout=self._finish_timeout_s, finish_timeout_raises=True,
                    **PATIENCE,
                ),
            )  # fmt: skip
            return WandbRun(run, about, self._sdk, online=self.online)

    def told(self, path: str) -> dict[str, Any]:
        """Return the summary that the server has of the run at `path` now."""
        with _told():
            if self._api is None:
                self._api = self._sdk.Api(timeout=ASK_TIMEOUT_S)
            self._api.flush()
            return dict(self._api.run(path).summary)

    def drop(self) -> None:
        """End W&B's own process, which may hold runs that it cannot send; open starts another.

        Where that process ended badly, W&B would end ours.
        """
        self._api = None
        with contextlib.suppress(Exception, SystemExit):
            self._sdk.teardown()

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
        if "UsageError" in kinds or "AuthenticationError" in kinds:
            raise Refused(text) from error
        answered = "Error" in kinds and "CommError" not in kinds and "input:" in text
        if answered or any(word in text for word in REFUSED):
            raise Refused(text) from error
        raise Unreachable(text) from error


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if value is not None}
