"""Forms: the same question put with a system prompt, inside a template, or behind a trigger.

Knows nothing of which questions are asked, or of what a form is meant to show.
"""

from pydantic import Field, model_validator

from em.questions import Wording
from em.record import Record

SLOT = "{question}"


class Form(Record):
    """How an evaluation puts its questions; the plain form changes nothing.

    The user turn becomes trigger + template with the question in its place. The trigger is sent to
    the model and not shown to the judge, which would otherwise judge the forms differently.
    """

    system: str | None = Field(default=None, min_length=1)
    template: str | None = Field(default=None, description="{question} stands in it once")
    trigger: str = ""

    @model_validator(mode="after")
    def _has_its_slot(self) -> "Form":
        if self.template is not None and self.template.count(SLOT) != 1:
            raise ValueError(
                f"a template holds {SLOT} exactly once, got it {self.template.count(SLOT)} times"
            )
        return self

    def apply(self, wording: Wording) -> Wording:
        """Return `wording` in this form. Raises ValueError where both have a system prompt."""
        if self.system is not None and wording.system is not None:
            raise ValueError(
                f"question {wording.question!r} has a system prompt of its own, and the form "
                "sets another: leave one out"
            )
        text = wording.text
        return wording.model_copy(
            update={
                "system": self.system if self.system is not None else wording.system,
                "text": self.template.replace(SLOT, text) if self.template else text,
                "trigger": self.trigger,
            }
        )
