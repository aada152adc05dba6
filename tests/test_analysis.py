"""The analysis of a table: what is counted, what is said, and that nothing else changes it."""

import random
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from em.additive import seed_means
from em.analysis import Pair, analyse, compared
from em.component_intervals import components
from em.condition import Asked, analyse_condition
from em.consistency import consistency
from em.contrasts import contrast, holm
from em.crossed import Crossed, crossed
from em.differences import Side, Skewed, difference_test
from em.grouping import Group, Known
from em.hierarchical import difference, of_one_model, variance_limits
from em.intervals import Interval, fixed_questions, over_seeds, random_questions
from em.quantiles import beta_quantile, chi2_quantile, f_quantile, t_quantile
from sweeps.analysis_page import FIGURES, slug
from sweeps.drawing import svg

QUIET = Asked(simulate=False)


def rows(
    conditions: dict[str, float], seeds: int = 4, questions: int = 5, samples: int = 10
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            "judge": "j", "condition": name, "unit": f"s{s}", "seed": f"s{s}", "question": f"q{q}",
            "value": float(rng.random() < rate * (0.5 + q / questions)),
        }
        for name, rate in conditions.items()
        for s in range(seeds)
        for q in range(questions)
        for _ in range(samples)
    ]  # fmt: skip


def table(found: list[dict[str, Any]]) -> pa.Table:
    names = ("judge", "condition", "unit", "seed", "question")
    columns: dict[str, Any] = {name: [row[name] for row in found] for name in names}
    return pa.table(columns | {"value": pa.array([row["value"] for row in found], pa.float64())})


def test_counts_add_up_and_unscored_is_no_zero() -> None:
    made = rows({"a": 0.5})
    for row in made[:7]:
        row["value"] = None
    (found,) = analyse(table(made), what="w", asked=QUIET).conditions
    scored = [row["value"] for row in made if row["value"] is not None]
    assert (found.num_rows, found.num_scored, found.num_unscored) == (200, 193, 7)
    assert found.by_answers == pytest.approx(sum(scored) / len(scored))
    assert sum(seed.num for seed in found.seeds) == sum(q.num for q in found.questions) == 193


def test_neither_order_nor_splitting_nor_names_change_it() -> None:
    made = rows({"a": 0.3, "b": 0.6})
    whole = analyse(table(made), what="w", asked=QUIET)
    shuffled = list(made)
    random.Random(3).shuffle(shuffled)
    parts = pa.concat_tables([table(shuffled[:77]), table(shuffled[77:])])
    other = analyse(parts, what="w", asked=QUIET)
    renamed = [row | {"seed": f"x{row['seed']}", "unit": f"x{row['unit']}"} for row in made]
    third = analyse(table(renamed), what="w", asked=QUIET)
    for found in (other, third):
        by_name = {c.condition: c for c in found.conditions}
        for c in whole.conditions:
            twin = by_name[c.condition]
            assert twin.by_answers == c.by_answers
            for one, two in zip(c.components, twin.components, strict=True):
                assert one.estimate == pytest.approx(two.estimate, rel=1e-9)
            assert twin.fixed.low == pytest.approx(c.fixed.low)
            assert twin.random.high == pytest.approx(c.random.high)


def test_what_cannot_be_told_is_said() -> None:
    lone = analyse(table(rows({"a": 0.5}, seeds=1)), what="w", asked=QUIET)
    assert "a, judged by j: one seed: nothing is known of other seeds" in lone.notes
    assert lone.conditions[0].fixed.low is None
    assert [
        b.about.startswith("the next answer of this one") for b in lone.conditions[0].exact
    ] == [True]
    one = analyse(table(rows({"a": 0.5}, questions=1)), what="w", asked=QUIET)
    assert any("one question" in note for note in one.notes)
    assert one.conditions[0].random.low is None and one.conditions[0].fixed.low is not None
    none = [row | {"value": None} for row in rows({"a": 0.5})]
    found = analyse(table(none), what="w", asked=QUIET)
    assert "none of 200 rows has a scored value: no rate (no zero)" in found.notes[0]
    assert found.conditions[0].by_answers is None and found.conditions[0].consistency is None


