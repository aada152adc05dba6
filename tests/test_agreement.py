"""Agreement of two judges, against computations that share nothing with the module."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.agreement import (
    Score,
    agree,
    confusion,
    correlate,
    kappa_of,
    rates_under,
    verdict_kappa,
)
from em.rules import label_rule


def numbers(*values: float | str | None) -> dict[str, Score]:
    """A table of answers a0, a1, …: a number, a state, or None for an answer it does not have."""
    return {
        f"a{n}": Score(state=value)
        if isinstance(value, str)
        else Score(state="scored", value=value)  # type: ignore[arg-type]
        for n, value in enumerate(values)
        if value is not None
    }


def words(*labels: str) -> dict[str, Score]:
    return {f"a{n}": Score(state="scored", label=label) for n, label in enumerate(labels)}


def ranks(values: list[float]) -> list[float]:
    """Mean ranks, by counting."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def pearson(xs: list[float], ys: list[float]) -> float:
    mx, my = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    up = math.fsum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return up / math.sqrt(
        math.fsum((x - mx) ** 2 for x in xs) * math.fsum((y - my) ** 2 for y in ys)
    )


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=3, max_size=40).filter(
        lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
    )
)
def test_correlations_are_those_of_the_formulas(pairs: list[tuple[int, int]]) -> None:
    xs, ys = ([float(v) for v in side] for side in zip(*pairs, strict=True))
    found = correlate(list(zip(xs, ys, strict=True)))
    assert found.pearson == pytest.approx(pearson(xs, ys), abs=1e-9)
    assert found.spearman == pytest.approx(pearson(ranks(xs), ranks(ys)), abs=1e-9)
    assert found.n == len(pairs)


@pytest.mark.parametrize(
    ("pairs", "note"),
    [
        ([], "fewer than 3"),
        ([(1, 2), (2, 3)], "fewer than 3"),
        ([(1, 2), (1, 3), (1, 4)], "one judge gave every answer the same number"),
    ],
)
def test_a_correlation_that_is_not_defined_is_none(pairs: Any, note: str) -> None:
    found = correlate(pairs)
    assert (found.pearson, found.spearman, found.n) == (None, None, len(pairs))
    assert note in found.note


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("ABC")), min_size=1))
def test_kappa_is_that_of_the_formula(pairs: list[tuple[str, str]]) -> None:
    observed = sum(a == b for a, b in pairs) / len(pairs)
    chance = sum(
        np.mean([a == label for a, _ in pairs]) * np.mean([b == label for _, b in pairs])
        for label in "ABC"
    )
    found = kappa_of(pairs)
    assert found.n == len(pairs)
    assert found.agreed == round(observed * len(pairs))
    if chance == 1:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx((observed - chance) / (1 - chance), abs=1e-9)


def test_a_worked_kappa() -> None:
    """Of 50 answers both say yes to 20 and no to 15: (0.70 - 0.50) / 0.50 = 0.4."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    found = kappa_of(pairs)
    assert found.kappa == pytest.approx(0.4)
    assert (found.n, found.agreed) == (50, 35)


def test_the_interval_of_kappa_covers_as_it_says() -> None:
    """Simulated: two judges of a known kappa, 400 answers, 300 times."""
    draw = np.random.default_rng(7)
    cells = np.array([0.35, 0.10, 0.15, 0.40])
    truth = ((0.35 + 0.40) - (0.45 * 0.50 + 0.55 * 0.50)) / (1 - (0.45 * 0.50 + 0.55 * 0.50))
    inside = 0
    for _ in range(300):
        counts = draw.multinomial(400, cells)
        pairs = [p for p, n in zip([(1, 1), (1, 0), (0, 1), (0, 0)], counts, strict=True)
                 for _ in range(n)]  # fmt: skip
        found = kappa_of(pairs)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert 0.91 <= inside / 300 <= 0.99


@pytest.mark.parametrize(
    ("pairs", "kappa", "noted"),
    [
        ([], None, True),
        ([(1, 1)] * 5, None, True),
        ([(1, 1), (0, 0)], 1.0, False),
        # One judge found nothing: no certainty, though what rounding leaves looks like a width.
        *(([(n % 4 == 0, False) for n in range(num)], 0.0, True) for num in (6, 20, 100, 800)),
    ],
)
def test_a_kappa_without_spread_has_no_interval(
    pairs: Any, kappa: float | None, noted: bool
) -> None:
    found = kappa_of(pairs)
    assert found.kappa == (None if kappa is None else pytest.approx(kappa, abs=1e-9))
    assert (found.low, found.high) == (None, None)
    assert bool(found.note) == noted


def test_what_has_no_part_is_counted_by_its_reason() -> None:
    first = numbers(10, 20, 90, "refusal", 50, "code", None, 70)
    second = numbers(15, 25, 80, 40, "unscored", "code", 60, None)
    found = agree(first, second)
    assert found.n == 6
    assert found.dropped == {
        "only the first judge has it": 1,
        "only the second judge has it": 1,
        "scored by the first judge only": 1,
        "scored by the second judge only": 1,
        "scored by neither": 1,
    }
    assert found.correlation.n == 3
    assert found.confusion.n == 6
    table = {
        (row, column): found.confusion.table[i][j]
        for i, row in enumerate(found.confusion.labels)
        for j, column in enumerate(found.confusion.labels)
    }
    assert {pair: n for pair, n in table.items() if n} == {
        ("scored", "scored"): 3,
        ("scored", "unscored"): 1,
        ("refusal", "scored"): 1,
        ("code", "code"): 1,
    }


def test_labels_are_compared_as_labels_and_in_their_order() -> None:
    rule = label_rule(["YES", "NO"])
    first, second = words("YES", "YES", "NO", "NO"), words("YES", "NO", "NO", "NO")
    second |= {"a3": Score(state="unscored")}
    found = agree(first, second, rule=rule)
    assert found.confusion.labels == ("YES", "NO", "unscored")
    assert found.confusion.table == ((1, 1, 0), (0, 1, 1), (0, 0, 0))
    assert found.kappa.n == 3
    assert found.kappa.kappa == pytest.approx((2 / 3 - 4 / 9) / (5 / 9))
    assert found.correlation.n == 0


def test_the_rates_are_of_what_each_counts_and_of_what_both_count() -> None:
    first = {"a": True, "b": True, "c": False, "d": None}
    second = {"a": True, "b": None, "c": False, "d": False, "e": False}
    found = rates_under(first, second)
    assert (found.first, found.first_n) == (pytest.approx(2 / 3), 3)
    assert (found.second, found.second_n) == (0.25, 4)
    assert (found.first_of_both, found.second_of_both, found.both_n) == (0.5, 0.5, 2)
    assert verdict_kappa(first, second).kappa == 1.0
    nothing = rates_under({}, {"a": None})
    assert (nothing.first, nothing.second, nothing.both_n) == (None, None, 0)


def test_a_confusion_holds_every_pair() -> None:
    found = confusion([("b", "a"), ("b", "a"), ("a", "a")])
    assert (found.labels, found.table, found.n) == (("a", "b"), ((1, 0), (2, 0)), 3)
