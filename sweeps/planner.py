"""From a spec to its plan: every name resolved, every key computed. Runs nothing.

Reads data and question files; imports neither torch nor Ray. Knows nothing of how a stage is
carried out, or of what a store holds.
"""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from em.api_models import check_priced, check_trainable
from em.budget import Price, load_prices
from em.catalogue import find_file
from em.downloads import asked_once, not_at_hand
from em.judging import judgement_group
from em.models import model_identity
from em.record import fingerprint
from em.rules import NUMERIC, Rule
from em.snapshots import num_steps, snapshot_steps
from em.sources import load_source
from em.variant_config import UNTUNED, VariantConfig
from em.variants import Load, Variant, build_variant
from em.yaml_files import at, load_yaml
from sweeps.asking import Asking, trained_on
from sweeps.keys import judge_identity, response_identity, training_identity
from sweeps.plan import CellPlan, EvaluationPlan, JudgingPlan, SweepPlan, Unresolved, name_at
from sweeps.settings import EvaluationConfig, JudgeConfig
from sweeps.spec import Cell, SweepSpec, load_spec
from sweeps.yaml_errors import MistakeAt, explain_at

PRICES = "prices.yaml"

Scored = tuple[dict[str, dict[str, str]], dict[str, dict[str, Rule]], dict[str, int]]
"""Of a judge's scores: templates and rules by wording and score, samples by group."""


def load_plan(path: Path, *, partly: bool = False) -> SweepPlan:
    """Return the resolved sweep in a YAML file. Raises ValueError with file, line and key.

    `partly` as in make_plan.
    """
    return plan_of(load_spec(path), path, partly=partly)


def plan_of(spec: SweepSpec, path: Path, *, partly: bool = False) -> SweepPlan:
    """Return the same of a spec that was read from `path`, with some of its seeds or all."""
    with explained(path):
        return make_plan(spec, relative_to=path.resolve().parent, partly=partly)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise ValueError with file, line and key for a MistakeAt of the block in the spec `path`."""
    try:
        yield
    except MistakeAt as error:
        _, lines = load_yaml(path)
        raise ValueError(explain_at(error, path=path, lines=lines)) from error


def make_plan(spec: SweepSpec, *, relative_to: Path, partly: bool = False) -> SweepPlan:
    """Resolve `spec`; files it names are looked for beside it first.

    With `partly`, cells whose data or questions cannot be fetched now are listed as unresolved.
    Raises MistakeAt for data or questions that are missing or bad, for judges without prompts, and
    for a metric that no judge of its evaluation gives the scores of.
    """
    resolver = _Resolver(spec, relative_to)
    cells, unresolved = [], []
    for cell in spec.cells():
        try:
            cells.append(resolver.cell(cell))
        except MistakeAt as error:
            if not partly or not not_at_hand(error):
                raise
            unresolved.append(Unresolved(cell=cell, why=str(error)))
    return SweepPlan(
        spec=spec,
        cells=tuple(cells),
        unresolved=tuple(unresolved),
        prices=resolver.prices(),
    )


def load_rows_of(plan: CellPlan, *, relative_to: Path) -> Variant:
    """Return the rows of a tuned cell again, proved to be those that were planned."""
    built = build_variant(
        plan.cell.variant, subset_seed=plan.cell.seeds.subset, relative_to=relative_to
    )
    if built.content_sha256 != plan.content_sha256:
        named = " or ".join(map(repr, plan.cell.variant.datasets))
        raise ValueError(f"data set {named} changed while the sweep was running")
    return built


class _Resolver:
    """Resolves the parts that many cells share once."""

    def __init__(self, spec: SweepSpec, relative_to: Path) -> None:
        self._spec = spec
        self._relative_to = relative_to
        self._revision = cache(lambda model: model_identity(model).revision)
        self._variant = cache(self._load_variant)
        self._load_source: Load = asked_once(
            lambda name: load_source(name, relative_to=relative_to)
        )
        self._asking = Asking(spec, relative_to, self._variant)
        self._judge = cache(self._judge_identity)
        self._known_scored: dict[tuple[str, str, int | None], Scored] = {}

    def cell(self, cell: Cell) -> CellPlan:
        with at("models", self._spec.models.index(cell.model)):
            revision = self._revision(cell.model)
        with at("variants", self._spec.variants.index(cell.variant)):
            variant = self._variant(cell.variant, cell.seeds.subset)
        identity = training_identity(cell, revision, variant)
        key = fingerprint(identity)
        # By step, the end first: an engine that holds one model at a time changes it less often.
        ends = [(config, None) for config in self._spec.evaluations]
        asked = [*ends, *self._snapshots(cell, variant)]
        evaluations = [(config, self._evaluation(cell, key, config, at)) for config, at in asked]
        judgings = tuple(
            self._judging(judge, config, evaluation, cell)
            for config, evaluation in evaluations
            for judge in self._spec.judges_of(config)
        )
        with at("models", self._spec.models.index(cell.model)):
            self._check_api(cell, variant)
        warnings = (*variant.warnings, *self._trained_on(cell, variant)) if variant else ()
        return CellPlan(
            cell=cell,
            cell_id=cell.cell_id,
            model_revision=revision,
            training_key=key,
            training_identity=identity,
            content_sha256=variant.content_sha256 if variant else None,
            num_rows=len(variant.rows) if variant else 0,
            num_characters=variant.num_characters if variant else 0,
            num_held_out=len(variant.held_out) if variant else 0,
            steps=variant.steps if variant else (),
            data_warnings=warnings,
            snapshots=tuple(dict.fromkeys(at for _, at in asked if at is not None)),
            evaluations=tuple(evaluation for _, evaluation in evaluations),
            judgings=judgings,
        )

    def _check_api(self, cell: Cell, variant: Variant | None) -> None:
        """Raise ValueError where an API is known not to train, or answer, as the cell asks."""
        api = cell.model.api
        if api is None:
            return
        check_priced(api)
        if variant is not None:
            check_trainable(api, variant.rows)

    def _snapshots(
        self, cell: Cell, variant: Variant | None
    ) -> list[tuple[EvaluationConfig, int | None]]:
        """Return which evaluations ask the cell after which steps of its training, step by step."""
        config = cell.local_training  # what an API keeps of earlier steps is not asked
        if config is None or variant is None:
            return []
        total = num_steps(
            len(variant.rows), epochs=config.epochs, effective_batch=config.effective_batch
        )
        found = []
        for number, evaluation in enumerate(self._spec.evaluations):
            with at("evaluations", number, "at"):
                try:
                    steps = snapshot_steps(evaluation.at or (), total)
                except ValueError as error:
                    raise ValueError(f"{cell.cell_id}: {error}") from error
                found += [(step, number) for step in steps]
        return [(self._spec.evaluations[number], step) for step, number in sorted(found)]

    def _trained_on(self, cell: Cell, variant: Variant) -> list[str]:
        """Say which held-out rows this cell is asked although it is trained on them."""
        said = []
        for config in self._spec.evaluations:
            if not config.heldout:
                continue
            asked = self._asking.wordings(config, cell.seeds.subset)
            num = trained_on(asked, variant)
            if num:
                said.append(
                    f"evaluation {config.name!r}: {num} of the {len(asked)} held-out tasks of "
                    f"{config.heldout!r} are among the rows that {cell.variant.name!r} with seed "
                    f"{cell.seed_label} is trained on: its answers to them are no test"
                )
        return said

    def _load_variant(self, config: VariantConfig, subset_seed: int) -> Variant | None:
        if config.name == UNTUNED:
            return None
        return build_variant(
            config,
            subset_seed=subset_seed,
            relative_to=self._relative_to,
            load=self._load_source,
        )

    def _evaluation(
        self, cell: Cell, key: str, config: EvaluationConfig, step: int | None
    ) -> EvaluationPlan:
        asked = self._asking.wordings(config, cell.seeds.subset)
        task = self._asking.task(config)
        inspect = task.identity if task else None
        identity = response_identity(
            key, cell, config, self._spec.serving, step=step, inspect=inspect
        )
        return EvaluationPlan(
            name=name_at(config.name, step),
            step=step,
            stream=fingerprint(identity),
            identity=identity,
            metric=self._spec.metric_of(config),
            sampling=config.sampling,
            asked=tuple((wording, samples) for _, wording, samples in asked),
            task=task.config if task else None,
            scorer=task.scorer if task else "",
            longest=(task and task.max_tokens) or config.sampling.max_tokens,
        )

    def _judging(
        self, judge: JudgeConfig, config: EvaluationConfig, evaluation: EvaluationPlan, cell: Cell
    ) -> JudgingPlan:
        templates, rules, wanted = self._scored(judge, config, cell.seeds.subset)
        identity = {
            "responses": evaluation.stream,
            "judge": self._judge(judge.name),
        }
        return JudgingPlan(
            judge=judge.name,
            demonstration=judge.demonstration,
            evaluation=evaluation.name,
            step=evaluation.step,
            stream=fingerprint(identity),
            identity=identity,
            templates=templates,
            rules=rules,
            wanted=wanted,
        )

    def _judge_identity(self, name: str) -> dict[str, Any]:
        judge = next(judge for judge in self._spec.judges if judge.name == name)
        return judge_identity(self._spec, judge, self._revision)

    def _find_scored(
        self, judge: JudgeConfig, config: EvaluationConfig, subset_seed: int
    ) -> Scored:
        """Return templates, rules and wanted groups: the same for all cells asked the same."""
        asked = self._asking.scores(judge, config, subset_seed)
        samples = {w.key: n for _, w, n in self._asking.wordings(config, subset_seed)}
        templates = {key: {n: s.template for n, s in by.items()} for key, by in asked.items()}
        rules = {
            key: {n: s.rule for n, s in by.items() if s.rule != NUMERIC}
            for key, by in asked.items()
        }
        wanted = {
            judgement_group(key, name, score.template, score.rule): num
            for key, num in samples.items()
            for name, score in asked[key].items()
        }
        return templates, rules, wanted

    def _scored(self, judge: JudgeConfig, config: EvaluationConfig, subset_seed: int) -> Scored:
        place = (judge.name, config.name, subset_seed if config.heldout else None)
        if place not in self._known_scored:
            self._known_scored[place] = self._find_scored(judge, config, subset_seed)
        return self._known_scored[place]

    def prices(self) -> dict[str, Price]:
        """Return the price of every judge behind an address that has one in the price table.

        Raises MistakeAt where a budget is in money and the judge has no price.
        """
        found = {}
        for number, judge in enumerate(self._spec.judges):
            if judge.api_model is None:
                continue
            with at("judges", number, "budget", "usd"):
                path = find_file(PRICES, relative_to=self._relative_to, kind="judges")
                known = load_prices(path).prices
                if judge.api_model in known:
                    found[judge.name] = known[judge.api_model]
                elif judge.budget is not None and judge.budget.usd is not None:
                    raise ValueError(
                        f"judge {judge.name!r}: {path} has no price for {judge.api_model!r}, so "
                        "that no money can be counted: put a prices.yaml with it beside the spec, "
                        f"or limit calls or tokens. It has {', '.join(known)}"
                    )
        return found
