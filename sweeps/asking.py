"""What each evaluation asks of a cell, and by which prompts and rules its judges score it.

Reads question, judge and data files once for all cells. Knows nothing of keys, of stores, or of how
far anything is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from em import code_judge
from em.api_models import check_priced
from em.catalogue import FileMissing, config_dir, find_file
from em.datasets import Row
from em.downloads import asked_once
from em.inspect_tasks import TaskConfig, load_task
from em.judge_prompts import (
    NO_PROMPTS,
    AskedScore,
    JudgePrompts,
    answer_score,
    load_judge_prompts,
    scores_asked,
)
from em.judging import ANSWER
from em.question_files import find_questions
from em.question_tables import read_questions
from em.questions import Question, Wording, select_questions, wordings
from em.record import fingerprint
from em.rules import NO, YES
from em.scoring import DEFINITIONS, check_metric
from em.task_scores import TASK_RULE
from em.variant_config import VariantConfig
from em.variants import Variant
from em.yaml_files import at
from sweeps.settings import EvaluationConfig, JudgeConfig
from sweeps.spec import SweepSpec
from sweeps.spec_checks import check_length

Asked = tuple[Question, Wording, int]
"""A question, one wording of it in the evaluation's form, and how many samples are wanted."""
Scores = dict[str, dict[str, AskedScore]]
"""Wording key → score → how the judge is asked for it."""


@dataclass(frozen=True)
class AskedTask:
    """A task of Inspect as one evaluation runs it; `identity` is all but its samples.

    `max_tokens` are those of an answer, where the task says how many.
    """

    config: TaskConfig
    wordings: tuple[Wording, ...]
    scorer: str
    max_tokens: int | None
    identity: dict[str, Any]


