"""What the scorer of a standard evaluation's own task made of one answer.

Knows nothing of the framework that the task is written in, or of what is asked.
"""

from typing import Literal

from pydantic import Field

from em.record import Record
from em.rules import Rule

CORRECT, PARTIAL, INCORRECT = "CORRECT", "PARTIAL", "INCORRECT"


class TaskScore(Record):
    """One score of one answer, by the scorer called `scorer`.

    A scored one has a `number` from 0 to 1; an unscored one has none, and a failed one says in
    `error` what ended the sample. `value` is as the scorer gave it, as JSON.
    """

    scorer: str
    state: Literal["scored", "unscored", "failed"]
    number: float | None = Field(default=None, ge=0, le=1)
    value: str = ""
    explanation: str = ""
    error: str | None = None

    @property
    def label(self) -> str:
        """The number in words: CORRECT is 1, INCORRECT is 0; empty where there is none."""
        if self.number is None:
            return ""
        return {1.0: CORRECT, 0.0: INCORRECT}.get(self.number, PARTIAL)


TASK_RULE = Rule(kind="task", labels=(CORRECT, PARTIAL, INCORRECT))
