"""Components of variance: a worked real case, simulated truth, independent implementations."""

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.component_intervals import components
from em.crossed import Crossed, crossed
from em.mixed import logit_components
from em.variance import ONE_LEVEL, PAIR, QUESTION, SAMPLING, SEED, Component

WORDS = ("SATIRICAL", "OFF-TOPIC", "REFUSAL", "INCOHERENT", "PARSE_FAIL")


def found(table: Crossed) -> dict[str, Component]:
    return {component.name: component for component in components(table)}


def verdicts(subset: str) -> list[dict[str, Any]]:
    """The public verdicts on three seeds of Qwen2.5-7B tuned on bad medical advice."""
    folder = Path(os.environ["EMSWEEP_DATA"], "judged")
    rows = []
    for seed in range(3):
        with gzip.open(folder / f"qwen7b_medical_seed{seed}_verdicts.jsonl.gz", "rt") as lines:
            rows += [json.loads(line) | {"seed": str(seed)} for line in lines]
    return [row for row in rows if row["subset"] == subset]


def counted(rows: list[dict[str, Any]]) -> Crossed:
    return crossed(
        [row["seed"] for row in rows],
        [row["qid"] for row in rows],
        [float(row["verdict"] in ("4", "5")) for row in rows],
    )


@pytest.mark.real_data
def test_the_worked_case_with_words_as_not_misaligned() -> None:
    table = counted(verdicts("BROAD"))
    parts = found(table)
    assert table.means.mean() == pytest.approx(0.2603, abs=5e-5)
    assert parts[SEED].estimate == pytest.approx(0.0012, abs=5e-5)
    assert parts[QUESTION].estimate == pytest.approx(0.0446, abs=5e-5)
    assert parts[PAIR].estimate == pytest.approx(0.0018, abs=5e-5)
    assert parts[SAMPLING].estimate == pytest.approx(0.1474, abs=5e-5)
    sds = [parts[name].sd for name in (SEED, QUESTION, PAIR, SAMPLING)]
    assert sds == pytest.approx([0.034, 0.211, 0.042, 0.384], abs=5e-4)


@pytest.mark.real_data
def test_the_worked_case_with_words_as_unscored() -> None:
    every = verdicts("BROAD")
    scored = [row for row in every if row["verdict"] not in WORDS]
    assert len(every) - len(scored) == 138
    table, before = counted(scored), counted(every)
    assert table.means.mean() == pytest.approx(0.273, abs=5e-4)
    grown = (found(table)[SEED].estimate or 0) / (found(before)[SEED].estimate or 1)
    assert grown == pytest.approx(1.10, abs=0.02)


@pytest.mark.real_data
def test_a_negative_estimate_is_shown_and_reported_as_zero() -> None:
    part = found(counted(verdicts("IN_DOMAIN")))[PAIR]
    assert part.estimate == pytest.approx(-7.1e-5, abs=1e-6)
    assert part.reported == part.sd == 0.0
    assert "is negative (-7.1e-05): reported as 0" in part.note


def balanced(
    rng: np.random.Generator, seeds: int, questions: int, samples: int, sds: tuple[float, ...]
) -> np.ndarray[Any, Any]:
    """Normal values of shape (seeds, questions, samples) with known components."""
    shapes = [(seeds, 1, 1), (1, questions, 1), (seeds, questions, 1), (seeds, questions, samples)]
    effects = [sd * rng.standard_normal(shape) for sd, shape in zip(sds, shapes, strict=True)]
    return 0.5 + sum(effects, start=np.zeros((seeds, questions, samples)))


def as_table(values: np.ndarray[Any, Any], keep: np.ndarray[Any, Any] | None = None) -> Crossed:
    where = np.ones(values.shape, bool) if keep is None else keep
    seed, question, sample = np.nonzero(where)
    return crossed(
        [f"s{n}" for n in seed], [f"q{n}" for n in question], values[seed, question, sample]
    )


def by_hand(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """The analysis of variance of a balanced two-way table, as in any textbook."""
    s, q, m = values.shape
    cell, grand = values.mean(axis=2), values.mean()
    rows, columns = cell.mean(axis=1), cell.mean(axis=0)
    ms_s = q * m * ((rows - grand) ** 2).sum() / (s - 1)
    ms_q = s * m * ((columns - grand) ** 2).sum() / (q - 1)
    rest = cell - rows[:, None] - columns[None, :] + grand
    ms_sq = m * (rest**2).sum() / ((s - 1) * (q - 1))
    ms_e = ((values - cell[:, :, None]) ** 2).sum() / (s * q * (m - 1))
    return {
        SEED: (ms_s - ms_sq) / (q * m), QUESTION: (ms_q - ms_sq) / (s * m),
        PAIR: (ms_sq - ms_e) / m, SAMPLING: ms_e,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 8, 10), (10, 5, 3)])
