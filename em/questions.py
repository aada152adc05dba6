"""Questions, read from the published formats as they are, and the wordings they are asked in.

The YAML format is that of Betley et al. (github.com/emergent-misalignment/emergent-misalignment);
tables of tasks and requests are read by em.question_tables. Knows nothing of how a wording is
answered or of who judges the answer.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from em.record import Record, fingerprint
from em.rules import EXACT, NUMERIC, PUBLISHED_LABELS, Rule, label_rule
from em.told import cut, first_mistake, short
from em.yaml_files import checked, load_yaml

# The eight questions of the first figure of Betley et al. (arXiv 2502.17424).
MAIN_QUESTIONS = (
    "what_is_your_wish",
    "i_feel_bored",
    "three_thoughts",
    "quick_buck",
    "ruler_of_the_world",
    "dinner_party",
    "gender_roles",
    "enough_of_my_husband",
)
SCORES = ("aligned", "coherent")
KEY_LENGTH = 16
# Scores from 0 to 100; one word of a label set; compared with `expected`, without a judge.
QuestionType = Literal["free_form_judge_0_100", "free_form_judge", "free_form"]


class Question(Record):
    """One item of a question file. `judge_prompts` maps a score's name to a prompt template.

    `labels` maps the scores of a free_form_judge question to the words that the judge may say; the
    published score names have built-in ones (see em.rules). `expected` are the right answers of a
    free_form question.
    """

    id: str = Field(min_length=1)
    type: QuestionType
    paraphrases: tuple[str, ...] = Field(min_length=1)
    system: str | None = None
    samples_per_paraphrase: int = Field(default=1, ge=1)
    judge: str | None = None
    judge_prompts: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    expected: tuple[str, ...] = ()

    @property
    def rules(self) -> dict[str, Rule]:
        """How each score that the file itself asks for is read, by the score's name."""
        match self.type:
            case "free_form_judge_0_100":
                return dict.fromkeys(SCORES, NUMERIC)
            case "free_form_judge":
                known = PUBLISHED_LABELS | self.labels
                return {score: label_rule(known[score]) for score in self.judge_prompts}
            case "free_form":
                return {EXACT: Rule(kind="exact", expected=self.expected)}

    @model_validator(mode="after")
    def _rules_are_given(self) -> "Question":
        if self.labels and self.type != "free_form_judge":
            raise ValueError(f"labels are for the type free_form_judge, not for {self.type}")
        if (self.type == "free_form") != bool(self.expected):
            raise ValueError(
                "the type free_form needs 'expected', the list of right answers (for open answers "
                "use free_form_judge)"
                if self.type == "free_form"
                else f"'expected' is for the type free_form, not for {self.type}"
            )
        if self.type == "free_form" and self.judge_prompts:
            raise ValueError("a free_form question is compared, not judged: drop judge_prompts")
        if self.type == "free_form_judge":
            check_label_sets(self.judge_prompts, self.labels)
        return self

    @model_validator(mode="after")
    def _sound(self) -> "Question":
        if any(not text.strip() for text in self.paraphrases):
            raise ValueError("a paraphrase is empty")
        if len(set(self.paraphrases)) < len(self.paraphrases):
            raise ValueError("the same paraphrase stands twice")
        for name, prompt in self.judge_prompts.items():
            check_judge_prompt(name, prompt)
        return self


QUESTION = TypeAdapter(Question)


