"""A sweep's answers and scores as logs of Inspect, which its viewer and its readers open.

One log for each cell and evaluation, with the scores of all its judges. Imports Inspect only where
logs are written. What models and judges wrote goes into them as it is, as text. Knows nothing of
the command line.
"""

import datetime
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em.generation import Response
from em.scoring import DEFINITIONS, Definition, Scored, count_by_question, rate_of, total
from sweeps.plan import CellPlan, EvaluationPlan, SweepPlan
from sweeps.results import ScoredResponse, scored_responses
from sweeps.store import Store


def check_inspect() -> None:
    """Raise ValueError where Inspect is not installed."""
    if importlib.util.find_spec("inspect_ai") is None:
        raise ValueError(
            "writing logs of Inspect needs Inspect, which is not installed here: install the extra "
            "'inspect' (pip install 'em-sweeps[inspect]')"
        )


def write_logs(sweep: SweepPlan, store: Store, out: Path) -> Iterator[tuple[Path, int]]:
    """Write every log there is something for into the folder `out`; yield path and samples of each.

    Only what a judge has scored is in them. A log that is there already is written anew.
    """
    from inspect_ai.log import write_eval_log

    for cell in sweep.cells:
        for evaluation in cell.evaluations:
            by_judge = {
                judging.judge: rows
                for judging in cell.judgings
                if judging.evaluation == evaluation.name
                and (rows := scored_responses(cell, judging, store))
            }
            if by_judge:
                log = _log(sweep, cell, evaluation, by_judge, store)
                path = out / f"{cell.cell_id}_{evaluation.name}.eval"
                write_eval_log(log, path)
                yield path, len(log.samples or ())


def _log(
    sweep: SweepPlan,
    cell: CellPlan,
    evaluation: EvaluationPlan,
    by_judge: dict[str, list[ScoredResponse]],
    store: Store,
) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats

    record = store.stream("responses", evaluation.stream)
    began = [_time(made.started) for made in record.provenance] if record else []
    ended = [_time(made.started + made.seconds) for made in record.provenance] if record else []
    samples = _samples(cell, by_judge)
    definition = DEFINITIONS[evaluation.metric]
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=evaluation.stream[:22], run_id=sweep.spec.name, task_id=evaluation.stream[:22],
            created=min(began, default=_time(0)), task=evaluation.name,
            dataset=EvalDataset(name=evaluation.name, samples=len(evaluation.asked)),
            model=f"emsweep/{cell.cell_id}",
            config=EvalConfig(epochs=max(n for _, n in evaluation.asked)),
            packages=record.provenance[-1].versions if record else {},
            metadata={
                "sweep": sweep.spec.name, "model": cell.cell.model.name,
                "variant": cell.cell.variant.name, "seed": cell.cell.seed_label,
                "definition": f"{definition.name}: {definition.text}",
            },
        ),
        stats=EvalStats(started_at=min(began, default=""), completed_at=max(ended, default="")),
        results=_results(by_judge, definition, len(samples)),
        samples=samples,
    )  # fmt: skip


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _samples(cell: CellPlan, by_judge: dict[str, list[ScoredResponse]]) -> list[Any]:
    """Return each answer as a sample: its question's wording is the id, its index the epoch."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput

    responses: dict[str, Response] = {}
    scores: dict[str, dict[str, Any]] = {}
    for judge, rows in by_judge.items():
        for row in rows:
            responses.setdefault(row.response.key, row.response)
            scores.setdefault(row.response.key, {}).update(_scores(judge, row.scored))
    found = []
    for key, said in responses.items():
        system = [ChatMessageSystem(content=said.system)] if said.system is not None else []
        asked = [*system, ChatMessageUser(content=said.trigger + said.text)]
        reason = "max_tokens" if said.finish_reason == "length" else "stop"
        output = ModelOutput.from_content(cell.cell_id, said.answer, stop_reason=reason)
        found.append(
            EvalSample(
                id=f"{said.question}#{said.wording}",
                epoch=said.index + 1,
                input=asked,
                target="",
                messages=[*asked, output.message],
                output=output,
                scores=scores[key],
                uuid=key,
                metadata={"seed": said.seed, "weights": said.weights},
            )
        )
    return found


def _scores(judge: str, scored: Scored) -> dict[str, Any]:
    """Return one judge's scores; what has neither number nor label is unscored, with its state."""
    from inspect_ai.scorer import Score

    found = {}
    for name, state in scored.states.items():
        value = scored.labels.get(name, scored.values.get(name))
        known = value is not None
        found[f"{judge}/{name}"] = Score(value=value) if known else Score.unscored(reason=state)
    return found


def _results(by_judge: dict[str, list[ScoredResponse]], definition: Definition, num: int) -> Any:
    """Return the rate of each judge by the sweep's own definition, called by its name."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    found = []
    for judge, rows in by_judge.items():
        counts = count_by_question([row.scored for row in rows], definition)
        rate, in_all = rate_of(counts, definition), total(counts)
        metrics = (
            {definition.name: EvalMetric(name=definition.name, value=rate)}
            if rate is not None
            else {}
        )
        found.append(
            EvalScore(
                name=judge,
                scorer=judge,
                metrics=metrics,
                scored_samples=in_all.coherent,
                unscored_samples=in_all.responses - in_all.coherent,
            )
        )
    return EvalResults(total_samples=num, completed_samples=num, scores=found)