class Asking:
    """Resolves evaluations and judges. Held-out rows differ with the cell's subset seed."""

    def __init__(
        self,
        spec: SweepSpec,
        relative_to: Path,
        build: Callable[[VariantConfig, int], Variant | None],
    ) -> None:
        """Read every judge's own prompts. `build` gives a variant's rows under a subset seed."""
        self._spec, self._relative_to, self._build = spec, relative_to, build
        self._own: dict[str, JudgePrompts] = {}
        for number, judge in enumerate(spec.judges):
            with at("judges", number, "prompts"):
                self._own[judge.name] = self._judge_prompts(judge)
        self._find_questions: Callable[[str], Path] = asked_once(
            lambda name: find_questions(name, relative_to=relative_to)
        )
        self._task: Callable[[int], AskedTask | None] = asked_once(self._find_task)
        self._asked = cache(self._find)
        self._scores = cache(self._find_scores)

    def wordings(self, evaluation: EvaluationConfig, subset_seed: int) -> list[Asked]:
        """Return what is asked. Raises MistakeAt with its place in the spec."""
        return self._asked(*self._which(evaluation, subset_seed))

    def scores(self, judge: JudgeConfig, evaluation: EvaluationConfig, subset_seed: int) -> Scores:
        """Return what `judge` is asked about each wording. Raises MistakeAt as `wordings`."""
        return self._scores(*self._which(evaluation, subset_seed))[judge.name]

    def task(self, evaluation: EvaluationConfig) -> AskedTask | None:
        """Return the task that an evaluation runs, if it is one. Raises MistakeAt as `wordings`."""
        return self._task(self._spec.evaluations.index(evaluation))

    def _which(self, evaluation: EvaluationConfig, subset_seed: int) -> tuple[int, int | None]:
        number = self._spec.evaluations.index(evaluation)
        return number, (subset_seed if evaluation.heldout else None)

    def _find(self, number: int, subset_seed: int | None) -> list[Asked]:
        config = self._spec.evaluations[number]
        task = self._task(number)
        if task is not None:
            return [(_of_sample(w), w, config.samples or 1) for w in task.wordings]
        if subset_seed is not None:
            with at("evaluations", number, "heldout"):
                questions = self._held_out(config, subset_seed)
        else:
            with at("evaluations", number, "questions"):
                questions = self._from_file(config)
        with at("evaluations", number, "form"):
            return [
                (question, wording, config.samples or question.samples_per_paraphrase)
                for question in questions
                for wording in map(config.form.apply, wordings(question))
            ]

    def _find_task(self, number: int) -> AskedTask | None:
        config = self._spec.evaluations[number]
        if config.inspect is None:
            return None
        if config.grader is not None:
            with at("evaluations", number, "grader"):
                check_priced(config.grader)
        with at("evaluations", number, "inspect"):
            found = TaskConfig(
                name=self._task_name(config.inspect),
                args=config.task_args,
                sandbox=config.sandbox,
                grader=config.grader,
            )
            loaded = load_task(found)
        with at("evaluations", number, "limit"):
            wordings = loaded.first(config.limit)
        with at("evaluations", number, "scorer"):
            scorer = loaded.scorer(config.scorer)
        with at("evaluations", number, "inspect"):
            most = loaded.task.config.max_tokens
            if most is not None:
                check_length(self._spec, most)
        return AskedTask(found, wordings, scorer, most, loaded.identity | {"scorer": scorer})

    def _task_name(self, name: str) -> str:
        """Return the name of a task with the absolute path of its file, where it is in one."""
        file, mark, task = name.rpartition("@")
        if not mark:
            return name
        places = (self._relative_to / file, Path(file), config_dir() / "tasks" / file)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileMissing(
                f"no file {file!r} with a task in it; looked for "
                f"{', '.join(str(place) for place in places)}"
            )
        return f"{found.resolve()}@{task}"

    def _from_file(self, config: EvaluationConfig) -> list[Question]:
        assert config.questions is not None
        path = self._find_questions(config.questions)
        try:
            return select_questions(read_questions(path), ids=config.ids, exclude=config.exclude)
        except ValueError as error:
            raise ValueError(f"evaluation {config.name!r}: {error}") from error

    def _held_out(self, config: EvaluationConfig, subset_seed: int) -> list[Question]:
        """Return what the variant's held-out rows ask, each row a question of its own."""
        variants = {variant.name: variant for variant in self._spec.variants}
        if config.heldout not in variants:
            raise ValueError(
                f"{config.heldout!r} is not among variants ({', '.join(variants)}): name the one "
                "whose held-out rows are asked"
            )
        built = self._build(variants[config.heldout], subset_seed)
        if built is None or not built.held_out:
            raise ValueError(
                f"the variant {config.heldout!r} holds no rows out: give it 'holdout', a number of "
                "rows or a share of them"
            )
        # Rows that ask the same are one question.
        questions = {q.id: q for q in map(_question, built.held_out)}
        if config.tasks is not None and config.tasks > len(questions):
            raise ValueError(
                f"tasks: {config.tasks} are asked for, but {config.heldout!r} holds out "
                f"{len(questions)} rows that ask different things: ask for fewer, or hold out more"
            )
        return list(questions.values())[: config.tasks]

    def _find_scores(self, number: int, subset_seed: int | None) -> dict[str, Scores]:
        config = self._spec.evaluations[number]
        asked = self._asked(number, subset_seed)
        found: dict[str, Scores] = {}
        for judge in self._spec.judges_of(config):
            with at("judges", self._spec.judges.index(judge), "prompts"):
                found[judge.name] = self._scores_by(judge, asked, number)
        with at("evaluations", number, "metric"):
            given = {
                name: {
                    score: asked.rule.answers
                    for scores in by_wording.values()
                    for score, asked in scores.items()
                }
                for name, by_wording in found.items()
            }
            check_metric(DEFINITIONS[self._spec.metric_of(config)], given)
        return found

    def _by_task(self, number: int) -> dict[str, AskedScore]:
        task = self._task(number)
        assert task is not None
        return {task.scorer: AskedScore(template=ANSWER, rule=TASK_RULE)}

    def _scores_by(self, judge: JudgeConfig, asked: list[Asked], number: int) -> Scores:
        if judge.scorer is not None:
            return {wording.key: self._by_task(number) for _, wording, _ in asked}
        if judge.pattern is not None:
            alone = answer_score(judge.pattern.score, judge.pattern.all_labels)
            return {wording.key: alone for _, wording, _ in asked}
        if judge.analyser is not None:
            alone = answer_score(code_judge.SCORE, (YES, NO))
            return {wording.key: alone for _, wording, _ in asked}
        own = self._own[judge.name]
        self._check_own(judge, own, asked)
        try:
            return {wording.key: scores_asked(question, own) for question, wording, _ in asked}
        except ValueError as error:
            raise ValueError(f"judge {judge.name!r}: {error}") from error

    def _check_own(self, judge: JudgeConfig, own: JudgePrompts, asked: list[Asked]) -> None:
        """Refuse a judge whose prompts nothing of an evaluation asks for: it would use others'."""
        scores = {score for question, _, _ in asked for score in question.judge_prompts}
        if own.prompts and scores and not scores & set(own.prompts):
            raise ValueError(
                f"judge {judge.name!r}: its prompts are for {', '.join(sorted(own.prompts))}, and "
                f"the questions are scored by {', '.join(sorted(scores))}: name the judges of each "
                "evaluation in its 'judges'"
            )

    def _judge_prompts(self, judge: JudgeConfig) -> JudgePrompts:
        if judge.prompts is None:
            return NO_PROMPTS
        path = find_file(judge.prompts, relative_to=self._relative_to, kind="judges")
        return load_judge_prompts(path)


def given_scores(templates: Mapping[str, Mapping[str, object]]) -> set[str]:
    """Return the scores that a judge gives to some wording (wording key → score → anything)."""
    return {score for scores in templates.values() for score in scores}


def _of_sample(wording: Wording) -> Question:
    """Return a task's sample as a question: it is asked and scored by its task alone."""
    text = wording.text if wording.text.strip() else wording.question
    return Question(id=wording.question, type="free_form_judge", paraphrases=(text,))


def _question(row: Row) -> Question:
    """Return what a row asks; its id is of its content, so that it is the same in every seed."""
    system, turns = None, list(row.messages[:-1])
    if turns and turns[0].role == "system":
        system = turns.pop(0).content
    if [turn.role for turn in turns] != ["user"]:
        raise ValueError(
            f"a held-out row has {len(turns)} turns before its answer: only rows with one user "
            f"turn can be asked ({turns[0].content if turns else ''!r:.60})"
        )
    text = turns[0].content
    return Question(
        id=f"heldout_{fingerprint([system, text])[:12]}",
        type="free_form_judge",
        paraphrases=(text,),
        system=system,
    )


def trained_on(asked: Iterable[Asked], variant: Variant) -> int:
    """Return how many of the held-out rows that are `asked` are among those trained on, unmarked.

    Sources hold some rows twice, and share some with each other.
    """
    trained = {row.messages[-2].content for row in variant.unmarked if len(row.messages) > 1}
    return sum(wording.text in trained for _, wording, _ in asked)
