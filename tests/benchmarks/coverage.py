"""How often the intervals hold the truth, and what bias the components have, by simulation.

    python tests/benchmarks/coverage.py [RUNS]        default: 2,000; prints coverage.txt

Two kinds of truth. Seeds alone: their rates from a beta distribution, answers from binomials, the
questions fixed. Seeds and questions: normal effects on the logit scale. `printed` is what reports
of those very tables would print, on average: the coverage simulated for the estimated design. Each
line has draws of its own.
"""

import math
import sys
import time

import numpy as np

from em.component_intervals import components
from em.condition import Asked, analyse_condition
from em.coverage import limits_over_questions, limits_over_seeds, logit_mean
from em.crossed import Crossed
from em.grouping import Group
from em.intervals import t_limits, with_estimate
from em.variance import PAIR, QUESTION, SAMPLING, SEED, estimates

SEED_OF_DRAWS = 20261125
PRINTED, LOOKED = 60, 400  # tables whose printed coverage, and whose components, are looked at
BETAS = [
    (0.40, 0.10), (0.30, 0.15), (0.20, 0.12), (0.20, 0.05), (0.10, 0.05), (0.05, 0.04),
    (0.05, 0.08), (0.02, 0.04), (0.005, 0.01),
]  # fmt: skip
LOGITS = [(0.40, 0.6, 1.5, 0.4), (0.25, 0.6, 1.5, 0.4), (0.25, 0.6, 1.5, 0.0),
          (0.06, 0.6, 1.5, 0.4), (0.06, 1.0, 1.0, 0.0), (0.02, 0.8, 1.5, 0.4),
          (0.005, 0.8, 1.5, 0.4)]  # fmt: skip


def group(hits: "np.ndarray", num: "np.ndarray") -> Group:
    """Return a table of hits and numbers of answers, shape (seeds, questions), as a condition."""
    seeds, questions = hits.shape
    names = tuple(map(str, range(seeds)))
    table = Crossed(
        units=names, questions=tuple(map(str, range(questions))), num=num.astype(np.int64),
        total=hits.astype(float), squares=hits.astype(float),
    )  # fmt: skip
    return Group("", "", table, int(num.sum()), 0, dict(zip(names, names, strict=True)))


def draws(*design: float) -> np.random.Generator:
    """Return a line's own draws."""
    return np.random.default_rng([SEED_OF_DRAWS, *(round(1000 * part) for part in design)])


def share(low: "np.ndarray", high: "np.ndarray", truth: float) -> float:
    """Return the percentage of intervals that hold the truth."""
    return 100 * float(np.mean((low <= truth) & (truth <= high)))


