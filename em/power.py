"""What more seeds, questions and samples buy: half-widths, detectable differences, best splits.

Pure functions of variance components, counts and costs; knows nothing of where they come from.
"""

import math
from collections.abc import Callable
from typing import Literal

from em.quantiles import t_quantile
from em.record import Record

LEVEL, POWER = 0.95, 0.80
MOST = 100_000  # seeds or questions: beyond that it is called unreachable
Claim = Literal["fixed", "random"]


class Variances(Record):
    """Variances of one value by their source; see em.variance."""

    seed: float
    question: float
    pairing: float
    sampling: float


class Design(Record):
    """How many seeds, questions, and samples of each question a condition has."""

    seeds: int
    questions: int
    samples: int


class Needed(Record):
    """What a wanted half-width takes. None: more than MOST, or not to be reached so."""

    claim: Claim
    half_width: float
    seeds: int | None
    questions: int | None
    questions_at_least: int | None
    """With seeds without number."""
    floor: float
    """The half-width that no number of seeds lowers."""
    text: str


def variance_of_mean(parts: Variances, design: Design, claim: Claim) -> float:
    """Return the variance of a condition's mean, for new seeds on these or on new questions."""
    pairs = design.seeds * design.questions
    fixed = (
        parts.seed / design.seeds
        + parts.pairing / pairs
        + parts.sampling / (pairs * design.samples)
    )
    return fixed + (parts.question / design.questions if claim == "random" else 0.0)


def half_width(
    parts: Variances, design: Design, claim: Claim = "fixed", *, level: float = LEVEL
) -> float:
    """Return the expected half-width of the condition's interval; infinite with one seed.

    For random questions with Satterthwaite's degrees of freedom, as in em.intervals.
    """
    if design.seeds < 2 or (claim == "random" and design.questions < 2):
        return math.inf
    variance = variance_of_mean(parts, design, claim)
    return float(t_quantile(0.5 + level / 2, _freedom(parts, design, claim))) * math.sqrt(variance)


def _freedom(parts: Variances, design: Design, claim: Claim) -> float:
    seeds, questions = design.seeds, design.questions
    if claim == "fixed":
        return seeds - 1
    pairing = parts.pairing + parts.sampling / design.samples
    by_seed, by_question = questions * parts.seed + pairing, seeds * parts.question + pairing
    whole = by_seed + by_question - pairing
    below = (
        by_seed**2 / (seeds - 1)
        + by_question**2 / (questions - 1)
        + pairing**2 / ((seeds - 1) * (questions - 1))
    )
    if below <= 0:
        return float(max(seeds, questions) - 1)
    return max(min(seeds, questions) - 1.0, whole**2 / below)


def needed(parts: Variances, design: Design, wanted: float, claim: Claim) -> Needed:
    """Return the smallest number of seeds for a half-width of `wanted`; or of questions.

    The rest of the design stays as it is. For random questions there is a floor that seeds do not
    lower, and it may take more questions.
    """
    if wanted <= 0:
        raise ValueError(f"a half-width of {wanted} cannot be had: ask for more than 0")

    def with_seeds(seeds: int) -> Design:
        return design.model_copy(update={"seeds": seeds})

    def with_questions(questions: int) -> Design:
        return design.model_copy(update={"questions": questions})

    floor = half_width(parts, with_seeds(MOST), claim)
    seeds = _smallest(lambda n: half_width(parts, with_seeds(n), claim) <= wanted)
    questions = at_least = None
    if claim == "random":
        many = design.model_copy(update={"seeds": MOST})
        questions = _smallest(lambda n: half_width(parts, with_questions(n), claim) <= wanted)
        at_least = _smallest(
            lambda n: half_width(parts, many.model_copy(update={"questions": n}), claim) <= wanted
        )
    return Needed(
        claim=claim, half_width=wanted, seeds=seeds, questions=questions,
        questions_at_least=at_least, floor=floor,
        text=_in_words(design, wanted, claim, (seeds, questions, at_least), floor),
    )  # fmt: skip


