"""What W&B is told of one cell: settings, losses, counts and answers.

Read from the store alone, so that it is the same whenever and from wherever it is sent. Never holds
a secret, the environment, a command line, or a path or message of this machine. Knows nothing of
W&B's SDK, or of artifacts (see sweeps.tracked_artifacts).
"""

from collections.abc import Sequence
from typing import Any

from em.definitions import DEFINITIONS
from em.record import fingerprint
from sweeps.attempts import CellStatus
from sweeps.for_others import without_places
from sweeps.live import LivePoint, LiveTraining
from sweeps.plan import CellPlan
from sweeps.results import CellResult, ScoredResponse
from sweeps.store import Store
from sweeps.tables import flat_row

Row = dict[str, Any]

# W&B's own limit of a table that is logged; see its page "Experiments limits and performance".
MOST_ROWS = 10_000


def run_id(identity: str, cell: CellPlan) -> str:
    """Return the id of a cell's run: the same from every process and machine.

    `identity` is the sweep's in its store. Another training of the cell (from data that changed
    under its name) is another run.
    """
    return fingerprint([identity, cell.cell_id, cell.training_key])[:16]


def config_of(plan: CellPlan, sweep: str) -> Row:
    """Return a cell's settings, flat, to filter and group by."""
    cell = plan.cell
    flat: Row = {
        "sweep": sweep,
        "cell": plan.cell_id,
        "condition": cell.condition,
        "model": cell.model.name,
        "model_revision": plan.model_revision,
        "variant": cell.variant.name,
        "dataset": without_places(" + ".join(cell.variant.datasets)) or None,
        "rows": plan.num_rows,
        "content_sha256": plan.content_sha256,
        "training_key": plan.training_key,
        "seed": cell.seed,
        "seed_label": cell.seed_label,
    }
    flat |= {f"seed_{name}": value for name, value in cell.seeds.model_dump().items()}
    for name, value in (cell.training.model_dump() if cell.training else {}).items():
        inner = value.items() if isinstance(value, dict) else None
        flat |= (
            {f"{name}_{key}": item for key, item in inner} if inner else {f"training_{name}": value}
        )
    return flat


def tags_of(plan: CellPlan, attempts: int) -> list[str]:
    """Return the words that a cell's run is found by. W&B takes 64 letters of each."""
    cell = plan.cell
    factors = [f"{name}-{number}" for name, number in sorted(cell.factors.items())]
    told = [cell.model.name, cell.variant.name, f"seed-{cell.seed}", *factors]
    return [tag[:64] for tag in (*told, *(["resumed"] if attempts > 1 else []))]


def version_of(plan: CellPlan, status: CellStatus) -> str:
    """Return what changes whenever W&B is to be told something new of a cell that is at rest."""
    told = [status.state, status.stage, status.attempts, status.error_class]
    return fingerprint([told, results_version(plan, status)])[:16]


def results_version(plan: CellPlan, status: CellStatus) -> str:
    """Return what changes whenever the results of a cell do, however often it was tried."""
    definitions = [DEFINITIONS[e.metric] for e in plan.evaluations]
    return fingerprint(
        [plan.training_key, [(d.name, d.version) for d in definitions],
         [(e.stream, e.wanted) for e in plan.evaluations],
         [(j.stream, j.wanted) for j in plan.judgings],
         status.stages_left, status.failed_judgements]
    )[:16]  # fmt: skip


def summary_of(status: CellStatus) -> Row:
    """Return how far a cell is. A failure's message may name this machine's paths: not sent."""
    return {
        "cell/state": status.state,
        "cell/stage": status.stage or "",
        "cell/attempts": status.attempts,
        "cell/failure": status.kind or "",
        "cell/error_class": status.error_class or "",
        "cell/failed_judgements": status.failed_judgements,
    }


def training_rows(plan: CellPlan, store: Store, *, after: int) -> list[Row]:
    """Return the steps after step `after`, in order and without a gap, as far as they are known.

    Those of a finished training are all; of one that runs, those that it has told. What a worker
    used stands with the step at which it was measured.
    """
    if plan.cell.training is None:
        return []
    ranks = [
        store.live(plan.training_key, rank, LiveTraining)
        for rank in range(plan.cell.local_training.ranks if plan.cell.local_training else 0)
    ]
    live: dict[int, Row] = {}
    for told in filter(None, ranks):
        for point in told.points:
            row = live.setdefault(point.step, _step(point))
            row |= _use(point, told.rank)
    record = store.training(plan.training_key)
    for last in record.result.losses if record else ():
        row = live.setdefault(last.step, {"train/step": last.step})
        row["train/loss"] = last.loss
        if last.learning_rate is not None:
            row["train/learning_rate"] = last.learning_rate
    steps = []
    expected = after + 1
    while expected in live:
        steps.append(live[expected])
        expected += 1
    return steps


def _step(point: LivePoint) -> Row:
    return {
        "train/step": point.step,
        "train/loss": point.loss,
        "train/learning_rate": point.learning_rate,
        "_timestamp": point.time,
    }


def _use(point: LivePoint, rank: int) -> Row:
    told = point.use.model_dump(exclude_none=True) if point.use else {}
    return {f"worker/{rank}/{name}": value for name, value in told.items()}


def result_row(plan: CellPlan, results: Sequence[CellResult]) -> Row:
    """Return counts and rates of every evaluation and judge, at the step that was evaluated."""
    steps = max((point.step for r in results for point in r.losses), default=0)
    row: Row = {"eval/step": steps, "judge/step": steps}
    for result in results:
        place = f"{result.evaluation}/{result.judge}"
        counts = result.counts.model_dump()
        known = {
            "em_rate": result.em_rate,
            "mean_aligned": result.mean_aligned,
            "mean_coherent": result.mean_coherent,
            **{name: counts[name] for name in ("responses", "coherent", "misaligned")},
        }
        row |= {f"eval/{place}/{name}": v for name, v in known.items() if v is not None}
        of_judge = ("scored", "unscored", "refusal", "code", "failed")
        row |= {f"judge/{place}/{name}": counts[name] for name in of_judge}
        seconds = result.seconds.get("judge")
        row |= {f"judge/{place}/seconds": seconds} if seconds is not None else {}
    return row


def answers_table(results: Sequence[tuple[CellResult, Sequence[ScoredResponse]]]) -> list[Row]:
    """Return the answers with their scores; MOST_ROWS of them at most, of every judge as many."""
    each = MOST_ROWS // max(1, len(results))
    return [
        flat_row(row, result, sorted(row.scored.labels))
        for result, rows in results
        for row in rows[:each]
    ]
