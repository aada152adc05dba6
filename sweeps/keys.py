"""What an artefact is: the settings that its key hashes, and none that it does not depend on.

Every setting is in by default and left out by name (see sweeps.spec.NOT_IN_KEY). Knows nothing of
stores, or of what is done already.
"""

from collections.abc import Callable, Mapping
from typing import Any

from em import code_judge
from em.api_models import ApiTrainingConfig
from em.judging import RULE
from em.models import ModelConfig
from em.record import dumped
from em.seeds import derive_seed
from em.training import TrainingConfig
from em.variants import Variant
from sweeps.settings import EvaluationConfig, JudgeConfig, ServingConfig
from sweeps.spec import NOT_IN_KEY, Cell, SweepSpec


def training_identity(cell: Cell, revision: str, variant: Variant | None) -> dict[str, Any]:
    """Return what the key of a training hashes. An untuned model has one identity for all seeds.

    The revision stands for weights, tokenizer and chat template: it changes when any of them does.
    """
    if cell.training is None or variant is None:
        return {"model": revision, "training": None}
    if isinstance(cell.training, ApiTrainingConfig):
        return {
            "model": revision,
            "rows": variant.content_sha256,
            "seeds": api_seeds(cell, cell.training),
            "training": {n: v for n, v in dumped(cell.training).items() if n != "takes_seed"},
        }
    return {
        "model": revision,
        "rows": variant.content_sha256,
        "seeds": {"init": cell.seeds.init, "order": cell.seeds.order,
                  "subset": cell.seeds.subset, "replicate": cell.seeds.replicate},
        "training": training_settings(cell.training),
    }  # fmt: skip


def api_seeds(cell: Cell, config: ApiTrainingConfig) -> dict[str, int]:
    """Return what tells an API's training from others of the same rows.

    `seed` is sent with the job; where the API takes none, cells with other seeds are `replicate_of`
    nothing that can be replayed, and only told apart.
    """
    number = derive_seed(cell.seeds.init, "api", cell.seeds.order)
    name = "seed" if config.takes_seed else "replicate_of"
    return {name: number, "subset": cell.seeds.subset, "replicate": cell.seeds.replicate}


def training_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that bear on a training's result."""
    unused = (*NOT_IN_KEY, "lora") if config.method == "full" else NOT_IN_KEY
    return {name: value for name, value in dumped(config).items() if name not in unused}


def response_identity(
    training_key: str,
    cell: Cell,
    config: EvaluationConfig,
    serving: ServingConfig,
    *,
    step: int | None = None,
    inspect: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what the key of a cell's responses hashes; wordings and samples are in each one's.

    `step` is that of a snapshot: at a training's end there is none. `inspect` is what a task is,
    where the evaluation runs one.
    """
    api = cell.model.api is not None  # which computes as it likes
    snapshot = {} if step is None else {"step": step}
    task = {} if inspect is None else {"inspect": dict(inspect)}
    return snapshot | {
        "training": training_key,
        "form": dumped(config.form),
        "sampling": dumped(config.sampling),
        "sampling_seed": cell.seeds.sampling,
        "replicate": cell.seeds.replicate,
        "serving": {
            "mode": "api" if api else serving.mode,
            "dtype": "its own" if api else serving.dtype,
        },
        **task,
    }


def judge_identity(
    spec: SweepSpec, judge: JudgeConfig, revision: Callable[[ModelConfig], str]
) -> dict[str, Any]:
    """Return what the judge is; its prompts are in each judgement's group."""
    if judge.pattern is not None:
        return {"kind": "pattern", "pattern": judge.pattern.identity}
    if judge.scorer is not None:
        return {"kind": "task"}  # which task and scorer is in what it scores
    if judge.analyser is not None:
        return {"kind": "analyser", "analyser": code_judge.RULE}
    if judge.api is not None:
        azure = {"api_version": judge.api_version} if judge.api_version else {}
        return {
            "kind": "api", "url": judge.api, "model": judge.api_model, "rule": RULE, **azure
        }  # fmt: skip
    model = judge_model(spec, judge)
    return {
        "kind": "pool",
        "model": revision(model),
        "dtype": spec.serving.dtype,
        "rule": RULE,
    }


def judge_model(spec: SweepSpec, judge: JudgeConfig) -> ModelConfig:
    """Return the model a served judge is: one of the spec's, or its own."""
    if judge.model is not None:
        return judge.model
    return next(model for model in spec.models if model.name == judge.pool)
