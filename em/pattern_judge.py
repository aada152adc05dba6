"""A judge that is a list of regular expressions: deterministic, without a model.

Knows nothing of where answers come from.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from em.judging import JudgeCallFailed, Reading
from em.record import Record
from em.rules import label_rule
from em.told import short

RULE = "first pattern of the list that is found in the answer, v1"
# Python's engine has no time limit, and a pattern such as (a+)+$ takes twice as long for each
# further character. The bound keeps patterns of polynomial cost short; it cannot tame those.
MAX_ANSWER = 20_000  # characters that are searched; 1,000 tokens are about 4,000
MAX_PATTERN = 1_000
SHOWN = 80  # characters of what was found, in the reply
SCORE_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def _check_pattern(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern has at most {MAX_PATTERN} characters, got {len(pattern)}")
    try:
        with warnings.catch_warnings():  # of what a later Python will read as another thing
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        raise ValueError(f"not a regular expression: {error}; got {short(pattern)}") from error
    return pattern


def _check_score(name: str) -> str:
    if not SCORE_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a score's name: use 1 to 40 small letters, digits or _, beginning "
            "with a letter"
        )
    return name


Pattern = Annotated[str, AfterValidator(_check_pattern)]


class PatternConfig(Record):
    """What is looked for: labels with a regular expression each, in order; the first found wins.

    The expressions are Python's, searched anywhere in the answer; write (?i) for any case. An
    answer in which none is found has the label `otherwise`.
    """

    score: Annotated[str, AfterValidator(_check_score)]
    labels: dict[str, Pattern] = Field(min_length=1)
    otherwise: str

    @model_validator(mode="after")
    def _labels_are_words(self) -> "PatternConfig":
        label_rule(self.all_labels)
        return self

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Every label this judge can say, in order."""
        return (*self.labels, self.otherwise)

    @property
    def identity(self) -> list[object]:
        """What tells two pattern judges apart; the order counts."""
        return [RULE, self.score, [list(pair) for pair in self.labels.items()], self.otherwise]


class PatternReader:
    """Reads answers by patterns. Its prompts are the answers themselves."""

    def __init__(self, config: PatternConfig) -> None:
        self._patterns = {label: re.compile(p) for label, p in config.labels.items()}
        self._otherwise = config.otherwise

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        """Return, for each answer, a reading whose reply is its label and what was found.

        An answer longer than MAX_ANSWER, with nothing found in that many characters, has no label:
        what it goes on to say was not looked at.
        """
        return [Reading(numbers={}, reply=self._reply(answer)) for answer in prompts]

    def _reply(self, answer: str) -> str:
        for label, pattern in self._patterns.items():
            found = pattern.search(answer, 0, MAX_ANSWER)
            if found:
                return f"{label} at {found.start()}: {found[0][:SHOWN]}"
        if len(answer) > MAX_ANSWER:
            return f"(nothing in the first {MAX_ANSWER} of {len(answer)} characters)"
        return self._otherwise
