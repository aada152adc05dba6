"""An analysis as lines for a person at a terminal. Knows nothing of how the numbers came about."""

from typing import Any

from sweeps.console import printable


def told(found: Any) -> list[str]:
    """Return an analysis as lines for a person."""
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