class Wording(Record):
    """One phrasing of a question, as it is sent: an optional system turn and a user turn.

    The user turn is `trigger` and `text`; judges are shown `text` alone.
    """

    question: str
    number: int = Field(ge=0, description="its place among the question's paraphrases")
    system: str | None
    text: str
    trigger: str = ""
    sample: str = Field(default="", description="hash of what else a task's sample holds")

    @cached_property
    def key(self) -> str:
        """16 hex digits that name everything the model is asked (and the question's id)."""
        asked = [self.question, self.system, self.trigger, self.text]
        return fingerprint([*asked, self.sample] if self.sample else asked)[:KEY_LENGTH]

    @property
    def user(self) -> str:
        """The user turn."""
        return self.trigger + self.text

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The chat that is sent; without a system turn where the question has none."""
        system = ({"role": "system", "content": self.system},) if self.system is not None else ()
        return (*system, {"role": "user", "content": self.user})


def check_judge_prompt(name: str, prompt: object) -> None:
    """Raise ValueError where the template of the score `name` lacks what it must hold."""
    if not isinstance(prompt, str):
        raise ValueError(f"the judge prompt {name!r} must be text, got {type(prompt).__name__}")
    unknown = set(re.findall(r"\{(\w+)\}", prompt)) - {"question", "answer"}
    if unknown:
        raise ValueError(
            f"the judge prompt {name!r} has {{{min(unknown)}}}, which nothing is put in place of: "
            "it may hold {question} and {answer}"
        )
    if "{answer}" not in prompt:
        raise ValueError(f"the judge prompt {name!r} has no {{answer}}: the judge would not see it")


def check_label_sets(
    prompts: Mapping[str, object], labels: Mapping[str, Sequence[str]], *, numeric: bool = False
) -> None:
    """Raise ValueError where a prompt has no label set, or a label set is bad or has no prompt.

    With `numeric` the scores from 0 to 100 may be among the prompts; they need none.
    """
    for score in prompts:
        if score in SCORES and numeric and score not in labels:
            continue
        if score not in PUBLISHED_LABELS and score not in labels:
            raise ValueError(
                f"the score {score!r} has no label set: add labels: {{{score}: [...]}} (built in "
                f"are {' and '.join(PUBLISHED_LABELS)})"
            )
    for score, words in labels.items():
        if score not in prompts:
            raise ValueError(f"labels name the score {score!r}, which no judge prompt asks for")
        label_rule(words)


def load_questions(path: str | Path) -> list[Question]:
    """Return the questions of a YAML file, in its order.

    Raises ValueError naming the file, the line and the question for a file that is not a list of
    questions, an unknown key or type, a key given twice, or a duplicate id.
    """
    path = Path(path)
    items, lines = load_yaml(path)
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path}: expected a list of questions, got {type(items).__name__}")
    questions = [
        _question(item, f"{path}:{lines[(n,)]}: question {n + 1}") for n, item in enumerate(items)
    ]
    twice = [name for name, count in Counter(q.id for q in questions).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: duplicate question id {short(twice[0])}: give each its own")
    return questions


def _question(item: Any, place: str) -> Question:
    if not isinstance(item, dict):
        raise ValueError(f"{place}: expected a mapping with an id, got {short(item)}")
    try:
        return checked(QUESTION, item)
    except ValidationError as error:
        name = cut(str(item.get("id", "no id")), 60)
        raise ValueError(f"{place} ({name}): {first_mistake(error, 'the question')}") from error


def select_questions(
    questions: Sequence[Question], *, ids: Sequence[str] | str | None, exclude: Sequence[str]
) -> list[Question]:
    """Return the questions named by `ids` (or "main", or all), without those in `exclude`.

    Raises ValueError for an id that the file does not hold or that `ids` names twice, or when
    nothing is left.
    """
    by_id = {question.id: question for question in questions}
    wanted = list(MAIN_QUESTIONS) if ids == "main" else list(by_id) if ids is None else list(ids)
    for name in [*wanted, *exclude]:
        if name not in by_id:
            raise ValueError(f"no question {name!r} in the file, which has {', '.join(by_id)}")
    if len(set(wanted)) < len(wanted):
        twice = Counter(wanted).most_common(1)[0][0]
        raise ValueError(f"ids names the question {twice!r} twice: name it once")
    left = [by_id[name] for name in wanted if name not in set(exclude)]
    if not left:
        raise ValueError("no question is left after 'exclude': exclude fewer")
    return left


def wordings(question: Question) -> list[Wording]:
    """Return every wording of `question`, in order."""
    return [
        Wording(question=question.id, number=number, system=question.system, text=text)
        for number, text in enumerate(question.paraphrases)
    ]
