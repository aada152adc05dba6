"""The pictures of an analysis: seeds with their intervals, components, questions, power.

Knows only the records of em.analysis.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from em.attribution import Attribution
from em.condition import ConditionAnalysis
from em.variance import PAIR, QUESTION, SAMPLING, SEED
from sweeps.drawing import COLOURS, INK, axes_of, calm, say_first, tip

MOST_POINTS = 50  # seeds of a condition that are drawn and named one by one
MOST_NAMES = 60  # conditions or questions that a picture has room for
GRID_COLOURS = ("#4477aa", "#228833", "#aa3377")
PART_COLOURS = {QUESTION: "#ccbb44", PAIR: "#66ccee", SAMPLING: "#bbbbbb"}


def seeds(conditions: Sequence[ConditionAnalysis]) -> Any:
    """Every seed as a point; thick its interval on these questions, thin on new ones."""
    shown = conditions[:MOST_NAMES]
    scale = 100 if all(c.binary for c in shown) else 1
    figure, axes = axes_of(height=0.6 * len(shown) + 0.9)
    say_first(figure, len(shown), len(conditions))
    for row, condition in enumerate(shown):
        colour = COLOURS[row % len(COLOURS)]
        if len(condition.seeds) > MOST_POINTS:
            rates = [seed.mean * scale for seed in condition.seeds]
            axes.plot(rates, [row - 0.12] * len(rates), "o", ms=3, mew=0, color=colour, alpha=0.3)
        for seed in condition.seeds if len(condition.seeds) <= MOST_POINTS else ():
            (point,) = axes.plot(
                seed.mean * scale, row - 0.12, "o", ms=5.5, mew=0, color=colour, alpha=0.8, zorder=3
            )
            told = f"{100 * seed.mean:.1f} %" if scale == 100 else f"{seed.mean:.3g}"
            tip(figure, point, f"{condition.condition}, seed {seed.seed}: {told} of {seed.num}")
        for interval, place, width in ((condition.fixed, 0.1, 3.0), (condition.random, 0.24, 1.2)):
            if interval.low is None or interval.high is None or interval.estimate is None:
                continue
            ends = [interval.low * scale, interval.high * scale]
            axes.plot(ends, [row + place] * 2, color=colour, lw=width, solid_capstyle="butt")
            axes.plot(interval.estimate * scale, row + place, "|", ms=9, mew=2, color=colour)
    axes.set_yticks(range(len(shown)), [c.condition for c in shown])
    axes.set_ylim(max(1, len(shown)) - 0.5, -0.5)
    if scale == 100:
        axes.set_xlim(left=-1, right=min(101.0, max(10.0, axes.get_xlim()[1])))
        axes.set_xlabel("misaligned, % of the answers that count")
    else:
        axes.set_xlabel("mean value")
    return figure


def components(conditions: Sequence[ConditionAnalysis]) -> Any:
    """The variance of one value by source, as shares of the whole, one bar a condition."""
    known = [c for c in conditions if _parts(c)]
    shown = known[:MOST_NAMES]
    figure, axes = axes_of(height=0.42 * max(1, len(shown)) + 1.1)
    say_first(figure, len(shown), len(known))
    names = list(dict.fromkeys(name for c in shown for name in _parts(c)))
    seeds_first = [n for n in names if n not in PART_COLOURS]
    colours = dict(zip(seeds_first, ("#ee6677", "#aa3377", "#4477aa", "#228833"), strict=False))
    for name in [*seeds_first, *(n for n in PART_COLOURS if n in names)]:
        lefts, widths = [], []
        for condition in shown:
            parts = _parts(condition)
            whole = sum(parts.values()) or 1.0
            before = [n for n in _order(parts) if _order(parts).index(n) < _index(parts, name)]
            lefts.append(100 * sum(parts[n] for n in before) / whole)
            widths.append(100 * parts.get(name, 0.0) / whole)
        colour = PART_COLOURS.get(name, colours.get(name, INK))
        bars = axes.barh(
            range(len(shown)), widths, left=lefts, color=colour, height=0.6, label=name
        )
        for condition, bar, width in zip(shown, bars, widths, strict=True):
            tip(figure, bar, f"{condition.condition}, {name}: {width:.1f} %")
    axes.set_yticks(range(len(shown)), [c.condition for c in shown])
    axes.set_ylim(max(1, len(shown)) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the variance of one value, %")
    if shown:
        axes.legend(
            fontsize=8, frameon=False, labelcolor=INK, ncols=4, loc="lower left",
            bbox_to_anchor=(0, 1.0),
        )  # fmt: skip
    return figure


def _parts(condition: ConditionAnalysis) -> dict[str, float]:
    return {c.name: c.reported for c in condition.components if c.reported is not None}


def _order(parts: dict[str, float]) -> list[str]:
    return [n for n in parts if n not in PART_COLOURS] + [n for n in PART_COLOURS if n in parts]


def _index(parts: dict[str, float], name: str) -> int:
    order = _order(parts)
    return order.index(name) if name in order else len(order)


def attribution(whose: Attribution) -> Any:
    """The variance of a cell's rate, and of one answer, by source as shares of the whole."""
    figure, axes = axes_of(height=1.5)
    bars = {"one answer": whose.shares_of_answer, "a cell's rate": whose.shares_of_rate}
    grid = [part.name for part in whose.parts if part.name not in (SEED, *PART_COLOURS)]
    colours = dict(zip(grid, GRID_COLOURS, strict=False)) | {SEED: COLOURS[1]} | PART_COLOURS
    left = dict.fromkeys(bars, 0.0)
    for part in whose.parts:
        widths = [100 * shares.get(part.name, 0.0) for shares in bars.values()]
        drawn = axes.barh(
            list(bars), widths, left=list(left.values()), height=0.6, label=part.name,
            color=colours.get(part.name, INK),
        )  # fmt: skip
        for name, bar, width in zip(bars, drawn, widths, strict=True):
            tip(figure, bar, f"{name}, {part.name}: {width:.1f} %")
        left = {name: left[name] + w for name, w in zip(bars, widths, strict=True)}
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the variance, %")
    axes.legend(
        fontsize=8, frameon=False, labelcolor=INK, ncols=4, loc="lower left",
        bbox_to_anchor=(0, 1.0),
    )  # fmt: skip
    return figure


