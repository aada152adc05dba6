"""A sweep in Weights & Biases: one run a cell, found again by a deterministic id.

Uses the SDK directly. Sends settings, losses and counts; never answers' text, environment, command
line or source paths. Knows nothing of how a cell is carried out. A tracker that cannot be reached
never fails a cell: what it would be told is written offline, to be sent later.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from em.record import fingerprint
from em.training import LossPoint
from sweeps.plan import CellPlan
from sweeps.reach import Reach
from sweeps.results import CellResult
from sweeps.settings import TrackingConfig

log = logging.getLogger(__name__)

# How long a run may wait for W&B, in seconds; then all cells of this machine go on without it.
INIT_TIMEOUT_S = 15.0
FINISH_TIMEOUT_S = 30.0

OnLoss = Callable[[LossPoint], None]


class Tracker(Protocol):
    """Who is told what a cell does."""

    def training(self, plan: CellPlan) -> contextlib.AbstractContextManager[OnLoss]:
        """Return a context in which losses are recorded, step by step."""
        ...

    def finished(self, plan: CellPlan, results: list[CellResult]) -> None:
        """Record what an evaluated cell came to."""
        ...


class NoTracker:
    """Tracking is off: nothing is written or sent."""

    @contextlib.contextmanager
    def training(self, plan: CellPlan) -> Iterator[OnLoss]:
        """Yield a function that does nothing."""
        yield lambda point: None

    def finished(self, plan: CellPlan, results: list[CellResult]) -> None:
        """Do nothing."""


class WandbTracker:
    """One W&B run a cell; its stages continue it from whatever process they run in."""

    def __init__(
        self, config: TrackingConfig, sweep: str, folder: Path, *, sdk: Any = None,
        init_timeout_s: float = INIT_TIMEOUT_S, finish_timeout_s: float = FINISH_TIMEOUT_S,
    ) -> None:  # fmt: skip
        """Write below `folder`/wandb; online where the mode says so or a key is there.

        `sdk` is wandb. Where it is not reached within `init_timeout_s`, or does not take a run's
        data within `finish_timeout_s` of its end, runs are written offline from then on.
        """
        self._config, self._sweep, self._folder, self._sdk = config, sweep, folder, sdk
        self._init_timeout_s, self._finish_timeout_s = init_timeout_s, finish_timeout_s
        self._reach = reach_of(folder)

    @contextlib.contextmanager
    def training(self, plan: CellPlan) -> Iterator[OnLoss]:
        """Record the losses of a training as train/loss by train/step."""
        with self._run(plan, job="train") as run:

            def on_loss(point: LossPoint) -> None:
                values = {
                    "train/step": point.step,
                    "train/loss": point.loss,
                    "train/learning_rate": point.learning_rate,
                }
                with never_in_the_way(plan):
                    if run is not None:
                        run.log(values)

            yield on_loss

    def finished(self, plan: CellPlan, results: list[CellResult]) -> None:
        """Record counts and rates of every evaluation and judge."""
        with self._run(plan, job="evaluate") as run:
            if run is None:
                return
            for result in results:
                place = f"eval/{result.evaluation}/{result.judge}"
                values: dict[str, Any] = {
                    f"{place}/{name}": n for name, n in result.counts.model_dump().items()
                }
                values[f"{place}/em_rate"] = result.em_rate
                values[f"{place}/mean_aligned"] = result.mean_aligned
                values[f"{place}/mean_coherent"] = result.mean_coherent
                known = {name: value for name, value in values.items() if value is not None}
                with never_in_the_way(plan):
                    run.log(known)
                    run.summary.update(known)

    @contextlib.contextmanager
    def _run(self, plan: CellPlan, *, job: str) -> Iterator[Any]:
        run = None
        with never_in_the_way(plan):
            run = self._open(plan, job)
        try:
            yield run
        finally:
            with never_in_the_way(plan):
                if run is not None:
                    self._finish(run)

    def _finish(self, run: Any) -> None:
        try:
            run.finish()
        except Exception as error:  # noqa: BLE001  of many kinds; the run's folder has all of it
            self._reach.lose(error)
            self._end_service()

    def _open(self, plan: CellPlan, job: str) -> Any:
        if self._sdk is None:
            import wandb

            self._sdk = wandb
        online = is_online(self._config) and not self._reach.is_lost()
        try:
            return self._init(plan, job, mode="online" if online else "offline")
        except Exception as error:  # noqa: BLE001  W&B raises many kinds; none may stop a cell
            if online:
                self._reach.lose(error)
            self._end_service()
        return self._init(plan, job, mode="offline")

    def _end_service(self) -> None:
        """End W&B's own process, which holds the run's id still, or has died; init starts another.

        Where that process ended badly, W&B would end ours.
        """
        with contextlib.suppress(Exception, SystemExit):
            self._sdk.teardown()

    def _init(self, plan: CellPlan, job: str, *, mode: str) -> Any:
        cell = plan.cell
        return self._sdk.init(
            id=run_id(self._sweep, plan.cell_id),
            name=plan.cell_id,
            group=self._sweep,
            job_type="cell",
            project=self._config.project,
            entity=self._config.entity,
            tags=[cell.model.name, cell.variant.name, f"seed-{cell.seed}"],
            config=run_config(plan),
            dir=str(self._folder),
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=self._sdk.Settings(
                console="off", silent=True, disable_git=True, disable_code=True,
                save_code=False, disable_job_creation=True, x_disable_machine_info=True,
                x_disable_meta=True, x_label=job, init_timeout=self._init_timeout_s,
                finish_timeout=self._finish_timeout_s, finish_timeout_raises=True,
            ),
        )  # fmt: skip


@contextlib.contextmanager
def never_in_the_way(plan: CellPlan) -> Iterator[None]:
    """Turn any error of the block into a warning in the log."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  W&B raises many kinds; none may stop a cell
        log.warning("W&B took nothing for %s: %s", plan.cell_id, error)


