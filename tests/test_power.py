"""What more seeds, questions and samples buy: published planning figures, and simulation."""

import math

import numpy as np
import pytest

from em.power import (
    Design,
    Variances,
    best_answers,
    best_split,
    detectable,
    half_width,
    needed,
    one_more,
    power_of,
    seeds_to_see,
)

WORKED = Variances(seed=0.0012, question=0.0446, pairing=0.0018, sampling=0.1474)


@pytest.mark.parametrize(
    ("difference", "sd", "other", "seeds"),
    [
        (0.05, 0.12, 0.12, 92),
        (0.10, 0.12, 0.12, 24),
        (0.05, 0.12, 0.0, 48),
        (0.10, 0.12, 0.0, 14),
        (0.05, 0.02, 0.02, 4),
    ],
)
def test_seeds_an_arm_for_80_percent_power(
    difference: float, sd: float, other: float, seeds: int
) -> None:
    assert seeds_to_see(difference, sd, other) == seeds
    assert (
        power_of(difference, sd, other, seeds) >= 0.8 > power_of(difference, sd, other, seeds - 1)
    )


def test_power_is_that_of_simulated_tests() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    first = rng.normal(0.1, 0.12, size=(4000, 10))
    second = rng.normal(0.0, 0.05, size=(4000, 10))
    found = (ttest_ind(first, second, axis=1, equal_var=False).pvalue < 0.05).mean()
    assert power_of(0.1, 0.12, 0.05, 10) == pytest.approx(found, abs=0.025)
    wanted = detectable(0.12, 0.05, 10)
    assert wanted is not None and power_of(wanted, 0.12, 0.05, 10) == pytest.approx(0.8, abs=1e-6)


def test_random_questions_have_a_floor_that_seeds_do_not_lower() -> None:
    found = needed(WORKED, Design(seeds=3, questions=8, samples=50), 0.03, "random")
    assert found.seeds is None and found.questions is None
    assert found.floor == pytest.approx(0.177, abs=5e-4)
    assert found.questions_at_least == pytest.approx(190, abs=5)
    assert "unreachable by seeds" in found.text and "± 17.7 points" in found.text
    many = needed(WORKED, Design(seeds=30, questions=8, samples=50), 0.03, "random")
    assert many.questions is not None
    assert f"it needs about {many.questions} questions" in many.text


def test_seeds_for_a_half_width_are_the_fewest_that_reach_it() -> None:
    design = Design(seeds=3, questions=23, samples=50)
    found = needed(WORKED, design, 0.03, "fixed")
    assert found.seeds is not None
    enough = design.model_copy(update={"seeds": found.seeds})
    fewer = design.model_copy(update={"seeds": found.seeds - 1})
    assert half_width(WORKED, enough) <= 0.03 < half_width(WORKED, fewer)
    assert found.text == f"fixed questions: you have 3 seeds; for ± 3 points you need {found.seeds}"
    with pytest.raises(ValueError, match="cannot be had"):
        needed(WORKED, design, 0.0, "fixed")


def test_the_half_width_is_that_of_simulated_intervals() -> None:
    from em.intervals import t_limits

    rng = np.random.default_rng(2)
    design = Design(seeds=6, questions=8, samples=20)
    sd = math.sqrt(0.0012 + 0.0018 / 8 + 0.1474 / 160)
    low, high = t_limits(rng.normal(0.3, sd, size=(20000, 6)))
    # The square of a half-width is unbiased, the half-width itself nearly so.
    simulated = math.sqrt(float(np.mean(((high - low) / 2) ** 2)))
    assert half_width(WORKED, design) == pytest.approx(simulated, rel=0.02)


def test_one_seed_has_no_half_width_and_one_more_of_each_never_widens_it() -> None:
    assert half_width(WORKED, Design(seeds=1, questions=8, samples=50)) == math.inf
    design = Design(seeds=4, questions=8, samples=10)
    for claim in ("fixed", "random"):
        now = half_width(WORKED, design, claim)
        assert all(width <= now + 1e-12 for width in one_more(WORKED, design, claim).values())


def test_the_best_split_is_the_best_of_all_and_near_the_formula() -> None:
    found = best_split(WORKED, 8, cost_train=300, cost_answer=1, budget=10_000)
    assert found is not None and found.cost <= 10_000
    for seeds in range(2, 33):
        samples = int((10_000 / seeds - 300) / 8)
        if samples >= 1:
            other = Design(seeds=seeds, questions=8, samples=samples)
            assert found.half_width <= half_width(WORKED, other) + 1e-12
    formula = best_answers(WORKED, 8, 300, 1)
    between = 0.0012 + 0.0018 / 8
    assert formula == pytest.approx(math.sqrt(300 * 0.1474 / between))
    assert best_split(WORKED, 8, cost_train=300, cost_answer=1, budget=400) is None
    calm = Variances(seed=0, question=0.1, pairing=0, sampling=0.1)
    assert best_answers(calm, 8, 300, 1) == math.inf


def test_what_is_far_beyond_has_full_power_and_words_for_what_cannot_be() -> None:
    assert power_of(0.05, 0.002, 0.002, 2) == 1.0
    assert seeds_to_see(0.05, 0.002, 0.002) == 2
    found = needed(WORKED, Design(seeds=3, questions=8, samples=50), 0.001, "random")
    assert "None" not in found.text