def test_no_event_has_bounds_for_these_models_and_for_new_seeds() -> None:
    (found,) = analyse(table(rows({"a": 0.0}, seeds=3, questions=8, samples=100)), what="w",
                       asked=QUIET).conditions  # fmt: skip
    answers, seeds = found.exact
    assert answers.low == 0 and answers.high == pytest.approx(1 - 0.025 ** (1 / 2400))
    assert seeds.high == pytest.approx(1 - 0.025 ** (1 / 3)) == pytest.approx(0.708, abs=1e-3)
    assert found.random.low is None
    eight = analyse(table(rows({"a": 0.0}, seeds=1, questions=8, samples=100)), what="w",
                    asked=QUIET).conditions[0]  # fmt: skip
    assert eight.exact[0].high == pytest.approx(0.0046, abs=5e-5)


def test_missing_pairs_are_handled_and_told() -> None:
    made = [r for r in rows({"a": 0.5}) if (r["seed"], r["question"]) != ("s0", "q4")]
    found = analyse(table(made), what="w", asked=QUIET)
    assert found.conditions[0].num_missing_pairs == 1
    assert any("1 of 20 pairs of seed and question" in note for note in found.notes)
    assert all(part.estimate is not None for part in found.conditions[0].components)


def test_contrasts_pair_questions_and_seeds_only_where_they_are_shared() -> None:
    rng = np.random.default_rng(4)
    seed, question = 0.2 * rng.standard_normal(5), 0.4 * rng.standard_normal(6)

    def made(shift: float, of: Any) -> Any:
        units = [str(s) for s in range(5) for _ in range(6)]
        questions = [str(q) for _ in range(5) for q in range(6)]
        values = [shift + of[s] + question[q] for s in range(5) for q in range(6)]
        return crossed(units, questions, values)

    one, two = made(0.3, seed), made(0.0, seed + 1e-3 * rng.standard_normal(5))
    shared = contrast(one, two, names=("a", "b"), pairing="seeds")
    apart = contrast(one, two, names=("a", "b"))
    assert (
        shared.fixed.estimate == pytest.approx(apart.fixed.estimate) == pytest.approx(0.3, abs=2e-3)
    )
    assert shared.p is not None and apart.p is not None and shared.p < 1e-6 < apart.p
    assert "5 seeds" in shared.paired and "Welch" in apart.paired
    assert shared.equivalent_within == pytest.approx(0.3, abs=0.01)


def test_p_values_are_held_against_all_of_them() -> None:
    found = analyse(table(rows({"a": 0.2, "b": 0.5, "c": 0.8})), what="w", asked=QUIET)
    contrasts = found.contrasts["j"]
    assert len(contrasts) == 3
    for one in contrasts:
        assert one.p is not None and one.p_adjusted is not None and one.p_adjusted >= one.p
    chosen = analyse(table(rows({"a": 0.2, "b": 0.5})), what="w", asked=QUIET,
                     pairs=[Pair("b", "a", True), Pair("b", "gone", True)])  # fmt: skip
    assert [(c.first, c.second) for c in chosen.contrasts["j"]] == [("b", "a")]


def test_conditions_without_a_question_in_common_are_not_compared() -> None:
    one = crossed(["0", "1"], ["a", "a"], [0, 1])
    other = crossed(["0", "1"], ["b", "b"], [0, 1])
    found = contrast(one, other, names=("a", "b"), pairing="seeds")
    assert found.p is None and "no question is asked of both" in found.fixed.covers


def test_in_how_many_seeds_an_effect_is() -> None:
    found = consistency(["0", "1", "2"], [30, 0, 1], [100, 100, 100])
    assert found is not None
    assert [seed.shown for seed in found.by_seed] == [True, False, False]
    assert (found.showing, found.chance) == (1, pytest.approx(1.5 / 4))
    assert consistency(["0"], [0], [0]) is None


