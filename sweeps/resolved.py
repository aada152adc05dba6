"""What a sweep's names stood for when it ran, and what is another thing now.

Records alone: they are written by sweeps.registry and compared by sweeps.drift.
"""

from typing import Any

from pydantic import Field

from em.record import Record
from em.variants import Step
from sweeps.artefacts import Stage

Versions = dict[Stage, dict[str, tuple[str, ...]]]
"""Stage → package → versions."""


class Rows(Record):
    """The rows that a variant had under one subset seed."""

    content_sha256: str
    num_rows: int
    num_characters: int
    num_held_out: int
    steps: tuple[Step, ...] = ()


class Resolved(Record):
    """What the names in a spec stood for. Kept beside the spec, in the sweep's folder.

    Names that the spec has no more stay: removing deletes nothing, and they may come back.
    """

    models: dict[str, str] = Field(default_factory=dict, description="name → revision")
    variants: dict[str, dict[str, Rows]] = Field(
        default_factory=dict, description="name → subset seed → rows"
    )
    questions: dict[str, dict[str, tuple[str, ...]]] = Field(
        default_factory=dict, description="evaluation → question id → keys of its wordings"
    )
    tasks: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="evaluation → what its task of Inspect is"
    )
    prompts: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="judge → evaluation/question/score → hash of its prompt"
    )
    versions: Versions = Field(
        default_factory=dict, description="those that finished work is known to be made with"
    )
    in_keys: dict[Stage, dict[str, str]] = Field(
        default_factory=dict,
        description="stage → package → version: made again with these, they are part of its keys",
    )
    accepted: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="a drift's key → what was there when the user kept what is stored",
    )


class Drift(Record):
    """One name or package that is another thing now than when finished work was made."""

    key: str = Field(description="kind.name")
    now: tuple[str, ...] = Field(description="what is there; an answer holds for this alone")
    text: str
    can_keep_stored: bool = True
    answered: bool = Field(default=False, description="the user kept what is stored, earlier")
    stages: tuple[Stage, ...] = Field(default=(), description="of a package: those that it made")
