"""Which scores a judge gives to a question: by whose prompts, and how each is read.

A judge's own prompts go before those of the question file. Knows nothing of specs or of readers.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from em.judging import ANSWER
from em.questions import SCORES, Question, check_judge_prompt, check_label_sets
from em.record import Record
from em.rules import EXACT, PUBLISHED_LABELS, Rule, label_rule
from em.told import cut, first_mistake
from em.yaml_files import checked, load_yaml


class JudgePrompts(Record):
    """A judge's own prompts by score, and the label sets of those that are not numbers."""

    description: str = ""
    prompts: dict[str, str] = Field(min_length=1)
    labels: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @property
    def rules(self) -> dict[str, Rule]:
        """How the scores that are words are read."""
        known = PUBLISHED_LABELS | self.labels
        return {score: label_rule(known[score]) for score in self.prompts if score in known}


NO_PROMPTS = JudgePrompts.model_construct(prompts={}, labels={})


class AskedScore(Record):
    """One score that is wanted of every answer to a wording."""

    template: str
    rule: Rule


def load_judge_prompts(path: Path) -> JudgePrompts:
    """Return the prompts in a YAML file. Raises ValueError with the file for what is wrong in it.

    Both scores from 0 to 100 or neither must be there; every other score needs a label set.
    """
    data, _ = load_yaml(path)
    prompts = data.get("prompts") if isinstance(data, dict) else None
    labels = data.get("labels") if isinstance(data, dict) else None
    worded = set(labels) if isinstance(labels, dict) else set()
    numeric = isinstance(prompts, Mapping) and set(SCORES) & (set(prompts) - worded)
    if (
        not isinstance(prompts, Mapping)
        or not prompts
        or (numeric and not set(SCORES) <= set(prompts))
    ):
        raise ValueError(
            f"{path}: expected 'prompts' with {' and '.join(SCORES)}, or with scores of their own "
            "and their 'labels'"
        )
    try:
        for score, prompt in prompts.items():
            check_judge_prompt(score, prompt)
        for words in labels.values() if isinstance(labels, dict) else ():
            if isinstance(words, list):
                label_rule(words)  # before pydantic, which cannot say that YAML reads YES as true
        found = checked(TypeAdapter(JudgePrompts), data)
        check_label_sets(found.prompts, found.labels, numeric=True)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_mistake(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {cut(str(error))}") from error
    return found


def scores_asked(question: Question, own: JudgePrompts = NO_PROMPTS) -> dict[str, AskedScore]:
    """Return what a judge with the prompts `own` is asked about an answer to `question`.

    Raises ValueError where a score of the question's type has no prompt.
    """
    if question.type == "free_form":
        return {EXACT: AskedScore(template=ANSWER, rule=question.rules[EXACT])}
    rules = dict(question.rules)
    if question.type == "free_form_judge":
        rules = {s: own.rules.get(s, rule) for s, rule in rules.items()} or own.rules
        if not rules:
            raise ValueError(
                f"question {question.id!r} has no judge prompt for a score with labels; name a "
                "file with the judge's own 'prompts' and 'labels'"
            )
    prompts = question.judge_prompts | own.prompts
    lacking = [score for score in rules if score not in prompts]
    if lacking:
        raise ValueError(
            f"question {question.id!r} has no judge prompt for {' and '.join(lacking)}; name a "
            "file with the judge's own 'prompts'"
        )
    return {s: AskedScore(template=prompts[s], rule=rule) for s, rule in rules.items()}


def answer_score(name: str, labels: tuple[str, ...]) -> dict[str, AskedScore]:
    """Return the one score of a judge that looks at the answer itself and says a label."""
    return {name: AskedScore(template=ANSWER, rule=label_rule(labels))}
