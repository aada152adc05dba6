"""Intervals hold the truth as often as they say, by simulations that are not theirs.

A small part of tests/benchmarks/coverage.py, which prints the whole table.
"""

import math

import numpy as np
import pytest

from em.condition import Asked, analyse_condition
from em.coverage import coverage_over_questions, coverage_over_seeds, logit_mean
from em.crossed import Crossed
from em.grouping import Group
from em.intervals import fixed_questions, random_questions

RUNS = 400


def seed_rates(
    rng: np.random.Generator, mean: float, sd: float, seeds: int
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    size = mean * (1 - mean) / sd**2 - 1
    return rng.beta(mean * size, (1 - mean) * size, size=seeds)


@pytest.mark.parametrize(
    ("mean", "sd", "seeds", "least"),
    [
        (0.20, 0.05, 6, 0.92),
        (0.40, 0.10, 3, 0.92),
        (0.05, 0.08, 3, 0.90),
        (0.02, 0.04, 6, 0.90),
        (0.005, 0.01, 10, 0.90),
    ],
)
def test_fixed_question_intervals_hold_the_mean_of_new_seeds(
    mean: float, sd: float, seeds: int, least: float
) -> None:
    rng = np.random.default_rng(int(1e4 * mean) + seeds)
    held = 0
    for _ in range(RUNS):
        hits = rng.binomial(80, seed_rates(rng, mean, sd, seeds))
        found = fixed_questions(list(map(float, hits)), [80] * seeds, weights="")
        assert found.low is not None and found.high is not None
        held += found.low <= mean <= found.high
    noise = 2 * math.sqrt(0.09 / RUNS)
    assert held / RUNS >= least - noise
    # What the report would print of this design, from simulations of its own.
    assert coverage_over_seeds(mean, sd, seeds, 80) == pytest.approx(held / RUNS, abs=noise + 0.02)


def two_way(
    rng: np.random.Generator, mean: float, sds: tuple[float, ...], seeds: int, questions: int
) -> Crossed:
    shapes = [(seeds, 1), (1, questions), (seeds, questions)]
    middle = logit_mean(mean, math.hypot(*sds))
    logits = middle + sum(
        (sd * rng.standard_normal(shape) for sd, shape in zip(sds, shapes, strict=True)),
        start=np.zeros((seeds, questions)),
    )
    hits = rng.binomial(50, 1 / (1 + np.exp(-logits))).astype(float)
    return Crossed(
        units=tuple(map(str, range(seeds))), questions=tuple(map(str, range(questions))),
        num=np.full((seeds, questions), 50), total=hits, squares=hits,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "seeds", "questions"), [(0.25, 3, 8), (0.25, 10, 48), (0.06, 3, 8), (0.06, 6, 48)]
)
def test_random_question_intervals_hold_the_mean_of_new_questions(
    mean: float, seeds: int, questions: int
) -> None:
    sds = (0.5, 1.2, 0.4)
    rng = np.random.default_rng(questions + seeds)
    held = 0
    for _ in range(RUNS):
        found = random_questions(two_way(rng, mean, sds, seeds, questions))
        assert found.low is not None and found.high is not None
        held += found.low <= mean <= found.high
    assert held / RUNS >= 0.90 - 2 * math.sqrt(0.09 / RUNS)


def test_the_printed_coverage_of_new_questions_is_that_of_other_simulations() -> None:
    mean, seeds, questions = 0.10, 4, 8
    sds = (0.6, 1.5, 0.5)
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        found = random_questions(two_way(rng, mean, sds, seeds, questions))
        held += found.low is not None and found.low <= mean <= (found.high or 0)
    own = [spread_of(mean, sds, place) for place in range(3)]
    printed = coverage_over_questions(mean, tuple(own), seeds, questions, 50)
    assert printed == pytest.approx(held / 1000, abs=0.03)


def spread_of(mean: float, sds: tuple[float, ...], place: int) -> float:
    """The SD of rates from one source: of the mean given it, over what it may be."""
    rng = np.random.default_rng(place)
    middle = logit_mean(mean, math.hypot(*sds))
    others = math.hypot(*(sd for n, sd in enumerate(sds) if n != place))
    own = sds[place] * rng.standard_normal(4000)
    rest = others * rng.standard_normal(2000)
    given = 1 / (1 + np.exp(-middle - own[:, None] - rest[None, :]))
    return float(given.mean(axis=1).std())


def test_equal_designs_have_equal_coverage_and_the_same_one_twice() -> None:
    first = coverage_over_seeds(0.1, 0.05, 5, 100)
    coverage_over_seeds.cache_clear()
    assert coverage_over_seeds(0.1, 0.05, 5, 100) == first


def test_every_interval_says_what_it_covers_and_how_well() -> None:
    rng = np.random.default_rng(0)
    table = two_way(rng, 0.2, (0.5, 1.0, 0.3), 4, 8)
    group = Group("j", "c", table, 32, 0, {unit: unit for unit in table.units})
    found = analyse_condition(group, Asked())
    for interval in (found.fixed, found.random):
        assert interval.covers and interval.method
        assert interval.coverage is not None and 0.8 < interval.coverage <= 1
        assert "4 seeds" in interval.coverage_of
    assert analyse_condition(group, Asked(simulate=False)).fixed.coverage is None
