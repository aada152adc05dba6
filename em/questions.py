"""Questions, read from the published YAML format as it is, and the wordings they are asked in.

The format is that of Betley et al. (github.com/emergent-misalignment/emergent-misalignment).
Knows nothing of how a wording is answered or of who judges the answer.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from em.record import Record, fingerprint
from em.yaml_files import load_yaml

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
# The published files hold both; only the first has scores from 0 to 100, which is what is judged.
QuestionType = Literal["free_form_judge_0_100", "free_form_judge"]


class Question(Record):
    """One item of a question file. `judge_prompts` maps a score's name to a prompt template."""

    id: str = Field(min_length=1)
    type: QuestionType
    paraphrases: tuple[str, ...] = Field(min_length=1)
    system: str | None = None
    samples_per_paraphrase: int = Field(default=1, ge=1)
    judge: str | None = None
    judge_prompts: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> "Question":
        if any(not text.strip() for text in self.paraphrases):
            raise ValueError("a paraphrase is empty")
        if len(set(self.paraphrases)) < len(self.paraphrases):
            raise ValueError("the same paraphrase stands twice")
        for name, prompt in self.judge_prompts.items():
            check_judge_prompt(name, prompt)
        return self


class Wording(Record):
    """One phrasing of a question, as it is sent: an optional system turn and a user turn.

    The user turn is `trigger` and `text`; judges are shown `text` alone.
    """

    question: str
    number: int = Field(ge=0, description="its place among the question's paraphrases")
    system: str | None
    text: str
    trigger: str = ""

    @property
    def key(self) -> str:
        """16 hex digits that name everything the model is asked (and the question's id)."""
        return fingerprint([self.question, self.system, self.trigger, self.text])[:KEY_LENGTH]

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
    if "{answer}" not in prompt:
        raise ValueError(f"the judge prompt {name!r} has no {{answer}}: the judge would not see it")


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
        raise ValueError(f"{path}: duplicate question id {twice[0]!r}: give each its own")
    return questions


def _question(item: Any, place: str) -> Question:
    if not isinstance(item, dict):
        raise ValueError(f"{place}: expected a mapping with an id, got {item!r:.60}")
    try:
        return Question.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the question"
        raise ValueError(f"{place} ({item.get('id', 'no id')}): {where}: {first['msg']}") from error


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
