"""How the report shows when it appears: a picture against training steps, and the numbers of it.

Knows only the report's trajectories.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from em.intervals import Interval
from sweeps.drawing import COLOURS, INK, grid_of, save, say_first, svg, tip
from sweeps.outputs import make_output_dir, write_output
from sweeps.tables import parquet
from sweeps.trajectory import Trajectory, flat

COLUMNS = 2
MOST_PANELS = 24
MOST_CURVES = 14  # of a panel: two of each colour, full and dashed
NAME = "trajectories"

Panel = tuple[str, str, str]
"""Evaluation, judge, and what is measured: `rate` or `coherence`."""


def shown(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Return what the page's template shows; nothing is drawn where nothing is known."""
    known = any(p.rate.estimate is not None for t in trajectories for p in t.points)
    bands = [b for t in trajectories for p in t.points for b in (p.rate, p.coherence) if b]
    return {
        "trajectories": trajectories,
        "drawn": Markup(svg(picture(trajectories))) if known else "",
        "methods": sorted({band.method for band in bands if band.low is not None}),
        "without": sorted({band.covers for band in bands if band.low is None}),
    }


def write(trajectories: Sequence[Trajectory], folder: Path) -> None:
    """Write the picture as PNG and SVG, and its numbers as parquet; nothing of nothing."""
    if not trajectories:
        return
    make_output_dir(folder)
    save(picture(trajectories), folder / NAME)
    write_output(folder / f"{NAME}.parquet", parquet(flat(trajectories)))


def picture(trajectories: Sequence[Trajectory]) -> Any:
    """Rate and coherence against training steps, a panel each; a line a condition, with its band.

    Of each evaluation and judge; MOST_PANELS and MOST_CURVES at most.
    """
    every = _panels(trajectories)
    panels = every[:MOST_PANELS]
    names = list(dict.fromkeys(one.condition for one in trajectories))
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = grid_of(lines, columns, height=2.6, one_scale=False)
    say_first(figure, len(panels), len(every), "panels")
    say_first(figure, min(len(names), MOST_CURVES), len(names))
    for place, panel in enumerate(panels):
        axes = grid[place // columns][place % columns]
        _draw(figure, axes, panel, trajectories, names[:MOST_CURVES])
    for place in range(len(panels), lines * columns):
        grid[place // columns][place % columns].set_visible(False)
    first = grid[0][0]
    figure.legend(
        *first.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8,
        frameon=False, labelcolor=INK,
    )  # fmt: skip
    return figure


def _panels(trajectories: Sequence[Trajectory]) -> list[Panel]:
    found: dict[Panel, None] = {}
    for one in trajectories:
        found[one.evaluation, one.judge, "rate"] = None
        if any(point.coherence is not None for point in one.points):
            found[one.evaluation, one.judge, "coherence"] = None
    return list(found)


def _draw(
    figure: Any, axes: Any, panel: Panel, trajectories: Sequence[Trajectory], names: Sequence[str]
) -> None:
    evaluation, judge, what = panel
    mine = {t.condition: t for t in trajectories if (t.evaluation, t.judge) == (evaluation, judge)}
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        style = "-" if number < len(COLOURS) else "--"
        drawn = _line(mine[name], what) if name in mine else []
        xs = [step for step, _ in drawn]
        (line,) = axes.plot(
            xs, [_percent(band.estimate) for _, band in drawn], color=colour, lw=1.4, ls=style,
            marker="o", ms=4, label=name,
        )  # fmt: skip
        tip(figure, line, name)
        banded = [(step, band) for step, band in drawn if band.low is not None]
        axes.fill_between(
            [step for step, _ in banded], [_percent(band.low) for _, band in banded],
            [_percent(band.high) for _, band in banded], color=colour, alpha=0.15, lw=0,
        )  # fmt: skip
        for step, band in banded:  # also where one stands alone, which no area shows
            axes.plot([step] * 2, [_percent(band.low), _percent(band.high)], color=colour, lw=0.7)
    held = " (in distribution)" if any(t.in_distribution for t in mine.values()) else ""
    metric = next(t.metric for t in mine.values())
    measured = "coherent answers" if what == "coherence" else metric
    axes.set_title(f"{measured} · {evaluation}{held} · {judge}", fontsize=8, color=INK)
    if not any(len(line.get_xdata()) for line in axes.lines):
        axes.text(0.5, 0.5, "no answer counts", ha="center", color=INK, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_ylabel("%")
    axes.set_xlabel("optimiser step")


def _line(one: Trajectory, what: str) -> list[tuple[float, Interval]]:
    found = [(p.step, p.rate if what == "rate" else p.coherence) for p in one.points]
    return [(step, band) for step, band in found if band and band.estimate is not None]


def _percent(share: float | None) -> float:
    assert share is not None
    return 100 * share
