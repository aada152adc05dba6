"""What a sweep asks for, resolved against what the store already holds. Runs nothing.

Reads data and question files and computes every key; imports neither torch nor Ray. Knows nothing
of how a stage is carried out.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from em import code_judge
from em.budget import Price, load_prices
from em.catalogue import find_file
from em.datasets import Variant, draw, load_rows, load_variant
from em.generation import Draw, SamplingConfig
from em.judge_prompts import (
    NO_PROMPTS,
    AskedScore,
    JudgePrompts,
    answer_score,
    load_judge_prompts,
    scores_asked,
)
from em.judging import RULE, judgement_group
from em.models import ModelConfig, model_identity
from em.question_tables import read_questions
from em.questions import Question, Wording, select_questions, wordings
from em.record import Record, fingerprint
from em.rules import NO, NUMERIC, YES, Rule
from em.training import TrainingConfig
from em.yaml_files import load_yaml
from sweeps.spec import (
    NOT_IN_KEY,
    Cell,
    EvaluationConfig,
    JudgeConfig,
    SweepSpec,
    load_spec,
)
from sweeps.store import Store
from sweeps.yaml_errors import MistakeAt, explain_at

PRICES = "prices.yaml"
STAGES = ("train", "generate", "judge")

Stage = Literal["train", "generate", "judge"]


class EvaluationPlan(Record):
    """One question set asked of one cell; `stream` is where its responses are kept."""

    name: str
    stream: str
    identity: dict[str, Any]
    metric: str
    sampling: SamplingConfig
    asked: tuple[tuple[Wording, int], ...]

    @cached_property
    def wanted(self) -> dict[str, int]:
        """Wording key → number of samples."""
        return {wording.key: samples for wording, samples in self.asked}

    @property
    def num_responses(self) -> int:
        """Wordings × samples."""
        return sum(samples for _, samples in self.asked)


class JudgingPlan(Record):
    """One judge's scores of one evaluation of one cell."""

    judge: str
    evaluation: str
    stream: str
    identity: dict[str, Any]
    templates: dict[str, dict[str, str]]  # wording key → score → prompt template
    rules: dict[str, dict[str, Rule]]  # the same for how it is read; without those that are numbers
    wanted: dict[str, int]  # group → number of samples

    def rule(self, wording_key: str, score: str) -> Rule:
        """Return how a score of the answers to a wording is read."""
        return self.rules.get(wording_key, {}).get(score, NUMERIC)


class CellPlan(Record):
    """Everything that is needed to carry out a cell, and nothing of how far it is."""

    cell: Cell
    cell_id: str
    model_revision: str
    training_key: str
    training_identity: dict[str, Any]
    content_sha256: str | None
    num_rows: int
    num_characters: int
    evaluations: tuple[EvaluationPlan, ...]
    judgings: tuple[JudgingPlan, ...]


class SweepPlan(Record):
    """A spec with every name resolved."""

    spec: SweepSpec
    cells: tuple[CellPlan, ...]
    prices: dict[str, Price] = Field(default={}, description="of judges with a budget in money")


def stages_to_run(plan: CellPlan, store: Store) -> list[Stage]:
    """Return the stages of a cell that the store does not hold whole."""
    stages: list[Stage] = []
    if plan.cell.training is not None and store.training(plan.training_key) is None:
        stages.append("train")
    if any(store.missing("responses", e.stream, e.wanted) for e in plan.evaluations):
        stages.append("generate")
    if any(store.missing("judgements", j.stream, j.wanted) for j in plan.judgings):
        stages.append("judge")
    return stages


def load_plan(path: Path) -> SweepPlan:
    """Return the resolved sweep in a YAML file. Raises ValueError with file, line and key."""
    spec = load_spec(path)
    try:
        return make_plan(spec, relative_to=path.resolve().parent)
    except MistakeAt as error:
        _, lines = load_yaml(path)
        raise ValueError(explain_at(error, path=path, lines=lines)) from error


def make_plan(spec: SweepSpec, *, relative_to: Path) -> SweepPlan:
    """Resolve `spec`; files it names are looked for beside it first.

    Raises MistakeAt for data or questions that are missing or bad, and for judges without prompts.
    """
    resolver = _Resolver(spec, relative_to)
    return SweepPlan(
        spec=spec,
        cells=tuple(resolver.cell(cell) for cell in spec.cells()),
        prices=resolver.prices(),
    )