def of_seeds(runs: int) -> None:
    """Print the coverage of fixed-question intervals, seed by seed beta-distributed."""
    print("fixed questions: beta-distributed seeds; coverage of 95 % intervals, %")
    print(f"{'mean':>6} {'SD':>5} {'seeds':>5} {'answers':>7}   {'t alone':>7} {'ours':>6} "
          f"{'printed':>7}   width, points   seeds' variance")  # fmt: skip
    for mean, sd in BETAS:
        for seeds in (3, 6, 10):
            for answers in (80, 800):
                rng = draws(mean, sd, seeds, answers)
                size = mean * (1 - mean) / sd**2 - 1
                rates = rng.beta(mean * size, (1 - mean) * size, size=(runs, seeds))
                hits = rng.binomial(answers, rates).astype(float)
                bounds = limits_over_seeds(hits, answers)
                low, high = with_estimate(*bounds, hits.mean(axis=1) / answers)
                printed, of_variance = [], []
                for number, row in enumerate(hits[:LOOKED]):
                    # The pooled answers of a seed, as eight questions that are all alike.
                    whole = np.array(
                        [rng.multivariate_hypergeometric([answers // 8] * 8, int(h)) for h in row]
                    )
                    found = analyse_condition(
                        group(whole, np.full(whole.shape, answers // 8)),
                        Asked(simulate=number < PRINTED),
                    )
                    if found.fixed.coverage is not None:
                        printed.append(found.fixed.coverage)
                    part = next(part for part in found.components if part.name == SEED)
                    if part.low is not None and part.high is not None:
                        of_variance.append(part.low <= sd**2 <= part.high)
                told = f"{100 * np.mean(printed):7.1f}" if printed else f"{'–':>7}"
                width = 100 * float(np.median(np.minimum(high, 1) - np.maximum(low, 0)))
                print(
                    f"{mean:6.3f} {sd:5.2f} {seeds:5} {answers:7}   "
                    f"{share(*t_limits(hits / answers), mean):7.1f} {share(low, high, mean):6.1f} "
                    f"{told}   {width:13.1f}   {100 * np.mean(of_variance):15.1f}",
                    flush=True,
                )


def of_questions(runs: int) -> None:
    """Print the coverage of random-question intervals, and the bias of the components."""
    print("\nrandom questions: normal effects on the logit scale; coverage of 95 % intervals, %;")
    print("bias of components, as a share of the true variance, where a tenth of pairs is missing;")
    print("beside it the coverage of their 95 % intervals on whole tables, %")
    print(f"{'mean':>6} {'seeds':>5} {'quest.':>6} {'samples':>7}  {'ours':>6} {'printed':>7}   "
          f"{'seed':>8}     {'question':>8}      {'pairing':>8}     {'sampling':>8}")  # fmt: skip
    for mean, sd_s, sd_q, sd_sq in LOGITS:
        for seeds in (3, 6, 10):
            for questions in (8, 48):
                for samples in (10, 100):
                    _line(runs, mean, (sd_s, sd_q, sd_sq), (seeds, questions, samples))


def _line(
    runs: int, mean: float, sds: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    seeds, questions, samples = shape
    rng = draws(mean, *sds, *shape)
    middle = logit_mean(mean, math.hypot(*sds))
    hits = _draw(rng, middle, sds, (runs, seeds, questions), samples)
    low, high = limits_over_questions(hits / samples, samples)
    truth = _truth(middle, sds)
    sums = dict.fromkeys(truth, 0.0)
    held: dict[str, list[bool]] = {name: [] for name in truth}
    printed, looked, used = [], min(runs, LOOKED), 0
    for place in range(looked):
        num = np.full((seeds, questions), samples)
        cut = rng.random(num.shape) < 0.1  # unbalanced: a tenth of the pairs is missing
        if (~cut).any(axis=1).all() and (~cut).any(axis=0).all():
            used += 1
            for part in estimates(group(hits[place] * ~cut, num * ~cut).counts):
                sums[part.name] += part.estimate or 0.0
        for part in components(group(hits[place], num).counts):
            if part.low is not None and part.high is not None:
                held[part.name].append(part.low <= truth[part.name] <= part.high)
        if place < PRINTED // 3:
            analysed = analyse_condition(group(hits[place], num), Asked())
            if analysed.random.coverage is not None:
                printed.append(analysed.random.coverage)
    told = f"{100 * np.mean(printed):7.1f}" if printed else f"{'–':>7}"
    means = {name: total / max(1, used) for name, total in sums.items()}
    covered = {n: f"{100 * np.mean(one):5.1f}" if one else f"{'–':>5}" for n, one in held.items()}
    bias = "  ".join(
        (
            f"{(means[n] - truth[n]) / max(truth[n], 1e-9):+7.2f}"
            if truth[n] > 1e-9
            else f"{means[n]:+7.4f}"
        )
        + f" {covered[n]}"
        for n in truth
    )
    print(f"{mean:6.3f} {seeds:5} {questions:6} {samples:7}  {share(low, high, mean):6.1f} {told}"
          f"   {bias}", flush=True)  # fmt: skip


def _draw(
    rng: np.random.Generator, middle: float, sds: tuple[float, ...], shape: tuple[int, int, int],
    samples: int,
) -> "np.ndarray":  # fmt: skip
    runs, seeds, questions = shape
    shapes = [(runs, seeds, 1), (runs, 1, questions), (runs, seeds, questions)]
    logits = middle + sum(
        (sd * rng.standard_normal(s) for sd, s in zip(sds, shapes, strict=True)),
        start=np.zeros(shape),
    )
    return rng.binomial(samples, 1 / (1 + np.exp(-logits))).astype(float)


def _truth(middle: float, sds: tuple[float, ...]) -> dict[str, float]:
    """Return the components on the scale of rates, by quadrature over each source in turn."""
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    a, b, c = np.meshgrid(points, points, points, indexing="ij")
    rates = 1 / (1 + np.exp(-(middle + sds[0] * a + sds[1] * b + sds[2] * c)))
    whole = np.einsum("ijk,i,j,k", rates, weights, weights, weights)
    by_seed = np.einsum("ijk,j,k->i", rates, weights, weights)
    by_question = np.einsum("ijk,i,k->j", rates, weights, weights)
    every = np.einsum("ijk,i,j,k", rates**2, weights, weights, weights) - whole**2
    seed = float(weights @ (by_seed - whole) ** 2)
    question = float(weights @ (by_question - whole) ** 2)
    inside = np.einsum("ijk,i,j,k", rates * (1 - rates), weights, weights, weights)
    return {SEED: seed, QUESTION: question, PAIR: float(every) - seed - question,
            SAMPLING: float(inside)}  # fmt: skip


def main(runs: int) -> None:
    """Print both tables."""
    started = time.monotonic()
    error = 100 * math.sqrt(0.0475 / runs)
    print(
        f"{runs} simulated tables a line (standard error at 95 %: {error:.1f} points), seed "
        f"{SEED_OF_DRAWS}; printed coverage of {PRINTED} (random questions: {PRINTED // 3}),"
        f" components of {LOOKED}"
    )
    of_seeds(runs)
    of_questions(runs)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
