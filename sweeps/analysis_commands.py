"""The commands `emsweep analyze` and `emsweep power`: what a table says, and what to run next.

The statistics are in em.analysis and em.power.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps.options import Json, StoreOption, open_sweep

Tables = Annotated[
    list[Path] | None, typer.Argument(metavar="TABLE...", help="csv, parquet, jsonl; .gz")
]

SeedFrom = Annotated[
    str | None,
    typer.Option("--seed-from", metavar="PATTERN", help="seed in a file's name: 'seed(\\d+)'"),
]
Misaligned = Annotated[
    str | None, typer.Option("--misaligned", metavar="RULE", help="what counts: 'verdict in 4,5'")
]
Unscored = Annotated[
    str, typer.Option("--unscored", metavar="A,B", help="texts that stand for no score")
]
Logit = Annotated[
    bool, typer.Option("--logit", help="also a mixed model on the logit scale; takes seconds")
]
WandbProject = Annotated[
    str | None,
    typer.Option("--wandb", metavar="ENTITY/PROJECT", help="sweeps that W&B has, not tables"),
]
Groups = Annotated[
    list[str] | None, typer.Option("--group", metavar="SWEEP", help="with --wandb; repeatable")
]


def _option(name: str, text: str) -> Any:
    return typer.Option(name, metavar="COL", help=text)


def analyze(
    tables: Tables = None,
    question: Annotated[
        str | None, _option("--question", "the column of questions; needed with tables")
    ] = None,
    condition: Annotated[
        list[str] | None,
        _option("--condition", "of conditions; several times: model, data …, which make a grid"),
    ] = None,
    seed: Annotated[str | None, _option("--seed", "of seeds")] = None,
    seed_from: SeedFrom = None,
    judge: Annotated[str | None, _option("--judge", "of judges")] = None,
    sample: Annotated[str | None, _option("--sample", "tells samples apart")] = None,
    value: Annotated[str | None, _option("--value", "of values: 0 and 1, or any number")] = None,
    misaligned: Misaligned = None,
    unscored: Unscored = "",
    aligned: Annotated[str | None, _option("--aligned", "of scores from 0 to 100")] = None,
    coherent: Annotated[str | None, _option("--coherent", "of scores from 0 to 100")] = None,
    metric: Annotated[str, typer.Option("--metric", metavar="NAME")] = "pooled_c50",
    logit: Logit = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write the page and pictures here")
    ] = None,
    as_json: Json = False,
    wandb: WandbProject = None,
    group: Groups = None,
) -> None:
    """Say of anyone's table how much is the seed, the question and the sampling, with intervals.

    With --wandb and --group, of the judgements of a sweep as W&B has them: as its report does.
    """
    if wandb is not None or group:
        _check_no_tables(tables, question, wandb, group)
        return _analyze_gathered(wandb or "", group or [], out, as_json=as_json)
    if not tables or question is None:
        raise ValueError("name tables and their --question column, or --wandb and --group")
    from em.long_tables import TableColumns, parse_rule

    columns = TableColumns(
        condition=tuple(condition or ()), question=question, seed=seed, seed_pattern=seed_from,
        judge=judge, sample=sample, value=value,
        misaligned=parse_rule(misaligned) if misaligned else None,
        unscored=tuple(text.strip() for text in unscored.split(",") if text.strip()),
        aligned=aligned, coherent=coherent, metric=metric,
    )  # fmt: skip
    found = _analysed(tables, columns, logit=logit)
    name = tables[0].name if len(tables) == 1 else f"{len(tables)} tables"
    return _give(found, out, title=name, as_json=as_json)


def _analysed(tables: list[Path], columns: Any, *, logit: bool) -> Any:
    from em.analysis import analyse
    from em.condition import Asked
    from em.definitions import DEFINITIONS
    from em.grouping import Known
    from em.long_tables import grid_in, read

    rows, notes = read(tables, columns)
    by = DEFINITIONS[columns.metric] if columns.aligned is not None else None
    by_questions = by is not None and by.aggregation != "pooled"
    found = analyse(
        rows,
        what=_what(columns),
        asked=Asked(weights="questions" if by_questions else "answers", logit=logit),
        known=Known(least=by.min_answers if by else 1),
        grid=grid_in(rows),
    )
    return found.model_copy(update={"notes": (*notes, *found.notes)})


def _check_no_tables(
    tables: list[Path] | None, question: str | None, project: str | None, groups: list[str] | None
) -> None:
    if tables or question is not None:
        raise ValueError("--wandb reads sweeps from W&B: name no tables and no columns with it")
    if not project or project.count("/") != 1 or not groups:
        raise ValueError(
            f"--wandb ENTITY/PROJECT goes with --group SWEEP; got {project!r} and {groups or []}"
        )


def _analyze_gathered(project: str, groups: list[str], out: Path | None, *, as_json: bool) -> None:
    import tempfile

    from em.record import fingerprint
    from sweeps.gathering import analyses_of, fetch

    with tempfile.TemporaryDirectory() as folder:
        found = analyses_of(fetch(project, groups, Path(folder)))
    if as_json:
        print(
            json.dumps({title: a.model_dump(mode="json") for title, a in found.items()}, indent=1)
        )
    for title, analysis in found.items():
        place = out / fingerprint(title)[:8] if out and len(found) > 1 else out
        if not as_json:
            print(f"== {title} ==")
            _give(analysis, place, title=title, as_json=False)
        elif place is not None:
            from sweeps.analysis_page import write_analysis

            write_analysis(analysis, place, title=title)


def _give(found: Any, out: Path | None, *, title: str, as_json: bool) -> None:
    """Write an analysis into the folder `out`, if one is given, and print it."""
    if out is not None:
        from sweeps.analysis_page import write_analysis

        page = write_analysis(found, out, title=title)
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    from sweeps.analysis_told import told

    for line in told(found):
        print(line)
    if out is not None:
        print(f"page: {page}")


def _what(columns: Any) -> str:
    if columns.misaligned is not None:
        rule = columns.misaligned
        return f"misaligned: {rule.column} {rule.how} {','.join(rule.values)}"
    if columns.value is not None:
        return f"value: {columns.value}"
    return f"misaligned by {columns.metric}: {columns.aligned}, {columns.coherent}"


def power(
    source: Annotated[
        Path, typer.Argument(metavar="SPEC|REPORT", help="a sweep that ran, or its report.json, or "
                             "an analysis.json")
    ],
    half_width: Annotated[
        float, typer.Option("--target-half-width", metavar="SHARE", help="wanted, such as 0.03")
    ] = 0.03,
    difference: Annotated[
        float | None,
        typer.Option("--difference", metavar="SHARE", help="to be found between two conditions"),
    ] = None,
    cost_train: Annotated[
        float | None, typer.Option("--cost-train", metavar="N", help="of one trained cell")
    ] = None,
    cost_answer: Annotated[
        float | None, typer.Option("--cost-answer", metavar="N", help="of one judged answer")
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="N", help="in the unit of the costs")
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Say how many seeds, questions and samples a wanted precision takes, and the best split."""
    from sweeps.power_told import costs, powers

    given = (cost_train, cost_answer, budget)
    if any(one is not None for one in given) and None in given:
        raise ValueError("a best split needs --cost-train, --cost-answer and --budget together")
    if half_width <= 0 or half_width >= 1:
        raise ValueError(f"--target-half-width {half_width}: give a share between 0 and 1")
    found = powers(
        _conditions(source, store), wanted=half_width, difference=difference,
        prices=costs(cost_train, cost_answer, budget),
    )  # fmt: skip
    if as_json:
        print(json.dumps([one.model_dump() for one in found], indent=1))
        return
    for one in found:
        print("\n".join(one.lines))


def _conditions(source: Path, store: str | None) -> list[Any]:
    """Return the analysed conditions of a spec's sweep, a report or an analysis."""
    if source.suffix == ".json":
        from sweeps.comparing import analyses_in

        return [c for found in analyses_in(source).values() for c in found.conditions]
    from sweeps.report import make_report

    report, _ = make_report(*open_sweep(source, store))
    return [c for found in report.analyses.values() for c in found.conditions]


def compare(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT...", help="report.json or analysis.json")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write the page and pictures here")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put the conditions of several sweeps side by side."""
    from sweeps.comparing import side_by_side

    title = f"{len(reports)} reports side by side"
    _give(side_by_side(reports), out, title=title, as_json=as_json)