def questions(conditions: Sequence[ConditionAnalysis]) -> Any:
    """The mean of each question under each condition, as shades of one scale."""
    from matplotlib.patches import Rectangle

    shown = conditions[:MOST_NAMES]
    every = list(dict.fromkeys(cell.question for c in shown for cell in c.questions))
    names = every[:MOST_NAMES]
    scale = 100 if all(c.binary for c in shown) else 1
    grid = np.full((len(names), len(shown)), np.nan)
    for column, condition in enumerate(shown):
        for cell in condition.questions:
            if cell.question in names:
                grid[names.index(cell.question), column] = cell.mean * scale
    figure, axes = axes_of(height=0.24 * len(names) + 1.6)
    say_first(figure, len(names), len(every), "questions")
    say_first(figure, len(shown), len(conditions))
    top = max(1.0, float(np.nanmax(grid))) if np.isfinite(grid).any() else 1.0
    bounds = {"vmin": 0, "vmax": top} if scale == 100 else {}
    # A mesh, not a picture: nothing is embedded in a page.
    image = axes.pcolormesh(grid, cmap="viridis", **bounds)
    for row, column in zip(*np.nonzero(np.isfinite(grid)), strict=True):
        value = f"{grid[row, column]:.1f} %" if scale == 100 else f"{grid[row, column]:.3g}"
        over = axes.add_patch(Rectangle((column, row), 1, 1, lw=0, alpha=0.0))
        tip(figure, over, f"{names[row]}, {shown[column].condition}: {value}")
    across, down = np.arange(len(shown)) + 0.5, np.arange(len(names)) + 0.5
    tilt = 30 if len(shown) <= 12 else 90
    axes.set_xticks(across, [c.condition for c in shown], rotation=tilt, ha="right")
    axes.set_yticks(down, names)
    axes.invert_yaxis()
    bar = figure.colorbar(image, ax=axes, shrink=min(0.8, 14 / max(1, len(names))), aspect=25)
    bar.solids.set(rasterized=False, edgecolor="face")  # a page embeds no picture
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label("%" if scale == 100 else "mean value", color=INK, fontsize=8)
    return figure


def power(conditions: Sequence[ConditionAnalysis]) -> Any:
    """The expected half-width against seeds: full for these questions, dashed for new ones."""
    told = [c for c in conditions if c.curve]
    shown = told[: len(COLOURS)]
    scale = 100 if all(c.binary for c in conditions) else 1
    figure, axes = axes_of(height=3.0)
    say_first(figure, len(shown), len(told))
    for row, condition in enumerate(shown):
        colour = COLOURS[row % len(COLOURS)]
        for claim, style in (("fixed", "-"), ("random", "--")):
            points = [(p.seeds, getattr(p, claim)) for p in condition.curve]
            there = [(n, scale * width) for n, width in points if width is not None]
            if there:
                xs, ys = zip(*there, strict=True)
                label = condition.condition if claim == "fixed" else None
                axes.plot(xs, ys, style, color=colour, lw=1.3, label=label)
        now = next((p for p in condition.curve if p.seeds == condition.num_seeds), None)
        if now is not None and now.fixed is not None:
            axes.plot(now.seeds, scale * now.fixed, "o", color=colour, ms=6)
    axes.set_xscale("log")
    if shown and all(min(line.get_ydata()) > 0 for line in axes.lines):
        axes.set_yscale("log")
    ticks = (2, 3, 5, 10, 20, 50)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("seeds")
    axes.set_ylabel("expected half-width" + (", points" if scale == 100 else ""))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    calm(axes)
    if shown:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure
