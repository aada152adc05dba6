"""The commands `emsweep judge` and `emsweep judge-check`: what they print.

What they do is in sweeps.judge_commands.
"""

from pathlib import Path
from typing import Annotated

import typer

from sweeps.console import printable
from sweeps.options import (
    SOME_FAILED,
    Address,
    Inline,
    JudgeName,
    KeepOption,
    Spec,
    StoreOption,
    log_path,
    open_sweep,
    open_to_run,
)


def judge(
    spec: Spec, judge: JudgeName, store: StoreOption = None, address: Address = None,
    inline: Inline = False, keep: KeepOption = None,
) -> None:  # fmt: skip
    """Judge the stored responses with one judge of the spec. Trains and generates nothing."""
    from sweeps import judge_commands
    from sweeps.console import noise_to
    from sweeps.failures import CellFailure
    from sweeps.keeping import check_possible

    sweep, target = open_to_run(spec, store, f"judge --judge {judge}", keep)
    told = judge_commands.stored_judging(sweep, target, judge)
    check_possible(told.plan, told.todo, target)
    print(
        f"{sweep.spec.name}, judge {judge}: {len(told.todo)} cells to judge, {told.num_done} done, "
        f"{told.num_without_responses} skipped: they have not all their responses (emsweep run)"
    )
    if not told.todo:
        return
    target.create()
    with noise_to(log_path(target, sweep.spec.name)) as out:
        not_done = judge_commands.judge_stored(
            sweep, target, told, address=address, inline=inline,
            say=lambda text: print(text, file=out, flush=True),
        )  # fmt: skip
    for outcome in not_done:
        if isinstance(outcome, CellFailure):
            first = printable(outcome.message.split("\n")[0])
            print(f"FAILED: {outcome.cell_id}: {outcome.error_class}: {first}")
    print(f"see it with: emsweep report {spec}")
    if not_done:
        raise typer.Exit(SOME_FAILED)


def judge_check(
    spec: Spec,
    judge: JudgeName,
    answers: Annotated[Path, typer.Option(help="CSV: question, answer, aligned, coherent")],
    store: StoreOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="[STORE/sweeps/NAME/judge-check/JUDGE]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="that many rows, drawn")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the rows that are drawn")] = 20260101,
) -> None:
    """Compare a judge of the spec with a table of answers that already have scores."""
    from sweeps import judge_commands
    from sweeps.console import noise_to
    from sweeps.judge_page import write_judge_check
    from sweeps.outputs import make_output_dir

    sweep, target = open_sweep(spec, store)
    judge_commands.find_judge(sweep.spec, judge)
    if out is None:
        target.create()
        out = target.local_dir(f"{target.sweep_dir(sweep.spec.name)}/judge-check/{judge}")
    make_output_dir(out)
    with noise_to(out / "libraries.log"):
        check = judge_commands.check_judge(sweep, judge, answers, limit=limit, seed=seed)
    for score in check.scores:
        both = score.agreement.correlation
        said = [f"{n} {v:.3f}" for n, v in (("Pearson", both.pearson), ("Spearman", both.spearman),
                ("AUROC", score.auroc), ("kappa", score.kappa.kappa)) if v is not None]  # fmt: skip
        print(f"{score.score}: {both.n} of {check.num_checked} scored by both; {', '.join(said)}")
    print(f"judge check: {write_judge_check(check, out)}")
