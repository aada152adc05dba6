"""Running a sweep: what is missing, in passes over a cluster or one by one in this process.

Decides what runs and in what order; the stages themselves are in sweeps.stages. Knows nothing of
the command line.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from cluster.resources import Demand, ResourcePlan, plan_resources
from cluster.session import local_totals, session
from em.datasets import Row
from em.models import ModelConfig
from em.record import fingerprint
from sweeps.attempts import Beat, CellStatus, cell_status, live_run
from sweeps.failures import CellFailure
from sweeps.plan import CellPlan, SweepPlan, judge_model, load_rows_of, stages_to_run
from sweeps.progress import SweepProgress
from sweeps.spec import SweepSpec
from sweeps.store import Store, StoreError

# Libraries that report home or warn about their own business, in every process of a sweep.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def statuses(plan: SweepPlan, store: Store) -> list[CellStatus]:
    """Return how far every cell is, in the plan's order."""
    beat = live_run(store, plan.spec.name)
    return [cell_status(cell, store, plan.spec.name, beat) for cell in plan.cells]


def register(plan: SweepPlan, store: Store) -> None:
    """Write down that the store holds this sweep.

    Raises StoreError where it holds another sweep under this name: a model, variant, evaluation,
    judge or training that both have and that is not the same. Adding and removing them is growth.
    """
    place = f"{store.sweep_dir(plan.spec.name)}/spec.json"
    old = store.read_json(place)
    if old is not None:
        _check_same(SweepSpec.model_validate(old), plan.spec, store)
    store.write_record(place, plan.spec)


def known(plan: SweepPlan, store: Store) -> bool:
    """Whether the store holds a sweep of this name."""
    return store.read_json(f"{store.sweep_dir(plan.spec.name)}/spec.json") is not None


def _check_same(old: SweepSpec, new: SweepSpec, store: Store) -> None:
    def differ(what: str, was: object, now: object) -> StoreError:
        return StoreError(
            f"{store.url} holds another sweep under the name {new.name!r}: {what} was {was!r} there "
            f"and is {now!r} here. Give this spec another name, or another store"
        )

    for kind in ("models", "variants", "evaluations", "judges"):
        before = {item.name: item for item in getattr(old, kind)}
        for item in getattr(new, kind):
            was = before.get(item.name)
            if was is None or was == item:
                continue
            fields = type(item).model_fields
            # How many are wanted, and how fast, is not what a thing is.
            free = {"samples", "ids", "exclude", "concurrency"}
            field = next((f for f in fields if f not in free and getattr(was, f) != getattr(item, f)), None)
            if field:
                raise differ(
                    f"{kind}.{item.name}.{field}", getattr(was, field), getattr(item, field)
                )
    for field in type(new.training).model_fields:
        was, now = getattr(old.training, field), getattr(new.training, field)
        if was != now and field not in ("micro_batch", "checkpoint_steps"):
            raise differ(f"training.{field}", was, now)
    for field in ("mode", "dtype"):
        was, now = getattr(old.serving, field), getattr(new.serving, field)
        if was != now:
            raise differ(f"serving.{field}", was, now)


# --- what is needed -------------------------------------------------------------------------------


def demands(spec: SweepSpec, todo: Iterable[CellPlan], store: Store) -> tuple[Demand | None, list[Demand]]:
    """Return what one training holds, and what each pool holds, for the cells still to do."""
    resources = spec.resources
    todo = list(todo)
    trains = any("train" in stages_to_run(cell, store) for cell in todo)
    train = Demand(
        name="one cell's training",
        cpus=resources.train_cpus,
        gpus=resources.train_gpus,
        count=spec.training.ranks,
    )
    pools = [
        Demand(
            name=model.name,
            cpus=resources.serve_cpus,
            gpus=resources.serve_gpus,
            count=spec.serving.replicas,
        )
        for model in pool_models(spec, todo)
    ]
    return (train if trains else None), pools


def pool_models(spec: SweepSpec, todo: Iterable[CellPlan]) -> list[ModelConfig]:
    """Return the models that are served: those of the cells, and the judges'; each once."""
    models = [cell.cell.model for cell in todo] + judge_models(spec)
    return list({model.name: model for model in models}.values())


def judge_models(spec: SweepSpec) -> list[ModelConfig]:
    """Return the models of the judges that this sweep serves itself."""
    return [judge_model(spec, judge) for judge in spec.judges if judge.api is None]


def feasible(plan: SweepPlan, todo: Sequence[CellPlan], store: Store, totals: object) -> ResourcePlan:
    """Return how the work is laid out on `totals`. Raises ClusterTooSmall with the arithmetic."""
    from cluster.resources import Totals

    assert isinstance(totals, Totals)
    train, pools = demands(plan.spec, todo, store)
    shared = [model.name for model in judge_models(plan.spec)]
    return plan_resources(totals, train, pools, shared=shared)