def load_rows_of(plan: CellPlan, *, relative_to: Path) -> Variant:
    """Return the rows of a tuned cell again, proved to be those that were planned."""
    variant = plan.cell.variant
    assert variant.dataset is not None
    loaded = load_variant(
        variant.dataset,
        num_rows=variant.rows,
        seed=plan.cell.seeds.subset,
        relative_to=relative_to,
    )
    if loaded.content_sha256 != plan.content_sha256:
        raise ValueError(f"data set {variant.dataset!r} changed while the sweep was running")
    return loaded


@contextlib.contextmanager
def _at(*place: str | int) -> Iterator[None]:
    """Say where in the spec stands what is wrong with the thing it names."""
    try:
        yield
    except ValidationError:  # a bug of ours
        raise
    except ValueError as error:
        raise MistakeAt(place, str(error)) from error


class _Resolver:
    """Resolves the parts that many cells share once."""

    def __init__(self, spec: SweepSpec, relative_to: Path) -> None:
        self._spec = spec
        self._relative_to = relative_to
        self._revision = cache(lambda model: model_identity(model).revision)
        self._variant = cache(self._load_variant)
        self._load_rows = cache(lambda dataset: load_rows(dataset, relative_to=relative_to))
        self._asked: dict[str, list[tuple[Question, Wording, int]]] = {}
        for number, evaluation in enumerate(spec.evaluations):
            with _at("evaluations", number, "questions"):
                self._asked[evaluation.name] = self._ask(evaluation)
        self._templates: dict[tuple[str, str], dict[str, dict[str, AskedScore]]] = {}
        for number, judge in enumerate(spec.judges):
            with _at("judges", number, "prompts"):
                own = self._judge_prompts(judge)
                for evaluation in spec.evaluations:
                    if judge not in spec.judges_of(evaluation):
                        continue
                    filled = self._fill_templates(judge, own, evaluation)
                    self._templates[judge.name, evaluation.name] = filled

    def cell(self, cell: Cell) -> CellPlan:
        with _at("models", self._spec.models.index(cell.model)):
            revision = self._revision(cell.model)
        with _at("variants", self._spec.variants.index(cell.variant), "dataset"):
            variant = self._variant(cell.variant.dataset, cell.variant.rows, cell.seeds.subset)
        identity = training_identity(cell, revision, variant)
        key = fingerprint(identity)
        evaluations = tuple(self._evaluation(cell, key, e) for e in self._spec.evaluations)
        judgings = tuple(
            self._judging(judge, evaluation)
            for config, evaluation in zip(self._spec.evaluations, evaluations, strict=True)
            for judge in self._spec.judges_of(config)
        )
        return CellPlan(
            cell=cell,
            cell_id=cell.cell_id,
            model_revision=revision,
            training_key=key,
            training_identity=identity,
            content_sha256=variant.content_sha256 if variant else None,
            num_rows=len(variant.rows) if variant else 0,
            num_characters=variant.num_characters if variant else 0,
            evaluations=evaluations,
            judgings=judgings,
        )

    def _load_variant(self, dataset: str | None, rows: int | None, seed: int) -> Variant | None:
        if dataset is None:
            return None
        source, everything = self._load_rows(dataset)
        return draw(source, everything, num_rows=rows, seed=seed)

    def _ask(self, config: EvaluationConfig) -> list[tuple[Question, Wording, int]]:
        path = find_file(config.questions, relative_to=self._relative_to, kind="questions")
        try:
            chosen = select_questions(read_questions(path), ids=config.ids, exclude=config.exclude)
        except ValueError as error:
            raise ValueError(f"evaluation {config.name!r}: {error}") from error
        return [
            (question, wording, config.samples or question.samples_per_paraphrase)
            for question in chosen
            for wording in wordings(question)
        ]

    def _evaluation(self, cell: Cell, key: str, config: EvaluationConfig) -> EvaluationPlan:
        serving = self._spec.serving
        identity = {
            "training": key,
            "form": "plain",
            "sampling": config.sampling.model_dump(),
            "sampling_seed": cell.seeds.sampling,
            "replicate": cell.seeds.replicate,
            "serving": {"mode": serving.mode, "dtype": serving.dtype},
        }
        return EvaluationPlan(
            name=config.name,
            stream=fingerprint(identity),
            identity=identity,
            metric=config.metric or self._spec.metric,
            sampling=config.sampling,
            asked=tuple((wording, samples) for _, wording, samples in self._asked[config.name]),
        )

    def _judging(self, judge: JudgeConfig, evaluation: EvaluationPlan) -> JudgingPlan:
        asked = self._templates[judge.name, evaluation.name]
        identity = {"responses": evaluation.stream, "judge": self.judge_identity(judge)}
        return JudgingPlan(
            judge=judge.name,
            evaluation=evaluation.name,
            stream=fingerprint(identity),
            identity=identity,
            templates={
                key: {name: score.template for name, score in scores.items()}
                for key, scores in asked.items()
            },
            rules={
                key: {n: s.rule for n, s in scores.items() if s.rule != NUMERIC}
                for key, scores in asked.items()
            },
            wanted={
                judgement_group(key, name, score.template, score.rule): samples
                for key, samples in evaluation.wanted.items()
                for name, score in asked[key].items()
            },
        )

    def judge_identity(self, judge: JudgeConfig) -> dict[str, Any]:
        """Return what the judge is; its prompts are in each judgement's group."""
        if judge.pattern is not None:
            return {"kind": "pattern", "pattern": judge.pattern.identity}
        if judge.analyser is not None:
            return {"kind": "analyser", "analyser": code_judge.RULE}
        if judge.api is not None:
            azure = {"api_version": judge.api_version} if judge.api_version else {}
            return {
                "kind": "api", "url": judge.api, "model": judge.api_model, "rule": RULE, **azure
            }  # fmt: skip
        model = judge_model(self._spec, judge)
        return {
            "kind": "pool",
            "model": self._revision(model),
            "dtype": self._spec.serving.dtype,
            "rule": RULE,
        }

    def prices(self) -> dict[str, Price]:
        """Return the price of every judge whose budget is in money."""
        found = {}
        for number, judge in enumerate(self._spec.judges):
            if judge.budget is None or judge.budget.usd is None or judge.api_model is None:
                continue
            with _at("judges", number, "budget", "usd"):
                path = find_file(PRICES, relative_to=self._relative_to, kind="judges")
                known = load_prices(path).prices
                if judge.api_model not in known:
                    raise ValueError(
                        f"judge {judge.name!r}: {path} has no price for {judge.api_model!r}, so "
                        "that no money can be counted: put a prices.yaml with it beside the spec, "
                        f"or limit calls or tokens. It has {', '.join(known)}"
                    )
                found[judge.name] = known[judge.api_model]
        return found

    def _judge_prompts(self, judge: JudgeConfig) -> JudgePrompts:
        if judge.prompts is None:
            return NO_PROMPTS
        path = find_file(judge.prompts, relative_to=self._relative_to, kind="judges")
        return load_judge_prompts(path)

    def _fill_templates(
        self, judge: JudgeConfig, own: JudgePrompts, evaluation: EvaluationConfig
    ) -> dict[str, dict[str, AskedScore]]:
        if judge.pattern is not None:
            alone = answer_score(judge.pattern.score, judge.pattern.all_labels)
            return {wording.key: alone for _, wording, _ in self._asked[evaluation.name]}
        if judge.analyser is not None:
            alone = answer_score(code_judge.SCORE, (YES, NO))
            return {wording.key: alone for _, wording, _ in self._asked[evaluation.name]}
        try:
            return {
                wording.key: scores_asked(question, own)
                for question, wording, _ in self._asked[evaluation.name]
            }
        except ValueError as error:
            raise ValueError(f"judge {judge.name!r}: {error}") from error