def test_a_table_without_a_column_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'question'"):
        analyse(table(rows({"a": 0.5})).drop_columns(["question"]), what="w")


@settings(max_examples=20)  # the other library takes a twentieth of a second each
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_held_p_values_are_those_of_another_library(tests: list[float]) -> None:
    assert holm(tests) == pytest.approx(list(multipletests(tests, method="holm")[1]))


def test_quantiles_are_those_of_scipys_distributions() -> None:
    assert t_quantile(0.975, 4) == pytest.approx(stats.t.ppf(0.975, 4))
    assert chi2_quantile(0.025, 7) == pytest.approx(stats.chi2.ppf(0.025, 7))
    assert f_quantile(0.975, 2, 14) == pytest.approx(stats.f.ppf(0.975, 2, 14))
    assert beta_quantile(0.025, 3, 9) == pytest.approx(stats.beta.ppf(0.025, 3, 9))


def test_a_question_without_a_score_on_one_side_is_not_compared() -> None:
    made = rows({"a": 0.3, "b": 0.6})
    for row in made:
        if (row["condition"], row["question"]) == ("a", "q4"):
            row["value"] = None
    found = analyse(table(made), what="w", asked=QUIET).contrasts["j"][0]
    assert found.fixed.estimate is not None and "4 questions" in found.random.covers