# --- running --------------------------------------------------------------------------------------


def cells_to_run(plan: SweepPlan, store: Store, *, retry_failed: bool) -> list[CellPlan]:
    """Return the cells with work left; those that failed only where they are to be retried."""
    states = statuses(plan, store)
    wanted = ("missing", "running", "failed") if retry_failed else ("missing", "running")
    return [
        cell for cell, status in zip(plan.cells, states, strict=True) if status.state in wanted
    ]


def run_sweep(
    plan: SweepPlan,
    store: Store,
    todo: Sequence[CellPlan],
    *,
    relative_to: Path,
    address: str | None,
    inline: bool,
    progress: SweepProgress,
) -> None:
    """Do what is missing of the cells `todo`. Failures are in the store when this returns.

    Raises ValueError where the cluster cannot be joined or is too small.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    if address is None and not inline:  # before anything is started, where it can be known
        feasible(plan, todo, store, local_totals())
    run = _Run(plan, store, todo, relative_to, progress)
    try:
        run.inline() if inline else run.on_cluster(address)
    finally:
        run.close()


class _Run:
    """One run of a sweep."""

    def __init__(
        self,
        plan: SweepPlan,
        store: Store,
        todo: Sequence[CellPlan],
        relative_to: Path,
        progress: SweepProgress,
    ) -> None:
        self._plan, self._store, self._progress = plan, store, progress
        self._spec, self._relative_to = plan.spec, relative_to
        self._todo = {cell.cell_id: cell for cell in todo}
        self._to_train = [c for c in todo if "train" in stages_to_run(c, store)]
        self._told: set[str] = set()
        self._beat = Beat(store, plan.spec.name)

    # On a cluster --------------------------------------------------------------------------------

    def on_cluster(self, address: str | None) -> None:
        """Carry out the cells on the Ray cluster at `address`, or on one started here."""
        where = "starting Ray" if address is None else f"joining the Ray cluster at {address}"
        self._progress.say(where)
        with contextlib.ExitStack() as stack:
            with self._beat.starting("Ray"):
                totals = stack.enter_context(session(address, environment=QUIET))
            layout = feasible(self._plan, list(self._todo.values()), self._store, totals)
            self._progress.say(str(layout))
            if layout.mode == "overlap" and self._to_train:
                self._overlapped(layout)
                return
            self._train(layout, on_trained=lambda cell: None)
            for group in layout.pool_groups:
                self._evaluate_group(group)

    def close(self) -> None:
        """Say that this run has ended."""
        self._beat.close()

    def _overlapped(self, layout: ResourcePlan) -> None:
        from sweeps.evaluation_pass import EvaluationTask

        pools = self._start_pools(layout.pool_groups[0])
        source: queue.Queue[EvaluationTask | None] = queue.Queue()
        waiting = {cell.cell_id for cell in self._to_train}
        for cell in self._todo.values():
            if cell.cell_id not in waiting:
                source.put(self._evaluation_task(cell, pools))
        ended: Future[None] = Future()

        def evaluate() -> None:
            try:
                self._evaluate(source)
            except BaseException as error:  # noqa: BLE001  carried over to the main thread
                ended.set_exception(error)
            else:
                ended.set_result(None)

        threading.Thread(target=evaluate, name="evaluation-pass", daemon=True).start()
        self._train(layout, on_trained=lambda c: source.put(self._evaluation_task(c, pools)))
        source.put(None)
        ended.result()
        self._stop_pools(pools)

    def _train(self, layout: ResourcePlan, *, on_trained: Callable[[CellPlan], None]) -> None:
        if not self._to_train:
            return
        from sweeps.training_pass import train_cells

        # Cells with one training (equal data under two names) are trained once.
        first = {cell.training_key: cell for cell in reversed(self._to_train)}
        sharing: dict[str, list[CellPlan]] = {}
        for cell in self._to_train:
            sharing.setdefault(cell.training_key, []).append(cell)
        by_id = {cell.cell_id: cell for cell in first.values()}

        def on_done(cell_id: str) -> None:
            for cell in sharing[by_id[cell_id].training_key]:
                if self._store.training(cell.training_key) is not None:
                    self._progress.done("train", cell.cell_id)
                    on_trained(cell)
                else:
                    self._tell_failed(cell)

        rows = self._rows(by_id.values())
        self._progress.begin("train")
        train_cells(
            [self._train_task(cell) for cell in self._to_train if cell.cell_id in by_id],
            rows,
            slots=layout.train_slots,
            retries=self._spec.retries,
            on_done=on_done,
        )

    def _rows(self, cells: Iterable[CellPlan]) -> dict[str, tuple[Row, ...]]:
        needed = {cell.content_sha256: cell for cell in cells}
        return {
            key: load_rows_of(cell, relative_to=self._relative_to).rows
            for key, cell in needed.items()
            if key is not None
        }

    def _train_task(self, cell: CellPlan) -> "TrainTask":  # noqa: F821
        from sweeps.training_pass import TrainTask

        return TrainTask(
            plan=cell.model_copy(update={"evaluations": (), "judgings": ()}),
            store=self._store.url,
            sweep=self._spec.name,
            run=self._beat.run,
            tracking=self._spec.tracking,
            resources=self._spec.resources,
        )

    def _evaluate_group(self, group: Sequence[str]) -> None:
        ready = [
            cell
            for cell in self._todo.values()
            if cell.cell.model.name in group and cell.cell_id not in self._told
        ]
        if not ready:
            return
        pools = self._start_pools(group)
        source: queue.Queue[object] = queue.Queue()
        for cell in ready:
            source.put(self._evaluation_task(cell, pools))
        source.put(None)
        self._evaluate(source)  # type: ignore[arg-type]
        self._stop_pools(pools)

    def _evaluate(self, source: "queue.Queue[EvaluationTask | None]") -> None:  # noqa: F821
        from sweeps.evaluation_pass import evaluate_cells

        self._progress.begin("generate")
        self._progress.begin("judge")
        evaluate_cells(
            source,
            at_once=self._spec.serving.concurrency,
            retries=self._spec.retries,
            on_done=self._on_evaluated,
        )

    def _on_evaluated(self, cell: CellPlan, failure: CellFailure | None) -> None:
        if failure is not None:
            self._tell_failed(cell, failure)
            return
        self._progress.done("generate", cell.cell_id)
        self._progress.done("judge", cell.cell_id)

    def _tell_failed(self, cell: CellPlan, failure: CellFailure | None = None) -> None:
        self._told.add(cell.cell_id)
        last = self._store.attempts(self._spec.name, cell.cell_id)
        message = failure.message if failure else (last[-1].error if last else None)
        stage = failure.stage if failure else "train"
        self._progress.failed(cell.cell_id, stage, message or "the process that trained it died")

    def _evaluation_task(self, cell: CellPlan, pools: dict[str, str]) -> "EvaluationTask":  # noqa: F821
        from sweeps.evaluation_pass import EvaluationTask

        return EvaluationTask(
            plan=cell,
            spec=self._spec,
            store=self._store.url,
            sweep=self._spec.name,
            run=self._beat.run,
            pools=pools,
        )

    def _start_pools(self, group: Sequence[str]) -> dict[str, str]:
        from cluster.engine import PoolConfig
        from cluster.serving import start_pools
        from em.merging import merge_adapter
        from sweeps.endpoints import engine_config

        models = {m.name: m for m in pool_models(self._spec, self._todo.values())}
        resources, serving = self._spec.resources, self._spec.serving
        self._progress.say(f"starting the pool of {' and '.join(group)}")
        configs = [
            PoolConfig(
                name=f"pool-{fingerprint([self._beat.run, name])[:12]}",
                engine=engine_config(
                    models[name], serving, self._spec.training,
                    threads=max(1, int(resources.serve_cpus)),
                ),
                replicas=serving.replicas,
                num_cpus=resources.serve_cpus,
                num_gpus=resources.serve_gpus,
            )
            for name in group
        ]  # fmt: skip
        with self._beat.starting(f"pool {' + '.join(group)}"):
            start_pools(configs, merge_adapter)
        self._progress.say("the pools answer")
        return {name: config.name for name, config in zip(group, configs, strict=True)}

    def _stop_pools(self, pools: dict[str, str]) -> None:
        from cluster.serving import stop_pool

        for pool in pools.values():
            stop_pool(pool)

    # In this process -----------------------------------------------------------------------------

    def inline(self) -> None:
        """Carry out every cell here, in order: a breakpoint anywhere is reached."""
        from cluster.engine import Engine
        from em.merging import merge_adapter
        from sweeps.endpoints import engine_config
        from sweeps.evaluation_pass import evaluate_cell
        from sweeps.training_pass import train_task

        engines: dict[str, Engine] = {}
        rows = self._rows(self._to_train)
        try:
            with asyncio.Runner() as runner:
                for cell in self._todo.values():
                    if "train" in stages_to_run(cell, self._store):
                        assert cell.content_sha256 is not None
                        self._progress.begin("train")
                        if train_task(self._train_task(cell), rows[cell.content_sha256]):
                            self._tell_failed(cell)
                            continue
                        self._progress.done("train", cell.cell_id)
                    for model in pool_models(self._spec, [cell]):
                        if model.name not in engines:
                            threads = max(1, int(self._spec.resources.serve_cpus))
                            config = engine_config(
                                model, self._spec.serving, self._spec.training, threads=threads
                            )
                            engines[model.name] = Engine(config, merge_adapter)
                    task = self._evaluation_task(cell, {})
                    tries = self._spec.retries + 1
                    self._on_evaluated(cell, evaluate_cell(task, engines, runner, tries=tries))
        finally:
            for engine in engines.values():
                engine.close()
