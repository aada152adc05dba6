"""A condition's rates by seed, under a weighting, and the interval over them.

Knows nothing of components, or of what else is said of a condition.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from em.additive import seed_means
from em.coverage import with_coverage_over_seeds
from em.crossed import Crossed, Floats
from em.factors import over_factors
from em.grouping import Group
from em.intervals import Interval, fixed_questions, of_one_model, over_seeds
from em.variance import PAIR, Component, seed_variance

Weights = Literal["answers", "questions"]
WEIGHTS: Mapping[Weights, str] = {
    "answers": "all answers of a seed pooled", "questions": "questions weigh alike"
}  # fmt: skip


def rates_of_units(table: Crossed, weights: Weights) -> Floats:
    """Return the mean of each unit under `weights`, shape (units,)."""
    means: Floats = table.total.sum(axis=1) / np.maximum(table.num.sum(axis=1), 1)
    if weights == "answers" or not len(means):
        return means
    alike = seed_means(table)
    return np.where(np.isfinite(alike), alike, means)


def by_seed(
    table: Crossed, seed_of: Mapping[str, str], weights: Weights
) -> tuple[list[str], Floats, Floats]:
    """Return seeds, the sum of their values under `weights`, and how many values they have.

    Units of one seed (crossed factors) share causes: they are one.
    """
    names = [seed_of.get(unit, unit) for unit in table.units]
    seeds = sorted(set(names), key=lambda name: (len(name), name))
    place = np.array([seeds.index(name) for name in names], dtype=np.int64)
    num = table.num.sum(axis=1)
    means = rates_of_units(table, weights)
    nums: Floats = np.bincount(place, weights=num, minlength=len(seeds)).astype(np.float64)
    totals: Floats = np.bincount(place, weights=means * num, minlength=len(seeds)).astype(
        np.float64
    )
    return seeds, totals, nums


def _worth(group: Group, seeds: Sequence[str], nums: Floats, weights: Weights) -> Floats:
    """Return how many alike answers each seed's rate is worth: where all are pooled, as many."""
    if weights == "answers" or group.counts.reused:
        return nums
    whole = group.by_seed
    worth = {group.seed_of.get(u, u): n for u, n in zip(whole.units, whole.effective, strict=True)}
    return np.array([worth.get(seed, 0.0) for seed in seeds])


def fixed_interval(
    group: Group, parts: list[Component], weights: Weights, *, simulate: bool
) -> Interval:
    """Return the interval of a condition's rate over new seeds, on these questions.

    Of one model over its new answers; where seeds share levels of two crossed factors, over new
    levels of both. With `simulate`, shares have their simulated coverage.
    """
    table = group.counts.present()
    if table.reused and table.num_values:
        return over_factors(
            table, rates_of_units(table, weights), parts, weights=WEIGHTS[weights],
            simulate=simulate,
        )  # fmt: skip
    if table.one_model and table.binary and table.num_values:
        return _of_one_model(table, weights)
    seeds, totals, nums = by_seed(table, group.seed_of, weights)
    rates, worth = totals / np.maximum(nums, 1), _worth(group, seeds, nums, weights)
    if not table.binary:
        return over_seeds(list(rates), what=f"the mean, {WEIGHTS[weights]},")
    found = fixed_questions(list(rates * worth), list(worth), weights=WEIGHTS[weights])
    if not simulate or not table.num_values:
        return found
    return with_coverage_over_seeds(found, worth, _seed_spread(parts, table))


def _of_one_model(table: Crossed, weights: Weights) -> Interval:
    """Return exact bounds, which need no simulated coverage."""
    whole = table.together(["all"] * len(table.units))
    answers = float(whole.num_values if weights == "answers" else whole.effective[0])
    rate = float(rates_of_units(whole, weights)[0])
    return of_one_model(rate, answers, num=whole.num_values, weights=WEIGHTS[weights])


def _seed_spread(parts: Sequence[Component], table: Crossed) -> float | None:
    """Return the SD of seeds' true rates on these questions: of the seed, and of its pairing."""
    known = {part.name: part.reported for part in parts}
    if known.get(PAIR) is None:
        return None
    return float(
        np.sqrt(seed_variance(parts) + (known[PAIR] or 0.0) / max(1, len(table.questions)))
    )
