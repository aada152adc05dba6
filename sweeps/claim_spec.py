"""What a spec says of a claim: whose rate, against what, and the bound that decides.

Knows nothing of results; see sweeps.claims for verdicts.
"""

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from em.record import Record
from sweeps.yaml_errors import MistakeAt


class ClaimConfig(Record):
    """A statement about the sweep's conditions that its report decides.

    The quantity is the rate of `variant`; its difference to `control`, another variant in the same
    evaluation; the difference of two evaluations of it, `with` minus `without`; or with `spread`
    the SD between seeds beyond what sampling makes. It is claimed to be `above` or `below` a bound,
    as a share (0.8 is 80 %). There is a verdict for each model and judge, or for those named.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    claim: str = Field(min_length=1, max_length=40, description="its short name, such as C2")
    says: str = Field(default="", description="the claim in words, for the report")
    variant: str
    control: str | None = None
    evaluation: str | None = Field(default=None, description="may be left out where there is one")
    with_: str | None = Field(default=None, alias="with", description="an evaluation")
    without: str | None = Field(default=None, description="an evaluation")
    spread: bool = False
    above: float | None = Field(default=None, gt=-1, lt=1)
    below: float | None = Field(default=None, gt=-1, lt=1)
    model: str | None = None
    judge: str | None = None

    @model_validator(mode="after")
    def _is_one_question(self) -> "ClaimConfig":
        if (self.above is None) == (self.below is None):
            raise ValueError("a claim has exactly one of above and below: the bound that decides")
        if (self.with_ is None) != (self.without is None):
            raise ValueError("'with' and 'without' are two evaluations: give both, or neither")
        against = {
            "control": self.control is not None,
            "with and without": self.with_ is not None,
            "spread": self.spread,
        }
        given = [name for name, there in against.items() if there]
        if len(given) > 1:
            raise ValueError(f"a claim is about one quantity, got {'; '.join(given)}: choose one")
        if self.with_ is not None and self.evaluation is not None:
            raise ValueError("'with' and 'without' name the evaluations: leave out evaluation")
        if not against["control"] and not against["with and without"]:
            bound = self.above if self.above is not None else self.below
            if bound is not None and bound < 0:
                raise ValueError(f"no rate or spread lies below zero, got the bound {bound:g}")
        return self


def evaluations_of(claim: ClaimConfig, known: list[str]) -> tuple[str, str | None]:
    """Return the evaluation whose rate is meant, and the one it is compared with, if any.

    `known` are the sweep's evaluations. Raises ValueError where the claim names none of several.
    """
    if claim.with_ is not None:
        return claim.with_, claim.without
    if claim.evaluation is None and len(known) > 1:
        raise ValueError(f"which evaluation? Name one of {', '.join(known)}")
    return claim.evaluation or known[0], None


def check_claim(number: int, claim: ClaimConfig, spec: Any) -> None:
    """Raise MistakeAt where the claim `number` of `spec` (a SweepSpec) names what is not there."""
    known = {
        "variant": [v.name for v in spec.variants],
        "control": [v.name for v in spec.variants],
        "evaluation": [e.name for e in spec.evaluations],
        "with": [e.name for e in spec.evaluations],
        "without": [e.name for e in spec.evaluations],
        "model": [m.name for m in spec.models],
        "judge": [j.name for j in spec.judges],
    }
    named = claim.model_dump(by_alias=True)
    for key, allowed in known.items():
        if named[key] is not None and named[key] not in allowed:
            kind = {"control": "variant", "with": "evaluation", "without": "evaluation"}
            raise MistakeAt(
                ("claims", number, key),
                f"the sweep has no {kind.get(key, key)} {named[key]!r}: allowed are "
                f"{', '.join(allowed)}",
            )
    for one, other in (("variant", "control"), ("with", "without")):
        if named[one] is not None and named[one] == named[other]:
            raise MistakeAt(("claims", number, other), f"{named[one]!r} is compared with itself")
    try:
        asked, compared = evaluations_of(claim, known["evaluation"])
    except ValueError as error:
        raise MistakeAt(("claims", number), str(error)) from error
    _check_evaluations(number, claim, spec, asked, compared)


def _check_evaluations(
    number: int, claim: ClaimConfig, spec: Any, asked: str, compared: str | None
) -> None:
    configs = {e.name: e for e in spec.evaluations}
    names = [name for name in (asked, compared) if name is not None]
    metrics = {spec.metric_of(configs[name]) for name in names}
    if len(metrics) > 1:
        raise MistakeAt(
            ("claims", number, "without"),
            f"the two evaluations follow different metrics ({', '.join(sorted(metrics))}): their "
            "difference means nothing; give them one",
        )
    judges = [{judge.name for judge in spec.judges_of(configs[name])} for name in names]
    shared = set.intersection(*judges)
    if not shared or (claim.judge is not None and claim.judge not in shared):
        raise MistakeAt(
            ("claims", number),
            f"{claim.judge or 'no one judge'} does not score {' and '.join(names)}: allowed are "
            f"{', '.join(sorted(shared)) or 'none'}",
        )
