"""How long the analysis of millions of judgements takes, and how it compares with a plain loop.

    python tests/benchmarks/analysis.py [CELLS]        default: 10,000 cells of 400 judgements

Writes a synthetic table of judgements as parquet, then reads, groups and analyses it in a process
of its own, with the report's data and pictures. The loop fits statsmodels' mixed model for each of
a few conditions of the same table.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEEDS, QUESTIONS, SAMPLES = 5, 8, 50  # of a condition: 400 judgements a cell
LOOPED = 4  # conditions that the loop does: its time grows with them


def write_table(path: Path, conditions: int) -> None:
    """Write judgements of 0 and 1 whose rates differ by condition, seed and question."""
    rng = np.random.default_rng(1)
    shape = (conditions, SEEDS, QUESTIONS, SAMPLES)
    logits = (
        rng.normal(-1.5, 1, (conditions, 1, 1, 1))
        + rng.normal(0, 0.6, (conditions, SEEDS, 1, 1))
        + rng.normal(0, 1.0, (conditions, 1, QUESTIONS, 1))
        + rng.normal(0, 0.4, (conditions, SEEDS, QUESTIONS, 1))
    )
    values = (rng.random(shape) < 1 / (1 + np.exp(-logits))).ravel().astype(float)
    condition, seed, question, _ = (part.ravel() for part in np.indices(shape, dtype=np.int32))

    def named(codes: "np.ndarray", letter: str, number: int) -> pa.Array:
        return pa.DictionaryArray.from_arrays(codes, [f"{letter}{n}" for n in range(number)])

    pq.write_table(
        pa.table(
            {
                "condition": named(condition, "c", conditions),
                "seed": named(seed, "s", SEEDS),
                "question": named(question, "q", QUESTIONS),
                "value": values,
            }
        ),
        path,
    )


def analysed(path: Path, out: Path) -> None:
    """Do what `emsweep analyze` does, and print its seconds and the most memory, in GB."""
    from em.analysis import analyse
    from em.long_tables import TableColumns, read
    from sweeps.analysis_page import write_analysis

    started = time.perf_counter()
    columns = TableColumns(
        condition=("condition",), question="question", seed="seed", value="value"
    )
    rows, _ = read([path], columns)
    told = {"read": time.perf_counter() - started}
    found = analyse(rows, what="value")
    told["analysed"] = time.perf_counter() - started
    write_analysis(found, out, title="benchmark")
    told["written"] = time.perf_counter() - started
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    told = {name: round(seconds, 1) for name, seconds in told.items()}
    print(json.dumps(told | {"gigabytes": round(most, 2), "written_megabytes": round(size, 1)}))


def compared(path: Path) -> dict[str, float]:
    """Return the seconds a condition of ours and of the loop, and how far answers are apart."""
    import pandas as pd
    import statsmodels.formula.api as smf

    from em.analysis import analyse
    from em.condition import Asked
    from em.long_tables import TableColumns, read
    from em.variance import QUESTION, SAMPLING, SEED

    columns = TableColumns(
        condition=("condition",), question="question", seed="seed", value="value"
    )
    rows, _ = read([path], columns)
    frame = rows.to_pandas()
    chosen = frame["condition"].unique()[:LOOPED]
    small = pa.Table.from_pandas(frame[frame["condition"].isin(chosen)], preserve_index=False)
    analyse(small, what="warm", asked=Asked(simulate=False))
    started = time.perf_counter()
    ours = analyse(small, what="value", asked=Asked(simulate=False), pairs=[])
    mine = (time.perf_counter() - started) / LOOPED
    started = time.perf_counter()
    apart = 0.0
    for condition, part in small.to_pandas().groupby("condition"):
        data = pd.DataFrame(part).assign(one=1, sq=part["seed"] + part["question"])
        model = smf.mixedlm(
            "value ~ 1", data, groups="one", re_formula="0",
            vc_formula={"s": "0 + C(seed)", "q": "0 + C(question)", "sq": "0 + C(sq)"},
        )  # fmt: skip
        fitted = model.fit(reml=True, method="lbfgs")
        theirs = dict(zip(model.exog_vc.names, fitted.vcomp, strict=True))
        found = next(c for c in ours.conditions if c.condition == condition)
        known = {c.name: c.estimate for c in found.components}
        for name, other in ((SEED, "s"), (QUESTION, "q")):
            if (known[name] or 0) > 1e-3:
                apart = max(apart, abs(theirs[other] / known[name] - 1))
        apart = max(apart, abs(fitted.scale / known[SAMPLING] - 1))
    theirs_s = (time.perf_counter() - started) / LOOPED
    return {
        "seconds_a_condition": round(mine, 4), "of_the_loop": round(theirs_s, 2),
        "times_faster": round(theirs_s / mine), "largest_difference": round(apart, 3),
    }  # fmt: skip


def main(num_cells: int) -> None:
    """Write the table, analyse it in a process of its own, compare, and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "judgements.parquet")
        write_table(path, num_cells // SEEDS)
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); " \
               f"import analysis; from pathlib import Path; " \
               f"analysis.analysed(Path({str(path)!r}), Path({folder!r}, 'out'))"  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told = {
            "judgements": num_cells * QUESTIONS * SAMPLES, "machine": platform.machine(),
            **json.loads(done.stdout),
        }  # fmt: skip
        print(json.dumps(told), flush=True)
        print(json.dumps(compared(path)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
