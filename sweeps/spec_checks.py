"""What the parts of a spec must have in common, told at the key that is at fault.

Each part has checked itself before. Knows nothing of cells, stores, or of what is installed.
"""

from typing import TYPE_CHECKING

from pydantic import ValidationError

from cluster.requests import LORA_RANKS
from em.models import ModelConfig
from em.told import short
from em.variant_config import UNTUNED
from sweeps.claim_spec import check_claim
from sweeps.settings import EvaluationConfig
from sweeps.yaml_errors import MistakeAt

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec


def check_spec(spec: "SweepSpec") -> None:
    """Raise MistakeAt for the first thing that does not fit another."""
    served = _check_judges(spec)
    _check_layouts(spec, [name for name, model in served.items() if model.api is None])
    _check_api_models(spec)
    for place, evaluation in enumerate(spec.evaluations):
        unknown = set(evaluation.judges or ()) - {judge.name for judge in spec.judges}
        if unknown:
            raise MistakeAt(
                ("evaluations", place, "judges"),
                f"{min(unknown)!r} is not among judges "
                f"({', '.join(judge.name for judge in spec.judges)})",
            )
        _check_trigger(spec, place, evaluation)
        _check_at(spec, place, evaluation)
        _check_length(spec, place, evaluation)
    for number, claim in enumerate(spec.claims):
        check_claim(number, claim, spec)
    _check_serving(spec)


def _check_judges(spec: "SweepSpec") -> dict[str, ModelConfig]:
    """Return the models that are trained or judge, by name."""
    served = {model.name: model for model in spec.models}
    for number, judge in enumerate(spec.judges):
        if judge.pool is not None and judge.pool not in {model.name for model in spec.models}:
            raise MistakeAt(
                ("judges", number, "pool"),
                f"judge {judge.name!r}: pool names the model {judge.pool!r}, which is not "
                f"among models ({', '.join(model.name for model in spec.models)}); add it "
                "there, or give the judge a model",
            )
        if judge.pool is not None and served[judge.pool].api is not None:
            raise MistakeAt(
                ("judges", number, "pool"),
                f"judge {judge.name!r}: {judge.pool!r} is behind an API, and no pool here "
                "serves it: give the judge 'api' and 'api_model'",
            )
        # Pools go by the model's name: two models of one name would be one pool.
        if judge.model and served.setdefault(judge.model.name, judge.model) != judge.model:
            raise MistakeAt(
                ("judges", number, "model", "name"),
                f"judge {judge.name!r}: its model is called {judge.model.name!r}, as another "
                "model of this sweep is: give it a name of its own, or use pool",
            )
    return served


def _check_serving(spec: "SweepSpec") -> None:
    here = any(model.api is None for model in spec.models)
    tuned = here and any(variant.name != UNTUNED for variant in spec.variants)
    lora = spec.training.method == "lora"
    if tuned and not lora and spec.serving.mode == "lora":
        raise MistakeAt(
            ("training", "method"),
            "full makes whole weights, which serving.mode: lora cannot serve; set "
            "serving.mode: merged",
        )
    if tuned and lora and spec.serving.mode == "lora" and spec.training.lora.rank not in LORA_RANKS:
        raise MistakeAt(
            ("training", "lora", "rank"),
            f"vLLM does not serve adapters of rank {spec.training.lora.rank}; allowed are "
            f"{', '.join(map(str, LORA_RANKS))}, or set serving.mode: merged",
        )


def _check_layouts(spec: "SweepSpec", served: list[str]) -> None:
    for name in spec.layouts:
        if name not in served:
            raise MistakeAt(
                ("layouts", name),
                f"{short(name)} is no model of this sweep; it has {', '.join(served)}",
            )
        try:
            spec.for_model(name)
        except ValidationError as error:
            said = "; ".join(item["msg"] for item in error.errors())
            text = f"with the rest of training: {said.replace('Value error, ', '')}"
            raise MistakeAt(("layouts", name), text) from error


def _check_api_models(spec: "SweepSpec") -> None:
    """An API has one seed, or none: it cannot tell an adapter's start from the rows' order."""
    behind = [model.name for model in spec.models if model.api is not None]
    apart = [name for name in ("init", "order") if getattr(spec.factors, name) is not None]
    if behind and apart:
        raise MistakeAt(
            ("factors", apart[0]),
            f"{behind[0]} is trained behind an API, which takes one seed at most and not "
            f"{' and '.join(apart)} apart: leave them out of 'factors', or the model out",
        )
    batched = [m.name for m in spec.models if m.api is not None and m.api.batch]
    for number, evaluation in enumerate(spec.evaluations):
        if batched and evaluation.inspect is not None:
            raise MistakeAt(
                ("evaluations", number, "inspect"),
                f"a task asks turn by turn, and {batched[0]} is asked in batches that take up "
                "to a day each: leave out its api.batch, or the task",
            )
    for number, judge in enumerate(spec.judges):
        if judge.model is not None and judge.model.api is not None:
            raise MistakeAt(
                ("judges", number, "model"),
                f"judge {judge.name!r}: a model behind an API is named by 'api' and "
                "'api_model' of the judge, not by 'model'",
            )


def _check_length(spec: "SweepSpec", place: int, evaluation: EvaluationConfig) -> None:
    try:
        check_length(spec, evaluation.sampling.max_tokens)
    except ValueError as error:
        raise MistakeAt(("evaluations", place, "sampling", "max_tokens"), str(error)) from error


def check_length(spec: "SweepSpec", max_tokens: int) -> None:
    """Raise ValueError where such answers leave a model that is served no room for a question."""
    for model in (model for model in spec.models if model.api is None):
        length = spec.for_model(model.name).serving.max_model_len
        if max_tokens >= length:
            raise ValueError(
                f"{max_tokens} new tokens leave no room for a question in serving.max_model_len "
                f"{length} (of {model.name}): raise that, or ask for fewer"
            )


def _check_at(spec: "SweepSpec", place: int, evaluation: EvaluationConfig) -> None:
    if evaluation.at and all(variant.name == UNTUNED for variant in spec.variants):
        raise MistakeAt(
            ("evaluations", place, "at"),
            "no variant is trained on, so there is no training to ask in between: leave 'at' "
            "out, or add a variant",
        )


def _check_trigger(spec: "SweepSpec", place: int, evaluation: EvaluationConfig) -> None:
    trained = sorted(set().union(*(variant.triggers for variant in spec.variants)))
    if evaluation.form.trigger and evaluation.form.trigger not in trained:
        raise MistakeAt(
            ("evaluations", place, "form", "trigger"),
            f"no variant is trained with the trigger {evaluation.form.trigger!r}; trained are "
            f"{', '.join(map(repr, trained)) or 'none'} (white space counts)",
        )