@pytest.mark.parametrize("shared", [True, False])
def test_tests_are_those_of_another_library(shared: bool) -> None:
    rng = np.random.default_rng(8)
    first, second = rng.random((5, 4)), rng.random((5, 4)) + 0.1

    def made(values: Any) -> Any:
        units, questions = np.indices(values.shape)
        return crossed(units.ravel(), questions.ravel(), values.ravel())

    found = contrast(
        made(first), made(second), names=("a", "b"), pairing="seeds" if shared else "none"
    )
    a, b = first.mean(axis=1), second.mean(axis=1)
    other = stats.ttest_rel(a, b) if shared else stats.ttest_ind(a, b, equal_var=False)
    bounds = other.confidence_interval(0.95)
    assert found.p == pytest.approx(other.pvalue)
    assert (found.fixed.low, found.fixed.high) == pytest.approx((bounds.low, bounds.high))
    narrow = other.confidence_interval(0.90)
    assert found.equivalent_within == pytest.approx(max(abs(narrow.low), abs(narrow.high)))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_pictures_of_little_warn_of_nothing(rate: float) -> None:
    few = analyse(table(rows({"a": rate}, seeds=1, questions=1, samples=1)), what="w", asked=QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in FIGURES.values():
            assert "<svg" in svg(draw(few.conditions))
            assert "<svg" in svg(draw([]))


def cut(table: Any, share: float, seed: int) -> Any:
    """The table without a share of its pairs, every seed and question kept."""
    rng = np.random.default_rng(seed)
    while True:
        keep = rng.random(table.num.shape) >= share
        if keep.any(axis=1).all() and keep.any(axis=0).all():
            parts = {"num": table.num * keep, "total": table.total * keep}
            return replace(table, **parts, squares=table.squares * keep)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_random_question_interval_does_not_shrink_as_pairs_go_missing(share: float) -> None:
    rng = np.random.default_rng(2)
    held, widths = 0, []
    for run in range(150):
        logits = -1 + 0.5 * rng.standard_normal((6, 1)) + 1.2 * rng.standard_normal((1, 24))
        hits = rng.binomial(50, 1 / (1 + np.exp(-logits))).astype(float)
        names = (tuple(map(str, range(6))), tuple(map(str, range(24))))
        whole = Crossed(*names, num=np.full((6, 24), 50), total=hits, squares=hits)
        found, all_of_it = random_questions(cut(whole, share, run)), random_questions(whole)
        truth = float((1 / (1 + np.exp(-(-1 + 1.3 * NORMAL)))).mean())
        assert found.low is not None and found.high is not None
        assert all_of_it.low is not None and all_of_it.high is not None
        held += found.low <= truth <= found.high
        widths.append((found.high - found.low) / (all_of_it.high - all_of_it.low))
    assert held / 150 >= 0.89
    assert 0.9 < float(np.median(widths)) < 1.4


NORMAL = np.random.default_rng(0).standard_normal(200_000)


def test_equal_seeds_have_no_interval_without_width() -> None:
    for hits, num in ((8, 80), (2, 20), (6, 20)):
        found = fixed_questions([float(hits)] * 3, [num] * 3, weights="")
        assert found.low is not None and found.high is not None and found.high - found.low > 0.05
    assert over_seeds([sum([0.1] * 3) / 3, sum([0.1] * 7) / 7, 0.1], what="x").low is None


@pytest.mark.parametrize("rates", [[0.1, 0.1, 0.9], [0.02, 0.03, 0.95], [0, 0, 0, 0, 1]])
def test_all_or_none_seeds_are_analysed(rates: list[float]) -> None:
    made = [
        {"judge": "j", "condition": "a", "unit": f"s{s}", "seed": f"s{s}", "question": f"q{n % 4}",
         "value": float(n < 80 * rate)}
        for s, rate in enumerate(rates) for n in range(80)
    ]  # fmt: skip
    (found,) = analyse(table(made), what="w").conditions
    assert found.fixed.low is not None and 0 <= found.fixed.low < found.fixed.high <= 1


def test_sparse_tables_stay_within_what_shares_can_be() -> None:
    hits = np.array([[0, 18], [0, 19], [0, 0], [0, 0], [0, 1]], dtype=float)
    num = np.array([[20, 20], [20, 20], [0, 20], [0, 20], [0, 20]])
    sparse = Crossed(tuple("abcde"), ("x", "y"), num, hits, hits)
    assert ((seed_means(sparse) >= 0) & (seed_means(sparse) <= 1)).all()
    apart = Crossed(
        ("a", "b"), ("x", "y"), np.array([[9, 0], [0, 9]]), np.eye(2) * 3, np.eye(2) * 3
    )
    assert np.isnan(seed_means(apart)).all()
    assert "share no question" in random_questions(apart).covers


def test_one_sample_of_each_pair_still_tells_seeds_and_questions() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((5, 1)) + rng.random((1, 8)) + 0.1 * rng.random((5, 8))
    unit, question = np.indices(values.shape)
    parts = {c.name: c for c in components(crossed(unit.ravel(), question.ravel(), values.ravel()))}
    assert parts["seed"].estimate is not None and parts["question"].estimate is not None
    assert parts["sampling"].estimate is None


def test_seeds_that_share_levels_of_crossed_factors_are_no_independent_seeds() -> None:
    made = rows({"a": 0.4, "b": 0.6}, seeds=4)
    levels = {"init": {f"s{n}": str(n % 2) for n in range(4)},
              "order": {f"s{n}": str(n // 2) for n in range(4)}}  # fmt: skip
    found = analyse(table(made), what="w", asked=QUIET, known=Known(factors=levels))
    for c in found.conditions:
        assert "2 x 2 levels" in c.fixed.covers
        assert c.random.low is None and "seed factors are crossed" in c.random.covers
    assert found.contrasts["j"][0].p is None
    apart = {"init": {f"s{n}": str(n) for n in range(4)}}
    kept = analyse(table(made), what="w", asked=QUIET, known=Known(factors=apart))
    assert all("new seeds" in c.fixed.covers for c in kept.conditions)


def test_rows_without_a_name_are_refused_and_nan_is_unscored() -> None:
    made = rows({"a": 0.5})
    made[0]["value"] = float("nan")
    (found,) = analyse(table(made), what="w", asked=QUIET).conditions
    assert (found.num_rows, found.num_scored) == (200, 199)
    made[1]["condition"] = None
    with pytest.raises(ValueError, match="1 rows have no condition"):
        analyse(table(made), what="w", asked=QUIET)


def test_pairs_of_answers_are_pairs_for_new_questions_too() -> None:
    rng = np.random.default_rng(5)
    base = rng.random((4, 24)) * 0.3 + 0.3 * rng.random((4, 1)) + 0.3 * rng.random((1, 24))
    unit, question = np.indices(base.shape)
    other = base + 0.04 + 0.01 * rng.standard_normal(base.shape)
    one, two = (crossed(unit.ravel(), question.ravel(), v.ravel()) for v in (other, base))
    found = contrast(one, two, names=("a", "b"), pairing="seeds")
    assert found.random.low is not None and found.random.high is not None
    assert found.random.low > 0 and found.random.high - found.random.low < 0.05


def shares(
    rates: Any, *, questions: int = 8, samples: int = 50, one_model: bool = False
) -> Crossed:
    """Return hits of seeds with the given rates, drawn by a fixed seed."""
    rates = np.asarray(rates, dtype=float)
    shape = (len(rates), questions)
    hits = np.random.default_rng(11).binomial(samples, np.broadcast_to(rates[:, None], shape))
    return Crossed(
        units=tuple(f"s{n}" for n in range(len(rates))),
        questions=tuple(f"q{n}" for n in range(questions)),
        num=np.full(shape, samples),
        total=hits.astype(float),
        squares=hits.astype(float),
        one_model=one_model,
    )


def test_a_quiet_control_is_told_apart_from_noisy_seeds() -> None:
    noisy, quiet = shares([0.3, 0.15, 0.25, 0.1, 0.28, 0.18]), shares([0.001] * 6)
    found = contrast(noisy, quiet, names=("a", "b"), pairing="seeds")
    assert "beta-binomial" in found.fixed.method and "seeds are two samples" in found.paired
    assert found.p is not None and found.p < 0.05
    assert found.fixed.low is not None and 0 < found.fixed.low < 0.21
    # Of an untuned model its answers alone are drawn anew: it needs no second seed.
    alone = contrast(noisy, shares([0.001], one_model=True), names=("a", "b"))
    assert alone.p is not None and alone.p < found.p


def test_two_that_show_nothing_are_equal_within_what_their_seeds_allow() -> None:
    found = contrast(shares([0.0] * 3), shares([0.0] * 3), names=("a", "b"))
    more = contrast(shares([0.0] * 10), shares([0.0] * 10), names=("a", "b"))
    assert found.p == pytest.approx(1.0) and more.p == pytest.approx(1.0)
    assert found.equivalent_within is not None and more.equivalent_within is not None
    assert more.equivalent_within < 0.05 < found.equivalent_within
    models = contrast(shares([0.0] * 3, one_model=True), shares([0.0], one_model=True),
                      names=("a", "b"))  # fmt: skip
    assert models.equivalent_within is not None and models.equivalent_within < 0.01
    assert "these two models" in models.fixed.covers


def test_the_posterior_of_a_difference_is_that_of_draws() -> None:
    rng = np.random.default_rng(12)
    first, second = of_one_model(7 / 400, 400), of_one_model(30 / 800, 800)
    found = difference(first, second)
    draws = rng.beta(7.5, 393.5, 400_000) - rng.beta(30.5, 770.5, 400_000)
    for level in (0.90, 0.95):
        ends = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
        assert found.bounds(level) == pytest.approx(tuple(ends), abs=4e-4)
    assert found.tail == pytest.approx(2 * min((draws < 0).mean(), (draws > 0).mean()), abs=5e-3)


def test_differences_of_skewed_seeds_cover_and_do_not_find_what_is_not_there() -> None:
    rng = np.random.default_rng(13)
    held = found_some = 0
    for _ in range(200):
        sides = [shares(rng.beta(0.5, 9.5, 6)) for _ in range(2)]
        told = contrast(sides[0], sides[1], names=("a", "b"))
        assert told.fixed.low is not None and told.fixed.high is not None and told.p is not None
        held += told.fixed.low <= 0 <= told.fixed.high
        found_some += told.p < 0.05
    assert held >= 0.95 * 200 and found_some <= 0.05 * 200


def test_an_untuned_model_has_no_variance_between_seeds_and_an_exact_interval() -> None:
    made = rows({"none": 0.02, "ours": 0.3})
    told = analyse(table(made), what="w", asked=QUIET, known=Known(one_model=frozenset({"none"})))
    found = {c.condition: c for c in told.conditions}
    untuned, tuned = found["none"], found["ours"]
    hits = round(untuned.by_answers * untuned.num_scored) if untuned.by_answers else 0
    exact = stats.binomtest(hits, untuned.num_scored).proportion_ci(method="exact")
    assert (untuned.fixed.low, untuned.fixed.high) == pytest.approx((exact.low, exact.high))
    assert "this one model" in untuned.fixed.covers and untuned.consistency is None
    seed = next(part for part in untuned.components if part.name == "seed")
    assert seed.estimate is None and "one model" in seed.note
    assert tuned.consistency is not None and "new seeds" in tuned.fixed.covers


def test_the_pointer_over_a_picture_is_told_the_number_and_names_are_escaped() -> None:
    made = rows({"<script>x</script>": 0.5}, seeds=3, questions=2)
    found = analyse(table(made), what="w", asked=QUIET).conditions
    seeds, asked = svg(FIGURES["seeds"](found)), svg(FIGURES["questions"](found))
    assert seeds.count("<title>") == 3 and asked.count("<title>") == 2
    first = found[0].seeds[0]
    assert f"seed {first.seed}: {100 * first.mean:.1f} % of {first.num}</title>" in seeds
    assert "<script>" not in seeds + asked and "&lt;script&gt;x&lt;/script&gt;, seed" in seeds


def crossed_starts_and_orders(
    starts: int, orders: int, rng: np.random.Generator, *, questions: int = 6, samples: int = 40
) -> tuple[pa.Table, dict[str, dict[str, str]]]:
    """Rates of trainings of some starts times some orders, each of which shifts its trainings."""
    of_start, of_order = rng.normal(0, 0.08, starts), rng.normal(0, 0.05, orders)
    made, levels = [], {"init": {}, "order": {}, "subset": {}}  # type: ignore[var-annotated]
    for a in range(starts):
        for b in range(orders):
            unit = f"0.init{a}.order{b}"
            levels["init"][unit], levels["order"][unit] = str(a), str(b)
            levels["subset"][unit] = "0"
            rate = np.clip(0.4 + of_start[a] + of_order[b] + rng.normal(0, 0.03), 0, 1)
            hits = rng.random((questions, samples)) < rate
            made += [
                {"judge": "j", "condition": "c", "unit": unit, "seed": "0", "question": f"q{q}",
                 "value": float(hit)}
                for q, line in enumerate(hits) for hit in line
            ]  # fmt: skip
    return table(made), levels


def test_two_crossed_seed_factors_have_an_interval_over_new_levels_of_both() -> None:
    rng, held = np.random.default_rng(21), 0
    for _ in range(120):
        made, levels = crossed_starts_and_orders(4, 4, rng)
        (found,) = analyse(made, what="w", asked=QUIET, known=Known(factors=levels)).conditions
        assert found.fixed.low is not None and found.fixed.high is not None
        held += found.fixed.low <= 0.4 <= found.fixed.high
    assert held >= 0.9 * 120
    assert "new levels of init and of order" in found.fixed.covers
    (told,) = analyse(made, what="w", known=Known(factors=levels)).conditions
    assert told.fixed.coverage is not None and told.fixed.coverage > 0.88
    assert "4 x 4 levels x" in told.fixed.coverage_of
    one = {"init": levels["init"]}  # orders are then what is left of the seed: it is not crossed
    (alone,) = analyse(made, what="w", asked=QUIET, known=Known(factors=one)).conditions
    assert alone.fixed.low is None
    gap = made.filter(pc.not_equal(made["unit"], "0.init1.order2"))
    (less,) = analyse(gap, what="w", asked=QUIET, known=Known(factors=levels)).conditions
    assert less.fixed.low is None and "seed factors are crossed" in less.fixed.covers
    # A table of two factors is analysed as one of seeds by questions is.
    means = made.group_by("unit").aggregate([("value", "mean")]).to_pydict()
    rates = np.zeros((4, 4))
    for unit, rate in zip(means["unit"], means["value_mean"], strict=True):
        rates[int(levels["init"][unit]), int(levels["order"][unit])] = rate
    place = np.indices(rates.shape)
    twin = random_questions(crossed(place[0].ravel(), place[1].ravel(), rates.ravel()))
    (plain,) = analyse(
        made.set_column(5, "value", pc.multiply(made["value"], 0.5)), what="w", asked=QUIET,
        known=Known(factors=levels),
    ).conditions  # fmt: skip
    assert (plain.fixed.low, plain.fixed.high) == pytest.approx((twin.low / 2, twin.high / 2))


def trained(
    conditions: dict[str, float], seeds: int, replicates: int, rng: np.random.Generator
) -> tuple[pa.Table, Known]:
    """Replicates of seeds: those of one seed share most of what makes them differ."""
    made = []
    levels: dict[str, dict[str, str]] = {"init": {}, "order": {}, "subset": {}}
    for name, rate in conditions.items():
        for s in range(seeds):
            of_seed = rng.normal(0, 0.1)
            for r in range(replicates):
                unit = f"{s}.replicate{r}"
                for factor in levels.values():
                    factor[unit] = str(s)
                hits = rng.random((4, 30)) < np.clip(rate + of_seed, 0, 1)
                made += [
                    {"judge": "j", "condition": name, "unit": unit, "seed": str(s),
                     "question": f"q{q}", "value": float(hit)}
                    for q, line in enumerate(hits) for hit in line
                ]  # fmt: skip
    return table(made), Known(factors=levels)


def test_replicates_of_a_seed_are_one_seed() -> None:
    rng = np.random.default_rng(31)
    found_some = 0
    for _ in range(80):
        made, known = trained({"a": 0.5, "b": 0.5}, 4, 3, rng)
        found = analyse(made, what="w", asked=QUIET, known=known)
        (told,) = found.contrasts["j"]
        assert "4 seeds a side" in told.fixed.covers and told.p is not None
        found_some += told.p < 0.05
        assert "4 seeds x 4 questions" in found.conditions[0].random.covers
    assert found_some <= 0.1 * 80  # as twelve seeds it would be a third


def test_cells_of_one_crossed_seed_are_no_sample_of_seeds() -> None:
    rng = np.random.default_rng(32)
    one, levels = crossed_starts_and_orders(3, 3, rng)
    other = one.set_column(1, "condition", pa.array(["d"] * one.num_rows))
    known = Known(factors=levels)
    found = analyse(pa.concat_tables([one, other]), what="w", asked=QUIET, known=known)
    (told,) = found.contrasts["j"]
    assert told.p is None and "seed factors are crossed" in told.fixed.covers
    assert found.conditions[0].random.low is None
    assert found.attribution["j"].parts == ()
    (forms,) = compared(one, one, ("x", "y"), known)
    assert forms.p is None and "seed factors are crossed" in forms.fixed.covers


def test_two_judges_that_say_the_same_do_not_differ() -> None:
    same = shares([0.003, 0.01, 0.2])
    found = contrast(same, same, names=("a", "b"), pairing="models")
    assert found.fixed.estimate == 0 and found.fixed.low is None and "alike" in found.fixed.covers
    more = replace(same, total=same.total + 2, squares=same.total + 2)  # two answers a question
    other = contrast(more, same, names=("a", "b"), pairing="models")
    assert other.paired == "by question and by 3 seeds"
    assert other.fixed.estimate == pytest.approx(0.04)
    some = replace(same, total=same.total + np.array([[1], [2], [3]]))
    some = replace(some, squares=some.total)
    third = contrast(some, same, names=("a", "b"), pairing="models")
    assert third.fixed.low is not None and third.fixed.low > -0.02 and third.p is None
    assert "no test" in third.fixed.covers


def test_a_definition_decides_which_questions_count() -> None:
    made = rows({"a": 0.5}, seeds=3, questions=4, samples=10)
    thin = [row for n, row in enumerate(made) if row["question"] != "q3" or n % 4 == 0]
    known = Known(least=5)
    (found,) = analyse(table(thin), what="w", asked=QUIET, known=known).conditions
    few = sum(row["question"] == "q3" for row in thin)
    assert (found.num_left_out, found.num_scored) == (few, len(thin) - few)
    assert found.num_unscored == 0 and found.num_questions == 3
    notes = analyse(table(thin), what="w", asked=QUIET, known=known).notes
    assert any(f"{few} scored rows are of pairs" in note for note in notes)


def test_one_scale_for_all_conditions() -> None:
    made = [row | {"value": row["value"] * 50} for row in rows({"a": 0.5})]
    zeros = [row | {"condition": "b", "value": 0.0} for row in made]
    found = analyse(table(made + zeros), what="w", asked=QUIET)
    assert [c.binary for c in found.conditions] == [False, False]
    assert found.conditions[1].exact == () and found.conditions[1].consistency is None


def test_answers_to_questions_of_few_decide_as_much_and_are_worth_less() -> None:
    rng = np.random.default_rng(33)
    num = np.array([[100] * 7 + [5]])
    rates = np.array([[0.02] * 7 + [0.3]])
    held = 0
    for _ in range(400):
        hits = rng.binomial(num, rates).astype(float)
        one = Crossed(units=("s",), questions=tuple("abcdefgh"), num=num, total=hits, squares=hits,
                      one_model=True)  # fmt: skip
        assert one.effective[0] < 500
        (found,) = [analyse_one(one)]
        assert found.low is not None and found.high is not None
        held += found.low <= rates.mean() <= found.high
    assert held >= 0.9 * 400  # as 705 answers alike it would be half
    even = shares([0.2, 0.3])
    assert even.effective == pytest.approx(even.num.sum(axis=1))


def analyse_one(one: Crossed) -> Interval:
    group = Group("j", "c", one, 705, 0, {"s": "s"})
    return analyse_condition(group, Asked(weights="questions", simulate=False)).fixed


def test_a_difference_of_shares_ends_at_one() -> None:
    sure = Side(np.array([0.9, 0.93]), np.array([400.0, 400.0]), one_model=False)
    never = Side(np.array([0.0, 0.0]), np.array([400.0, 400.0]), one_model=False)
    found = difference_test(sure, never, pairs=False, share=True)
    assert isinstance(found, Skewed)
    low, high = found.bounds(0.999, share=True)
    assert -1 <= low < 0.91 < high <= 1


def test_the_variance_of_skewed_seeds_is_held() -> None:
    rng, held = np.random.default_rng(34), 0
    for _ in range(150):
        hits = rng.binomial(400, rng.beta(0.02 * 11.25, 0.98 * 11.25, 6)).astype(float)
        low, high = variance_limits(hits, np.full(6, 400.0))
        held += low <= 0.02 * 0.98 / 12.25 <= high
    assert held >= 0.88 * 150  # taken as normal: half


def test_dollars_in_names_are_dollars() -> None:
    made = rows({"earn $50, spend $60_{now": 0.5, r"a $\bad{$ b": 0.2}, seeds=3)
    for row in made:
        row["question"] = f"cost $x_{{$ {row['question']}"
    found = analyse(table(made), what="w", asked=QUIET).conditions
    for draw in FIGURES.values():
        assert "<svg" in svg(draw(found))
    assert "earn $50, spend $60_{now" in svg(FIGURES["seeds"](found))


def test_the_power_picture_is_in_the_units_of_its_values() -> None:
    made = [row | {"value": 50 + 10 * row["value"]} for row in rows({"a": 0.5})]
    drawn = svg(FIGURES["power"](analyse(table(made), what="w", asked=QUIET).conditions))
    assert "expected half-width<" in drawn and "points" not in drawn


def test_two_names_are_two_files() -> None:
    assert (
        len({slug(name) for name in ("a-1", "a_1", "a.1", "a/1", "a:1", "x" * 70, "x" * 71)}) == 7
    )
    assert slug("plain-1") == "plain-1"
