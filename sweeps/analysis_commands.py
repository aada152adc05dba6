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


def told(found: Any) -> list[str]:
    """Return an analysis as lines for a person."""
    from sweeps.console import printable

    said = [
        f"{found.what}",
        f"{found.num_rows} rows: {found.num_scored} with a scored value, {found.num_unscored} "
        "without",
        *(f"note: {note}" for note in found.notes),
    ]
    for c in found.conditions:
        name = f"{c.condition}, judged by {c.judge}" if c.judge else c.condition
        said += ["", f"{name}: {c.num_seeds} seeds x {c.num_questions} questions"]
        show = _share if c.binary else _number
        said.append(f"  mean {show(c.by_answers)} of answers, {show(c.by_questions)} of questions")
        for label, one in (("these questions", c.fixed), ("new questions", c.random)):
            said.append(f"  {label:16}{_bounds(one, show)}")
        said += [f"  exact {show(b.low)} to {show(b.high)}: {b.about}" for b in c.exact]
        for part in c.components:
            low = f" [{part.low:.2g}, {part.high:.2g}]" if part.low is not None else ""
            told_sd = "–" if part.sd is None else f"{part.reported:.4f}{low}, SD {part.sd:.3f}"
            said.append(f"  {part.name:16}{told_sd}" + (f"  ({part.note})" if part.note else ""))
        said += [
            f"  {one.name:16}SD {one.sd:.2f} [{one.low:.2f}, {one.high:.2f}] on the logit scale"
            for one in c.logit
        ]
        said += [f"  no logit scale: {c.no_logit}"] if c.no_logit else []
        if c.consistency:
            k = c.consistency
            said.append(
                f"  shown in {k.showing} of {k.seeds} seeds (above {k.floor:.0%} beyond chance); a "
                f"new seed with chance {k.chance:.0%} [{k.low:.0%}, {k.high:.0%}]"
            )
        said += [f"  {need.text}" for need in c.needs]
    for judge, whose in found.attribution.items():
        said += ["", *_told_attribution(whose, judge)]
    show = _share if all(c.binary for c in found.conditions) else _number
    of_all = [*found.contrasts.items(), ("", found.judges)]
    for judge, contrasts in of_all:
        said += [""] if contrasts else []
        for c in contrasts:
            p = "" if c.p_adjusted is None else f", p {c.p_adjusted:.2g} (Holm)"
            beside = f", judged by {judge}" if judge else ""
            said.append(f"{c.first} - {c.second}{beside}: {_bounds(c.fixed, show)}{p}")
    return [printable(line) for line in said]


def _told_attribution(whose: Any, judge: str) -> list[str]:
    if whose.why:
        return [f"whose the variance is, of {' and '.join(whose.factors)}: not told: {whose.why}"]
    said = [
        f"whose the variance is, over {len(whose.conditions)} conditions"
        + (f", judged by {judge}" if judge else "")
        + f" (of a cell's rate on these {whose.num_questions} questions; of one answer)"
    ]
    for part in whose.parts:
        of_rate, of_answer = whose.shares_of_rate, whose.shares_of_answer
        bounds = f" [{part.low:.2g}, {part.high:.2g}]" if part.low is not None else ""
        value = "–" if part.of_rate is None else f"{part.of_rate:.4f}{bounds}"
        said.append(
            f"  {part.name:16}{_share(of_rate.get(part.name)):>7}  {value}; "
            f"{_share(of_answer.get(part.name))}" + (f"  ({part.note})" if part.note else "")
        )
    if whose.left_out:
        said.append(f"  left out: {', '.join(whose.left_out)}")
    return said


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _bounds(one: Any, show: Any) -> str:
    if one.low is None:
        return f"{show(one.estimate)}, no interval: {one.covers}"
    covered = f", covers {one.coverage:.0%} here by simulation" if one.coverage is not None else ""
    return (
        f"{show(one.estimate)} [{show(one.low)}, {show(one.high)}] {one.method}{covered}: "
        f"{one.covers}"
    )


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