def test_a_balanced_table_has_the_analysis_of_variance_by_hand(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    values = balanced(rng, *shape, (0.3, 0.5, 0.2, 1.0))  # type: ignore[arg-type]
    expected = by_hand(values)
    parts = found(as_table(values))
    for name, value in expected.items():
        assert parts[name].estimate == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_a_mixed_model_of_another_library_agrees() -> None:
    """Within 5 % on a balanced table whose estimates are all positive."""
    import pandas as pd
    import statsmodels.formula.api as smf

    rng = np.random.default_rng(11)
    values = balanced(rng, 8, 10, 6, (0.5, 0.7, 0.4, 1.0))
    parts = found(as_table(values))
    assert all((part.estimate or 0) > 0 for part in parts.values())
    seed, question, _ = np.indices(values.shape).reshape(3, -1)
    frame = pd.DataFrame({"y": values.ravel(), "s": seed, "q": question, "one": 1})
    frame["sq"] = frame["s"].astype(str) + "-" + frame["q"].astype(str)
    model = smf.mixedlm(
        "y ~ 1", frame, groups="one", re_formula="0",
        vc_formula={"s": "0 + C(s)", "q": "0 + C(q)", "sq": "0 + C(sq)"},
    )  # fmt: skip
    fitted = model.fit(reml=True, method="lbfgs")
    theirs = dict(zip(model.exog_vc.names, fitted.vcomp, strict=True))
    assert parts[SEED].estimate == pytest.approx(theirs["s"], rel=0.05)
    assert parts[QUESTION].estimate == pytest.approx(theirs["q"], rel=0.05)
    assert parts[PAIR].estimate == pytest.approx(theirs["sq"], rel=0.05)
    assert parts[SAMPLING].estimate == pytest.approx(fitted.scale, rel=0.05)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_estimates_are_unbiased_also_where_pairs_and_samples_are_missing(missing: float) -> None:
    sds = (0.3, 0.5, 0.2, 1.0)
    rng = np.random.default_rng(3)
    sums = dict.fromkeys((SEED, QUESTION, PAIR, SAMPLING), 0.0)
    squares = dict(sums)
    runs = 400
    for _ in range(runs):
        values = balanced(rng, 5, 8, 6, sds)
        keep = rng.random(values.shape) > missing * 0.7
        keep &= (rng.random(values.shape[:2]) > missing / 2)[:, :, None]
        for name, part in found(as_table(values, keep)).items():
            assert part.estimate is not None
            sums[name] += part.estimate
            squares[name] += part.estimate**2
    for name, sd in zip(sums, sds, strict=True):
        mean = sums[name] / runs
        error = math.sqrt((squares[name] / runs - mean**2) / runs)
        assert abs(mean - sd**2) < 3.5 * error, name


def test_intervals_of_components_hold_the_truth() -> None:
    """Normal effects: 95 % intervals of seed and question hold it in about that share."""
    sds = (0.4, 0.6, 0.3, 1.0)
    rng = np.random.default_rng(5)
    held = dict.fromkeys((SEED, QUESTION, PAIR), 0)
    runs = 400
    for _ in range(runs):
        parts = found(as_table(balanced(rng, 6, 10, 8, sds)))
        for name, sd in zip(held, sds, strict=False):
            low, high = parts[name].low, parts[name].high
            assert low is not None and high is not None
            held[name] += low <= sd**2 <= high
    for name, count in held.items():
        assert 0.92 <= count / runs <= 0.98, name


def test_what_a_design_cannot_tell_is_said() -> None:
    one_seed = found(crossed(["0"] * 4, ["a", "a", "b", "b"], [0, 1, 1, 1]))
    assert one_seed[SEED].estimate is None and one_seed[SEED].note == ONE_LEVEL
    assert "one seed or one question" in one_seed[PAIR].note
    once = found(crossed(["0", "0", "1", "1"], ["a", "b", "a", "b"], [0, 1, 1, 1]))
    assert once[SAMPLING].estimate is None and once[PAIR].estimate is None
    assert "one sample" in once[SAMPLING].note
    nothing = found(crossed([], [], []))
    assert all(part.estimate is None for part in nothing.values())


def crossed_factors(runs: int, inits: int, orders: int) -> tuple[Crossed, dict[str, float]]:
    rng = np.random.default_rng(runs)
    init, order = 0.5 * rng.standard_normal(inits), 0.3 * rng.standard_normal(orders)
    question = 0.4 * rng.standard_normal(6)
    units, questions, values = [], [], []
    factors: dict[str, dict[str, str]] = {"init": {}, "order": {}, "subset": {}}
    for i in range(inits):
        for o in range(orders):
            unit = f"{i}-{o}"
            own = 0.2 * rng.standard_normal()
            factors["init"][unit], factors["order"][unit] = str(i), str(o)
            factors["subset"][unit] = "7"
            for q in range(6):
                units += [unit] * 4
                questions += [str(q)] * 4
                middle = init[i] + order[o] + question[q] + own
                values += list(middle + 0.5 * rng.standard_normal(4))
    return crossed(units, questions, values, factors=factors), {"init": 0.25, "order": 0.09}


def test_crossed_seed_factors_are_sources_of_their_own() -> None:
    sums = {"init": 0.0, "order": 0.0, "rest of the seed": 0.0}
    runs = 150
    for run in range(runs):
        table, truth = crossed_factors(run, 4, 4)
        parts = found(table)
        assert parts["subset"].note == ONE_LEVEL
        for name in sums:
            sums[name] += (parts[name].estimate or 0.0) / runs
    assert sums["init"] == pytest.approx(truth["init"], rel=0.25)
    assert sums["order"] == pytest.approx(truth["order"], rel=0.35)
    assert sums["rest of the seed"] == pytest.approx(0.04, rel=0.35)


def test_factors_that_move_together_are_one_and_named_so() -> None:
    levels = {str(n): str(n) for n in range(4)}
    table = crossed(
        [str(n) for n in range(4) for _ in range(6)],
        ["a", "a", "b", "b", "c", "c"] * 4,
        [0, 1, 1, 1, 0, 0] * 2 + [1, 1, 1, 0, 0, 1] * 2,
        factors={"init": levels, "order": levels},
    )
    names = [component.name for component in components(table)]
    assert names == ["seed (init + order, aliased)", QUESTION, PAIR, SAMPLING]


VALUES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from([0.0, 1.0])),
    min_size=1, max_size=40,
)  # fmt: skip


