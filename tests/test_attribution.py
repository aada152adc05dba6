"""How much is the model, the data, the seed: by an analysis of variance, and of known truth."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.formula.api import ols

from em.attribution import Attribution, Grid, attribution
from em.crossed import Crossed
from em.quantiles import noncentrality
from em.variance import PAIR, QUESTION, SAMPLING, SEED

QUESTIONS, SAMPLES = 6, 8
MODELS, VARIANTS = ("big", "small"), ("none", "safe", "unsafe")
BOTH = "model x variant"


def condition(
    mean: float, *, seeds: int, spread: float, rng: np.random.Generator, questions: Any = 0.0
) -> Crossed:
    """Return normal values of one condition: seeds, pairings of half their spread, samples."""
    shape = (seeds, QUESTIONS)
    middle = mean + rng.normal(0, spread, seeds)[:, None] + rng.normal(0, spread / 2, shape)
    values = (middle + questions)[:, :, None] + rng.normal(0, 0.3, (*shape, SAMPLES))
    return Crossed(
        units=tuple(f"s{n}" for n in range(seeds)),
        questions=tuple(f"q{n}" for n in range(QUESTIONS)),
        num=np.full(shape, SAMPLES),
        total=values.sum(axis=2),
        squares=(values**2).sum(axis=2),
    )


def grid(models: tuple[str, ...] = MODELS, variants: tuple[str, ...] = VARIANTS) -> Grid:
    return Grid(
        factors=("model", "variant"),
        levels={f"{m} {v}": (m, v) for m, v in itertools.product(models, variants)},
    )


def drawn(
    of: Grid, means: dict[str, float], rng: np.random.Generator, *, seeds: int = 4
) -> dict[str, Crossed]:
    questions = rng.normal(0, 0.2, QUESTIONS)
    return {
        name: condition(means[name], seeds=seeds, spread=0.1, rng=rng, questions=questions)
        for name in of.levels
    }


def parts(found: Attribution | None) -> dict[str, Any]:
    assert found is not None
    return {part.name: part for part in found.parts}


def test_as_an_analysis_of_variance_of_the_seeds_means() -> None:
    of, rng = grid(), np.random.default_rng(1)
    tables = drawn(of, {name: 0.1 * n for n, name in enumerate(of.levels)}, rng, seeds=4)
    rows = [
        {"model": of.levels[name][0], "variant": of.levels[name][1], "rate": rate}
        for name, table in tables.items()
        for rate in table.means.mean(axis=1)
    ]
    told = sm.stats.anova_lm(ols("rate ~ C(model) * C(variant)", pd.DataFrame(rows)).fit())
    squares, freedom = told["sum_sq"].to_dict(), told["df"].to_dict()
    rest = squares["Residual"] / freedom["Residual"]
    found = parts(attribution(tables, of))
    for name, column in (
        ("model", "C(model)"), ("variant", "C(variant)"), (BOTH, "C(model):C(variant)")
    ):  # fmt: skip
        assert found[name].of_rate == pytest.approx((squares[column] - freedom[column] * rest) / 24)
    within = sum(found[name].of_rate for name in (SEED, PAIR, SAMPLING))
    assert within == pytest.approx(rest)


def test_estimates_are_unbiased_and_intervals_hold_the_truth() -> None:
    of, rng = grid(), np.random.default_rng(2)
    model, variant = {"big": 0.1, "small": -0.1}, {"none": -0.2, "safe": 0.0, "unsafe": 0.2}
    means = {name: 0.5 + model[m] + variant[v] for name, (m, v) in of.levels.items()}
    truth = {"model": 0.01, "variant": 0.08 / 3, BOTH: 0.0, SEED: 0.01, PAIR: 0.0025 / QUESTIONS,
             SAMPLING: 0.09 / QUESTIONS / SAMPLES}  # fmt: skip
    runs = [parts(attribution(drawn(of, means, rng), of)) for _ in range(300)]
    for name, value in truth.items():
        estimates = np.array([run[name].of_rate for run in runs])
        assert estimates.mean() == pytest.approx(value, abs=4 * estimates.std() / len(runs) ** 0.5)
    for name in ("model", "variant", BOTH, SEED):
        held = np.mean([run[name].low <= truth[name] <= run[name].high for run in runs])
        assert held >= 0.92, name


def test_the_parts_are_those_of_the_variance_of_a_cells_rate() -> None:
    """The grid of the plainest interaction: one of four conditions is misaligned."""
    of, rng = grid(variants=("safe", "unsafe")), np.random.default_rng(7)
    means = dict.fromkeys(of.levels, 0.05) | {"big unsafe": 0.2}
    tables = drawn(of, means, rng, seeds=400)
    found = attribution(tables, of)
    assert found is not None
    rates = np.concatenate([table.means.mean(axis=1) for table in tables.values()])
    whole = sum(part.of_rate or 0.0 for part in found.parts)
    assert whole == pytest.approx(float(rates.var()), rel=0.01)
    shares = found.shares_of_rate
    assert shares["model"] == pytest.approx(shares[BOTH], rel=0.5)


def test_a_condition_whose_seeds_share_no_question_is_left_out() -> None:
    of, rng = grid(models=("big",)), np.random.default_rng(8)
    tables = drawn(of, dict.fromkeys(of.levels, 0.4), rng)
    lone = tables["big none"]
    keep = np.zeros_like(lone.num)
    for unit in range(len(lone.units)):
        keep[unit, unit] = 1
    tables["big none"] = Crossed(
        units=lone.units, questions=lone.questions, num=lone.num * keep, total=lone.total * keep,
        squares=lone.squares * keep,
    )  # fmt: skip
    found = attribution(tables, of)
    assert found is not None and found.parts
    assert found.left_out == ("big none",)


def test_the_shares_add_up_and_questions_are_no_part_of_a_rate() -> None:
    of, rng = grid(), np.random.default_rng(3)
    found = attribution(drawn(of, dict.fromkeys(of.levels, 0.4), rng), of)
    assert found is not None
    for shares in (found.shares_of_rate, found.shares_of_answer):
        assert sum(shares.values()) == pytest.approx(1.0)
        assert min(shares.values()) >= 0.0
    assert found.shares_of_rate[QUESTION] == 0.0
    assert found.shares_of_answer[QUESTION] > 0.0
    assert found.num_questions == QUESTIONS


def test_a_grid_with_a_gap_uses_the_whole_grid_in_it_and_names_the_rest() -> None:
    of, rng = grid(), np.random.default_rng(4)
    tables = drawn(of, dict.fromkeys(of.levels, 0.4), rng)
    del tables["small safe"]
    tables["big safe"] = condition(0.4, seeds=1, spread=0.1, rng=rng)
    found = attribution(tables, of)
    assert found is not None
    assert found.conditions == ("big none", "big unsafe", "small none", "small unsafe")
    assert found.left_out == ("big safe",)
    del tables["big safe"]
    tables["small safe"] = condition(0.4, seeds=3, spread=0.1, rng=rng)
    found = attribution(tables, of)
    assert found is not None
    assert found.left_out == ("small safe",)


def test_one_level_is_said_and_one_condition_is_not_compared() -> None:
    rng = np.random.default_rng(5)
    one = grid(models=("big",))
    found = parts(attribution(drawn(one, dict.fromkeys(one.levels, 0.4), rng), one))
    assert found["model"].of_rate is None and "one level" in found["model"].note
    assert BOTH not in found
    alone = grid(models=("big",), variants=("safe",))
    assert attribution(drawn(alone, {"big safe": 0.4}, rng), alone) is None


def test_conditions_without_a_common_question_are_not_compared() -> None:
    rng, of = np.random.default_rng(6), grid(models=("big",), variants=("safe", "unsafe"))
    tables = drawn(of, dict.fromkeys(of.levels, 0.4), rng)
    first, second = tables
    tables[first] = tables[first].of_questions(["q0", "q1"])
    tables[second] = tables[second].of_questions(["q2", "q3"])
    found = attribution(tables, of)
    assert found is not None and found.parts == () and "no question is asked of all" in found.why


def test_seeds_that_are_alike_leave_no_interval() -> None:
    of = Grid(factors=("condition",), levels={"a": ("a",), "b": ("b",)})
    num = np.full((3, 2), 5)
    tables = {
        name: Crossed(units=("x", "y", "z"), questions=("q", "r"), num=num,
                      total=num * value, squares=num * value)
        for name, value in (("a", 0.0), ("b", 1.0))
    }  # fmt: skip
    found = parts(attribution(tables, of))
    assert found["condition"].of_rate == pytest.approx(0.25)  # of two rates, 0 and 1
    assert found["condition"].low is None and "alike" in found["condition"].note


@pytest.mark.parametrize("ratio", [0.5, 3.0, 50.0, 1e4, 2e5])
def test_noncentrality_turns_the_noncentral_f_round(ratio: float) -> None:
    from scipy.stats import f, ncf

    for share in (0.025, 0.975):
        at = noncentrality(share, 2, 8.5, ratio)
        below = ncf.cdf(ratio, 2, 8.5, at) if at else f.cdf(ratio, 2, 8.5)
        assert below == pytest.approx(share, abs=1e-3) if at else below <= share
