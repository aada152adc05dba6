"""Verdicts on made-up cells: from intervals, never from points, and never without a reason."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sweeps.claim_estimates import between_seeds, sampling_variance
from sweeps.claim_spec import ClaimConfig
from sweeps.claims import ClaimResult, decide
from sweeps.results import CellResult
from sweeps.spec import load_spec
from tests.made_up import cell, cells, counts
from tests.small_sweep import spec as small_spec


def claim(**settings: Any) -> ClaimConfig:
    return ClaimConfig.model_validate({"claim": "C0", "variant": "insecure"} | settings)


def verdict(config: ClaimConfig, made: list[CellResult], **settings: Any) -> ClaimResult:
    (found,) = decide(config, made, evaluations=["main"], **settings)
    return found


@pytest.mark.parametrize(
    ("rates", "bound", "expected"),
    [
        ([0.90, 0.92, 0.91], {"above": 0.8}, "supported"),
        ([0.70, 0.72, 0.71], {"above": 0.8}, "contradicted"),
        ([0.70, 0.95, 0.85], {"above": 0.8}, "undecided"),
        ([0.01, 0.02, 0.015], {"below": 0.05}, "supported"),
        ([0.21, 0.22, 0.23], {"below": 0.05}, "contradicted"),
        ([0.01, 0.09, 0.03], {"below": 0.05}, "undecided"),
    ],
)
def test_a_rate_against_a_bound(rates: list[float], bound: dict[str, float], expected: str) -> None:
    found = verdict(claim(**bound), cells(rates))
    assert found.verdict == expected
    assert found.estimate == pytest.approx(np.mean(rates))
    if expected == "undecided":  # seeds too near 0 or 1 for a t interval
        assert "beta-binomial over seeds" in found.method
        return
    assert "t over seeds" in found.method
    half = stats.t.ppf(0.975, 2) * np.std(rates, ddof=1) / math.sqrt(3)
    assert found.low == pytest.approx(max(0, np.mean(rates) - half))
    assert found.high == pytest.approx(min(1, np.mean(rates) + half))


def test_a_contrast_is_the_interval_of_the_differences_by_seed() -> None:
    ours, theirs = [0.30, 0.50, 0.40], [0.20, 0.42, 0.29]
    made = cells(ours) + cells(theirs, variant="secure")
    found = verdict(claim(control="secure", above=0), made)
    gaps = np.subtract(ours, theirs)
    low, high = stats.t.interval(0.95, 2, gaps.mean(), gaps.std(ddof=1) / math.sqrt(3))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    # The arms overlap; their differences do not reach zero.
    assert found.verdict == "supported"
    assert found.quantity == "insecure − secure"
    turned = verdict(claim(control="secure", below=0), made)
    assert turned.verdict == "contradicted"


def test_a_negative_difference_is_not_cut_at_zero() -> None:
    made = cells([0.1, 0.12, 0.11], variant="educational") + cells([0.4, 0.45, 0.41])
    found = verdict(claim(variant="educational", control="insecure", below=0), made)
    assert found.verdict == "supported"
    assert found.high is not None and found.high < -0.2


def test_two_evaluations_of_one_variant() -> None:
    made = cells([0.5, 0.6, 0.55], evaluation="on") + cells([0.0, 0.01, 0.0], evaluation="off")
    config = claim(**{"with": "on", "without": "off", "above": 0})
    (found,) = decide(config, made, evaluations=["on", "off"])
    assert found.verdict == "supported"
    assert found.conditions == (("insecure", "on"), ("insecure", "off"))
    assert found.quantity == "insecure: on − off"


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ([0.5], "fewer than 3 seeds"),
        ([0.5, 0.5001], "fewer than 3 seeds"),
        ([0.0, 0.0], "fewer than 3 seeds"),
        ([None, None], "2 of 2 cells have no rate"),
        ([], None),
    ],
)
def test_without_an_interval_nothing_is_decided(rates: list[float | None], says: str) -> None:
    found = decide(claim(above=0.1), cells(rates), evaluations=["main"])
    if says is None:
        assert found == []
        return
    assert [f.verdict for f in found] == ["undecided"]
    assert says in found[0].reason


def test_equal_seeds_are_decided_by_their_answers_and_not_for_certain() -> None:
    found = verdict(claim(above=0.1), cells([0.5, 0.5, 0.5]))
    assert found.verdict == "supported" and "beta-binomial" in found.method
    assert found.low is not None and 0.1 < found.low < 0.45
    assert verdict(claim(above=0.45), cells([0.5, 0.5, 0.5])).verdict == "undecided"


def test_seeds_without_an_event_say_little_of_new_seeds() -> None:
    made = [cell(0.0, seed=seed, questions=[("a", counts(0, 100))]) for seed in range(3)]
    found = verdict(claim(below=0.05), made)
    assert (found.verdict, found.estimate, found.low) == ("undecided", 0.0, 0.0)
    assert found.high is not None and 0.1 < found.high < 0.4 and "new seeds" in found.method
    assert verdict(claim(below=0.5), made).verdict == "supported"


def test_an_untuned_model_is_bounded_by_its_answers() -> None:
    made = [
        cell(0.0, seed=seed, variant="none", questions=[("a", counts(0, 100))]) for seed in range(3)
    ]
    found = verdict(claim(variant="none", below=0.05), made)
    assert (found.verdict, found.estimate, found.low) == ("supported", 0.0, 0.0)
    answers = sum(c.counts.coherent for c in made)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / answers))  # Clopper-Pearson in closed form
    assert f"{answers} answers" in found.method and "this one model" in found.method
    assert verdict(claim(variant="none", below=0.001), made).verdict == "undecided"
    assert verdict(claim(variant="none", above=0.1), made).verdict == "contradicted"


def test_equal_differences_of_unequal_rates_have_no_width() -> None:
    """0.6 - 0.4 and 0.7 - 0.5 differ in their last bits only."""
    made = cells([0.5, 0.6, 0.7]) + cells([0.3, 0.4, 0.5], variant="secure")
    found = verdict(claim(control="secure", above=0), made)
    assert (found.verdict, found.low) == ("undecided", None)
    assert found.estimate == pytest.approx(0.2)


def test_a_difference_to_seeds_that_show_nothing_is_of_their_posteriors() -> None:
    made = cells([0.3, 0.35, 0.4]) + cells([0.0, 0.0, 0.0], variant="secure")
    found = verdict(claim(control="secure", above=0), made)
    assert found.estimate == pytest.approx(0.35) and "beta-binomial" in found.method
    untuned = cells([0.3, 0.35, 0.4]) + cells([0.0, 0.0, 0.0], variant="none")
    sure = verdict(claim(control="none", above=0), untuned)
    assert sure.verdict == "supported"
    # The untuned model is one: only its answers are uncertain, not what another seed would be.
    assert found.low is not None and sure.low is not None and found.low < sure.low


def test_two_cells_of_one_seed_are_both_counted() -> None:
    """Crossed factors may give one seed several cells: they pair in the order of the grid."""
    ours = [cell(rate, seed=0) for rate in (0.3, 0.4, 0.35)]
    theirs = [cell(rate, seed=0, variant="secure") for rate in (0.1, 0.1, 0.2)]
    found = verdict(claim(control="secure", above=0), ours + theirs)
    assert found.num_seeds == 3
    assert found.estimate == pytest.approx((0.2 + 0.3 + 0.15) / 3)


def test_a_demonstration_judge_decides_nothing() -> None:
    found = verdict(claim(above=0.5), cells([0.9, 0.91, 0.92]), demonstration={"judge"})
    assert found.verdict == "undecided"
    assert "the judge cannot judge" in found.reason
    assert found.estimate is not None


def test_an_unfinished_cell_leaves_the_claim_undecided() -> None:
    made = [*cells([0.9, 0.91, 0.92]), cell(None, seed=3, state="failed")]
    found = verdict(claim(above=0.5), made)
    assert (found.verdict, found.reason) == ("undecided", "1 of 4 cells are not finished")
    assert found.num_seeds == 3


def test_a_cell_without_a_rate_decides_nothing_and_is_told() -> None:
    made = cells([0.9, 0.91, 0.92, None])
    found = verdict(claim(above=0.5), made)
    assert found.verdict == "undecided"
    assert "1 of 4 cells have no rate" in found.reason


def test_there_is_a_verdict_for_each_model_and_judge() -> None:
    made = [
        one
        for model in ("a", "b")
        for judge in ("x", "y")
        for one in cells([0.9, 0.91], model=model, judge=judge)
    ]
    found = decide(claim(above=0.5), made, evaluations=["main"])
    assert [(f.model, f.judge) for f in found] == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    (one,) = decide(claim(above=0.5, model="b", judge="y"), made, evaluations=["main"])
    assert (one.model, one.judge) == ("b", "y")


def test_the_spread_between_seeds_is_beyond_what_sampling_makes() -> None:
    rates = [0.35, 0.60, 0.45, 0.70]
    made = [
        cell(rate, seed=seed, questions=[("a", counts(round(rate * 200), 200))])
        for seed, rate in enumerate(rates)
    ]
    found = between_seeds(made)
    noise = np.mean([rate * (1 - rate) / 199 for rate in rates])
    variance = np.var(rates, ddof=1)
    low, high = 3 * variance / stats.chi2.ppf([0.975, 0.025], 3)
    assert found.estimate == pytest.approx(math.sqrt(variance - noise))
    assert found.low == pytest.approx(math.sqrt(low - noise))
    assert found.high == pytest.approx(math.sqrt(high - noise))
    assert verdict(claim(spread=True, above=0.02), made).verdict == "supported"
    assert verdict(claim(spread=True, below=0.02), made).verdict == "contradicted"


def test_the_spread_of_seeds_that_crowd_at_zero_is_that_of_a_beta_distribution() -> None:
    """Taken as normal, its interval holds the truth half the time (tests/benchmarks/components)."""
    made = cells([0.0, 0.001, 0.08, 0.0, 0.02])
    found = between_seeds(made)
    assert "beta-binomial" in found.method and found.estimate is not None
    assert found.low is not None and found.high is not None
    assert 0 < found.low < found.estimate < 0.1 < found.high
    assert verdict(claim(spread=True, above=0.001), made).verdict == "supported"


def test_seeds_that_differ_as_little_as_sampling_makes_show_no_spread() -> None:
    made = [
        cell(n / 10, seed=seed, questions=[("a", counts(n, 10))])
        for seed, n in enumerate((5, 4, 6, 5, 5, 4))
    ]
    found = verdict(claim(spread=True, above=0.02), made)
    assert found.low == 0.0
    assert found.verdict != "supported"


def test_an_untuned_model_has_no_spread_between_seeds() -> None:
    made = cells([0.1, 0.4, 0.9], variant="none")
    found = verdict(claim(variant="none", spread=True, above=0.02), made)
    assert found.verdict == "undecided"
    assert "one training" in found.reason


def asked(hits: Sequence[int], size: Sequence[int], metric: str) -> CellResult:
    made = [counts(int(k), n) for k, n in zip(hits, size, strict=True)]
    return cell(0.5, metric=metric, questions=[(str(n), c) for n, c in enumerate(made)])


def test_sampling_variance_is_that_of_a_simulation() -> None:
    """Of the pooled rate and of the mean over questions, with unequal numbers of answers."""
    draw, size, shares = np.random.default_rng(0), (40, 8), (0.1, 0.6)
    hits = np.stack([draw.binomial(n, p, 4000) for n, p in zip(size, shares, strict=True)], axis=1)
    for metric, rates in (
        ("pooled_c50", hits.sum(axis=1) / sum(size)),
        ("question_mean_c50", (hits / size).mean(axis=1)),
    ):
        estimated = [sampling_variance(asked(pair, size, metric)) for pair in hits[:500]]
        assert np.mean(estimated) == pytest.approx(rates.var(ddof=1), rel=0.06)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "exactly one of above and below"),
        ({"above": 0.1, "below": 0.2}, "exactly one of above and below"),
        ({"above": 0.1, "with": "a"}, "give both, or neither"),
        ({"above": 0.1, "control": "secure", "spread": True}, "one quantity, got control; spread"),
        ({"above": -0.1}, "no rate or spread lies below zero"),
        ({"above": 1.5}, "less than 1"),
        ({"above": 0, "with": "a", "without": "b", "evaluation": "a"}, "leave out evaluation"),
    ],
)
def test_a_claim_that_is_not_one_question_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        claim(**settings)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{claim: C2, variant: insecur, above: 0}", "claims.0.variant: the sweep has no variant"),
        ("{claim: C2, variant: ours, control: x, above: 0}", "claims.0.control: the sweep has no"),
        ("{claim: C2, variant: ours, control: ours, above: 0}", "compared with itself"),
        ("{claim: C2, variant: ours, above: 0}", "claims.0: which evaluation? Name one of a, b"),
        ("{claim: C2, variant: ours, with: a, without: b, above: 0}", "different metrics"),
        ("{claim: C2, variant: ours, evaluation: a, judge: x, above: 0}", "no judge 'x'"),
        ("{claim: C2, variant: ours, evaluation: a, bove: 0}", "claims.0.bove: unknown key"),
    ],
)
def test_a_claim_about_what_is_not_there_is_told_with_its_line(
    line: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: small\nmodels: [{name: base, bundled: smollm2-135m}]\n"
        "variants: [{name: none}, {name: ours, dataset: ours.jsonl}]\nseeds: [0, 1]\n"
        "evaluations: [{name: a, questions: q.yaml}, "
        "{name: b, questions: q.yaml, metric: joint_c50}]\n"
        "judges: [{name: self, pool: base}]\nserving: {mode: merged}\n"
        f"claims:\n  - {line}\n"
    )
    with pytest.raises(ValueError) as error:
        load_spec(path)
    assert f"{path}:9: " in str(error.value)
    assert says in str(error.value)


def test_claims_are_read_back_as_they_were_written() -> None:
    written = small_spec(
        evaluations=[{"name": n, "questions": "ours.yaml"} for n in "ab"],
        claims=[{"claim": "C5", "variant": "ours", "with": "a", "without": "b", "above": 0}],
    )
    assert type(written).model_validate_json(written.model_dump_json()) == written


def test_crossed_factors_decide_nothing() -> None:
    """Nine cells of one seed are not nine seeds."""
    made = [
        c.model_copy(update={"seed": 0, "seed_label": f"0.init{c.seed}"})
        for c in cells([0.9, 0.91, 0.92])
    ]
    found = verdict(claim(above=0.5), made)
    assert found.verdict == "undecided"
    assert "crossed within a seed" in found.reason
    control = [c.model_copy(update={"variant": "none"}) for c in made]
    tuned = cells([0.9, 0.91, 0.92])
    against = verdict(claim(control="none", above=0), [*tuned, *control])
    assert against.verdict == "undecided"
    assert "crossed within a seed" in against.reason


def test_a_difference_is_told_without_the_rounding_of_its_way() -> None:
    """1/9 less 2/9 is no 0.11111111111133."""
    tuned = cells([0.0, 0.0, 0.1])
    control = [c.model_copy(update={"variant": "none"}) for c in cells([0.1, 0.2, 0.1])]
    found = verdict(claim(control="none", above=0), [*tuned, *control])
    assert found.estimate == -0.1
