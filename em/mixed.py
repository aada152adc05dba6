"""Components on the logit scale: a mixed model of statsmodels, for those who want it.

Random effects of seed, question and their pairing are normal on the logit scale; the posterior is
approximated by variational Bayes, which tends to be narrow. Knows nothing of the probability scale
(see em.variance), or of who asks.
"""

import math

import numpy as np

from em.crossed import Crossed
from em.record import Record
from em.variance import PAIR, QUESTION, SEED

MOST_ROWS = 20_000  # of values: the model sees each one
SEED_OF_START = 20260101


class LogitComponent(Record):
    """The SD of one source of variance on the logit scale, with 95 % posterior bounds."""

    name: str
    sd: float
    low: float
    high: float


class TooManyRows(ValueError):
    """The table is larger than a model of every single value is made for."""


def logit_components(table: Crossed) -> list[LogitComponent]:
    """Return the SDs of seed, question and their pairing. Values are 0 and 1.

    Raises TooManyRows above MOST_ROWS, and ValueError for values that are no shares, for one seed
    or one question, and where no value, or every one, is 1.
    """
    import pandas as pd
    from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

    table = table.present()
    if not table.binary:
        raise ValueError("a model on the logit scale needs values of 0 and 1")
    if min(table.filled.shape, default=0) < 2:
        raise ValueError("a model on the logit scale needs two seeds and two questions")
    hits, num = int(table.total.sum()), table.num_values
    if hits in (0, num):
        raise ValueError("all values are alike: the logit scale has no place for them")
    if num > MOST_ROWS:
        raise TooManyRows(f"{num} values: the model on the logit scale is made for {MOST_ROWS}")
    unit, question = np.indices(table.filled.shape).reshape(2, -1)
    counts, ones = table.num.ravel(), table.total.ravel().astype(int)
    place = np.repeat(np.arange(len(counts)), counts)
    start = np.concatenate([[0], np.cumsum(counts)[:-1]])
    value = (np.arange(len(place)) - start[place] < ones[place]).astype(int)
    frame = pd.DataFrame(
        {"value": value, "unit": unit[place], "question": question[place], "pair": place}
    )
    model = BinomialBayesMixedGLM.from_formula(
        "value ~ 1",
        {SEED: "0 + C(unit)", QUESTION: "0 + C(question)", PAIR: "0 + C(pair)"},
        frame,
    )
    state = np.random.get_state()
    np.random.seed(SEED_OF_START)  # statsmodels draws its start from numpy's own state
    try:
        fitted = model.fit_vb()
    finally:
        np.random.set_state(state)
    return [
        LogitComponent(
            name=name,
            sd=math.exp(mean),
            low=math.exp(mean - 1.96 * sd),
            high=math.exp(mean + 1.96 * sd),
        )
        for name, mean, sd in zip(
            (SEED, QUESTION, PAIR), fitted.vcp_mean, fitted.vcp_sd, strict=True
        )
    ]