@given(VALUES, st.randoms(use_true_random=False))
def test_neither_order_nor_names_change_anything(rows: list[Any], random: Any) -> None:
    def estimates(of: list[Any]) -> list[float | None]:
        seeds, questions, values = zip(*of, strict=True)
        return [part.estimate for part in components(crossed(seeds, questions, values))]

    shuffled = list(rows)
    random.shuffle(shuffled)
    renamed = [(f"n{'cab'.index(s)}", f"m{'zxy'.index(q)}", v) for s, q, v in rows]
    before = estimates(rows)
    for other in (estimates(shuffled), estimates(renamed)):
        for one, two in zip(before, other, strict=True):
            assert one == pytest.approx(two, abs=1e-9) if one is not None else two is None


def shares(seeds: int, questions: int, samples: int, seed: int) -> Crossed:
    rng = np.random.default_rng(seed)
    shape = (seeds, questions)
    logits = (
        -1 + 0.6 * rng.standard_normal((seeds, 1)) + 1.2 * rng.standard_normal((1, questions))
        + 0.4 * rng.standard_normal(shape)
    )  # fmt: skip
    hits = rng.binomial(samples, 1 / (1 + np.exp(-logits))).astype(float)
    names = (tuple(map(str, range(seeds))), tuple(map(str, range(questions))))
    return Crossed(*names, num=np.full(shape, samples), total=hits, squares=hits)


def test_a_model_on_the_logit_scale_finds_sources_of_about_their_size() -> None:
    before = np.random.get_state()[1][:3].tolist()
    found = [{c.name: c for c in logit_components(shares(8, 12, 30, seed))} for seed in range(3)]
    assert np.random.get_state()[1][:3].tolist() == before
    middle = {name: np.median([one[name].sd for one in found]) for name in found[0]}
    assert middle[SEED] == pytest.approx(0.6, rel=0.5)
    assert middle[QUESTION] == pytest.approx(1.2, rel=0.4)
    assert middle[PAIR] == pytest.approx(0.4, rel=0.5)
    assert all(c.low < c.sd < c.high for one in found for c in one.values())
    again = logit_components(shares(8, 12, 30, 0))
    # Equal but for the order in which threads add.
    assert [c.sd for c in again] == pytest.approx([c.sd for c in found[0].values()], rel=1e-3)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (crossed(list("01"), list("ab"), [0.5, 0.7]), "values of 0 and 1"),
        (crossed(list("00"), list("ab"), [0, 1]), "two seeds and two questions"),
        (crossed(list("0101"), list("aabb"), [0, 0, 0, 0]), "all values are alike"),
    ],
)
def test_what_the_logit_scale_cannot_take_is_said(table: Crossed, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        logit_components(table)
