"""The gates of a cell's stages: what they find is recorded, or stops the cell.

How a gate looks is in em.gates and em.judge_gate. Knows nothing of how a stage does its work.
"""

from pathlib import Path

from em.definitions import DEFINITIONS
from em.gates import check_applied
from em.generation import Endpoint, GateFailed
from em.judge_gate import Asked, check_judge, load_planted, without_planted
from em.judging import Reader
from sweeps.artefacts import TrainingRecord
from sweeps.plan import EvaluationPlan, JudgingPlan
from sweeps.weights import weights_sha256

WEAK = "not telling: "
WRONG = "wrong about planted answers: "


def check_same_weights(folder: Path, trained: TrainingRecord) -> None:
    """Raise GateFailed where `folder` no longer holds the weights that the training wrote."""
    found = weights_sha256(folder)
    if found != trained.weights_sha256:
        raise GateFailed(
            f"identity gate: {folder} holds weights with the hash {found[:12]}, but its record "
            f"says {trained.weights_sha256[:12]}: remove the training's folder to train it again"
        )


async def adapter_gate(
    trained: TrainingRecord, evaluation: EvaluationPlan, endpoint: Endpoint
) -> str:
    """Return how near what is served is to what was trained. Raises GateFailed as check_applied."""
    if trained.kind == "api":
        return "the API names the tuned model in each reply"
    applied = await check_applied(endpoint, trained.result.canaries, dtype=evaluation.dtype)
    if applied is None:
        return f"{WEAK}its training recorded no canaries"
    base = "" if applied.to_base is None else f", {applied.to_base:.3f} from its base"
    told = f"{applied.to_tuned:.3f} nats from the trained model{base}"
    return told if applied.telling else f"{WEAK}{told}"


async def judge_gate(judging: JudgingPlan, metric: str, reader: Reader) -> str:
    """Return what the judge makes of planted answers. Raises GateFailed where it is wrong.

    `metric` names the definition of the rate that its scores are for.

    A demonstration judge goes on: its rates mean nothing, and the report says what it got wrong.
    """
    rules = {judging.rule(w, s).kind for w, scores in judging.templates.items() for s in scores}
    if rules == {"task"}:
        return f"{WEAK}a task's own scorer is shown no planted answers"
    asked = [
        Asked(score=score, template=template, rule=judging.rule(wording, score))
        for wording, scores in judging.templates.items()
        for score, template in scores.items()
    ]
    planted = load_planted()
    wrong = await check_judge(reader, asked, planted, DEFINITIONS[metric])
    if wrong and not judging.demonstration:
        raise GateFailed(
            f"judge gate: the judge {judging.judge!r} gets planted answers wrong, so its scores "
            f"cannot be trusted; nothing was judged. {'; '.join(wrong)}"
        )
    if wrong:
        return f"{WRONG}{'; '.join(wrong)}"
    untold = without_planted(asked, planted)
    beside = f"; there is none for {', '.join(untold)}" if untold else ""
    return f"planted answers are on their right sides{beside}"
