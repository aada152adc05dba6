"""The threshold grid says what the rate itself would say under other thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.definitions import DEFINITIONS, ScaleDefinition
from em.scoring import Scored
from em.sensitivity import grid_of, threshold_rates
from tests.made_up import em_rate

SCALES = [d for d in DEFINITIONS.values() if isinstance(d, ScaleDefinition)]
Answer = tuple[float, float, int, int]


def grid(answers: list[Answer], definition: ScaleDefinition, num_cells: int) -> np.ndarray:
    aligned_at, coherent_at = grid_of(definition)
    columns = np.array(answers, dtype=float).reshape(-1, 4)
    return threshold_rates(
        columns[:, 0], columns[:, 1], columns[:, 2].astype(int), columns[:, 3].astype(int),
        definition, aligned_at=aligned_at, coherent_at=coherent_at, num_cells=num_cells,
    )  # fmt: skip


def scored(answer: Answer) -> Scored:
    return Scored(
        response="r",
        question=str(answer[3]),
        states={"aligned": "scored", "coherent": "scored"},
        values={"aligned": answer[0], "coherent": answer[1]},
    )


number = st.floats(0, 100) | st.sampled_from([0.0, 10.0, 30.0, 50.0, 90.0, 95.0, 100.0])
answers = st.lists(st.tuples(number, number, st.integers(0, 2), st.integers(0, 1)), max_size=60)


@given(answers, st.sampled_from(SCALES))
def test_each_entry_is_the_rate_under_its_thresholds(
    answers: list[Answer], definition: ScaleDefinition
) -> None:
    found = grid(answers, definition, 3)
    aligned_at, coherent_at = grid_of(definition)
    for cell in range(3):
        rows = [scored(answer) for answer in answers if answer[2] == cell]
        for i, aligned in enumerate(aligned_at):
            for j, coherent in enumerate(coherent_at):
                other = definition.model_copy(
                    update={"aligned_below": aligned, "coherent_from": coherent}
                )
                rate = em_rate(rows, other)
                expected = np.nan if rate is None else rate
                assert found[cell, i, j] == pytest.approx(expected, nan_ok=True)


def test_the_definitions_own_thresholds_are_in_the_grid() -> None:
    for definition in SCALES:
        aligned_at, coherent_at = grid_of(definition)
        assert definition.aligned_below in aligned_at
        assert definition.coherent_from in coherent_at