def _in_words(
    design: Design, wanted: float, claim: Claim,
    found: tuple[int | None, int | None, int | None], floor: float,
) -> str:  # fmt: skip
    seeds, questions, at_least = found
    have = f"{claim} questions: you have {design.seeds} seed{'s' * (design.seeds != 1)}"
    points = f"± {100 * wanted:g} points"
    if seeds is not None:
        return f"{have}; for {points} you need {seeds}"
    low = f"no number of seeds gets below ± {100 * floor:.1f} points"
    if questions is None and at_least is None:
        return f"{have} and {design.questions} questions; {points} is unreachable ({low})"
    if questions is None:
        return (
            f"{have} and {design.questions} questions; {points} is unreachable by seeds ({low}): "
            f"it needs about {at_least} questions, and more seeds beside them"
        )
    return (
        f"{have}; {points} is unreachable by seeds ({low}): with {design.seeds} it needs about "
        f"{questions} questions, and you have {design.questions}"
    )


def _smallest(enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 2 on that is `enough`, which stays so; None beyond MOST."""
    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
        if low > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def power_of(
    difference: float, sd: float, other_sd: float, seeds: int, *, level: float = LEVEL
) -> float:
    """Return the chance that Welch's two-sided test finds a true `difference`, `seeds` an arm.

    The SDs are those of seeds' rates in the two arms.
    """
    from scipy.stats import nct

    if seeds < 2:
        return 0.0
    first, second = sd**2 / seeds, other_sd**2 / seeds
    variance = first + second
    if variance <= 0:
        return 1.0 if difference else 1 - level
    freedom = variance**2 / (first**2 / (seeds - 1) + second**2 / (seeds - 1))
    limit = float(t_quantile(0.5 + level / 2, freedom))
    away = abs(difference) / math.sqrt(variance)
    found = float(nct.sf(limit, freedom, away) + nct.cdf(-limit, freedom, away))
    return 1.0 if math.isnan(found) else found  # so far away that it has no digits left


def seeds_to_see(
    difference: float, sd: float, other_sd: float, *, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Return the seeds an arm with which a true `difference` is found with that `power`."""
    return _smallest(lambda n: power_of(difference, sd, other_sd, n, level=level) >= power)


def detectable(
    sd: float, other_sd: float, seeds: int, *, power: float = POWER, level: float = LEVEL
) -> float | None:
    """Return the difference that is found with `power`; None with one seed."""
    from scipy.optimize import brentq

    if seeds < 2:
        return None
    high = 1e-6
    while power_of(high, sd, other_sd, seeds, level=level) < power:
        high *= 2
    return float(brentq(lambda d: power_of(d, sd, other_sd, seeds, level=level) - power, 0.0, high))


def seed_sd(parts: Variances, design: Design) -> float:
    """Return the SD of one seed's rate on these questions, with what sampling adds to it."""
    one = design.model_copy(update={"seeds": 1})
    return math.sqrt(variance_of_mean(parts, one, "fixed"))


def best_answers(parts: Variances, questions: int, cost_train: float, cost_answer: float) -> float:
    """Return the number of answers of a seed that buys the most for one cost.

    sqrt(cost_train / cost_answer x within / between), where between = seed + pairing / questions
    (Brennan, Generalizability Theory); it says nothing of how many questions. Infinite where seeds
    do not differ.
    """
    between = parts.seed + parts.pairing / questions
    if between <= 0:
        return math.inf
    return math.sqrt(cost_train / cost_answer * parts.sampling / between)


class Allocation(Record):
    """A split of a cost into seeds and samples, and the half-width it is expected to have."""

    design: Design
    cost: float
    half_width: float


def best_split(
    parts: Variances, questions: int, *, cost_train: float, cost_answer: float, budget: float,
    claim: Claim = "fixed",
) -> Allocation | None:  # fmt: skip
    """Return the seeds and samples with the least half-width within `budget`; None if none fits."""
    best: Allocation | None = None
    seeds = 2
    while seeds * (cost_train + questions * cost_answer) <= budget and seeds <= MOST:
        left = budget / seeds - cost_train
        samples = max(1, int(left / (questions * cost_answer)))
        design = Design(seeds=seeds, questions=questions, samples=samples)
        found = Allocation(
            design=design,
            cost=seeds * (cost_train + questions * samples * cost_answer),
            half_width=half_width(parts, design, claim),
        )
        if best is None or found.half_width < best.half_width:
            best = found
        seeds += 1
    return best


def one_more(parts: Variances, design: Design, claim: Claim) -> dict[str, float]:
    """Return the half-width with one more seed, question, and sample of each question."""
    return {
        name: half_width(parts, design.model_copy(update={name: getattr(design, name) + 1}), claim)
        for name in ("seeds", "questions", "samples")
    }