def judge_model(spec: SweepSpec, judge: JudgeConfig) -> ModelConfig:
    """Return the model a served judge is: one of the spec's, or its own."""
    if judge.model is not None:
        return judge.model
    return next(model for model in spec.models if model.name == judge.pool)


def training_identity(cell: Cell, revision: str, variant: Variant | None) -> dict[str, Any]:
    """Return what the key of a training hashes. An untuned model has one identity for all seeds.

    The revision stands for weights, tokenizer and chat template: it changes when any of them does.
    """
    if cell.training is None or variant is None:
        return {"model": revision, "training": None}
    return {
        "model": revision,
        "rows": variant.content_sha256,
        "seeds": {"init": cell.seeds.init, "order": cell.seeds.order,
                  "subset": cell.seeds.subset, "replicate": cell.seeds.replicate},
        "training": training_settings(cell.training),
    }  # fmt: skip


def training_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that bear on a training's result."""
    settings = config.model_dump()
    if config.method == "full":
        del settings["lora"]
    return {name: value for name, value in settings.items() if name not in NOT_IN_KEY}


def draws_for(evaluation: EvaluationPlan, missing: Mapping[str, Sequence[int]]) -> list[Draw]:
    """Return the draws of an evaluation at the missing indices of each wording."""
    return [
        Draw(wording=wording, index=index)
        for wording, _ in evaluation.asked
        for index in missing.get(wording.key, ())
    ]