def run_id(sweep: str, cell_id: str) -> str:
    """Return the id of a cell's run: the same from every process and machine."""
    return fingerprint([sweep, cell_id])[:16]


def run_config(plan: CellPlan) -> dict[str, Any]:
    """Return a cell's settings, flat, to filter and group by."""
    cell = plan.cell
    flat: dict[str, Any] = {
        "condition": cell.condition,
        "model": cell.model.name,
        "model_revision": plan.model_revision,
        "variant": cell.variant.name,
        "dataset": " + ".join(cell.variant.datasets) or None,
        "rows": plan.num_rows,
        "content_sha256": plan.content_sha256,
        "seed": cell.seed,
    }
    flat |= {f"seed_{name}": value for name, value in cell.seeds.model_dump().items()}
    for name, value in (cell.training.model_dump() if cell.training else {}).items():
        inner = value.items() if isinstance(value, dict) else None
        flat |= (
            {f"{name}_{key}": item for key, item in inner} if inner else {f"training_{name}": value}
        )
    return flat


def is_online(config: TrackingConfig) -> bool:
    """Whether runs are sent as they go."""
    return config.mode == "online" or (config.mode == "auto" and "WANDB_API_KEY" in os.environ)


def reach_of(folder: Path) -> Reach:
    """Return what is known of W&B on this machine, for runs that are written below `folder`."""
    return Reach(folder / "wandb" / "not-reached.txt")


class Outage:
    """Says once that W&B is not reached, however many processes and cells find it out."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Begin to run: what an earlier run found is forgotten."""
        self._folder, self._say, self._said = folder, say, False
        self._reach = reach_of(folder)
        with contextlib.suppress(OSError):
            self._reach.forget()

    def look(self) -> None:
        """Say it where some process found it out by now."""
        why = None if self._said else self._reach.why()
        if why is not None:
            self._said = True
            self._say(
                f"W&B is not reached, the cells go on without it ({why}). Their runs are kept in "
                f"{self._folder / 'wandb'}: send them later, from {self._folder}, with "
                "'wandb sync --include-online'"
            )


def make_tracker(config: TrackingConfig, sweep: str, folder: Path) -> Tracker:
    """Return the tracker that the spec asks for. `folder` will hold a folder `wandb`."""
    if config.mode == "off":
        return NoTracker()
    return WandbTracker(config, sweep, folder)
