"""The report's own pictures, beside those of its analyses.

Knows only the report's records.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from em.definitions import DEFINITIONS, ScaleDefinition
from em.judge_check import CalibrationBin
from sweeps.answers import Scores
from sweeps.drawing import COLOURS, INK, axes_of, grid_of, say_first, tip
from sweeps.results import CellResult
from sweeps.sensitivity import Sensitivity

MOST_POINTS = 1500  # of a panel, which a page has room for
MOST_PANELS = 24  # conditions that have one
BINS = 35  # of each score, where answers are too many for points
MOST_LINES = 300  # cells whose losses are drawn
SEED = 20260101  # of the jitter, so that the same report has the same picture


def planes(scores: Scores, condition_of: Mapping[str, str], definition: ScaleDefinition) -> Any:
    """Alignment against coherence, one panel a condition, every answer with both scores.

    Each is a point, or where a panel has more than MOST_POINTS, part of a shade: darker is more.
    """
    import numpy as np

    every = list(dict.fromkeys(condition_of.values()))
    names = every[:MOST_PANELS]
    place_of = {name: number for number, name in enumerate(every)}
    of_cell = np.array([place_of[condition_of[name]] for name in scores.cells], dtype=np.int64)
    columns = min(3, len(names)) or 1
    lines = -(-len(names) // columns)
    figure, grid = grid_of(lines, columns)
    say_first(figure, len(names), len(every))
    jitter = np.random.default_rng(SEED)
    for place, name in enumerate(names):
        axes = grid[place // columns][place % columns]
        mine = of_cell[scores.cell] == place if len(of_cell) else np.zeros(0, dtype=bool)
        kept = mine & scores.both
        cloud = np.stack([scores.coherent[kept], scores.aligned[kept]], axis=1)
        if len(cloud) > MOST_POINTS:
            _shade(axes, cloud, COLOURS[place % 7])
        elif len(cloud):
            cloud = cloud + jitter.uniform(-1, 1, size=cloud.shape)
            axes.scatter(cloud[:, 0], cloud[:, 1], s=7, alpha=0.5, color=COLOURS[place % 7])
        axes.axhline(definition.aligned_below, color=INK, lw=0.7, ls=":")
        axes.axvline(definition.coherent_from, color=INK, lw=0.7, ls=":")
        axes.set(xlim=(-3, 103), ylim=(-3, 103))
        axes.set_title(f"{name} ({len(cloud)} of {mine.sum()})", fontsize=8, color=INK)
    for place in range(len(names), lines * columns):
        grid[place // columns][place % columns].set_visible(False)
    figure.supxlabel("coherent", fontsize=8, color=INK)
    figure.supylabel("aligned", fontsize=8, color=INK)
    return figure


def _shade(axes: Any, cloud: Any, colour: str) -> None:
    """Draw how many answers are at each place, as shades of one colour by their logarithm."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgba

    edges = np.linspace(-1.5, 103.5, BINS + 1)
    counts, _, _ = np.histogram2d(cloud[:, 1], cloud[:, 0], bins=(edges, edges))
    shades = LinearSegmentedColormap.from_list(
        "more", [to_rgba(colour, 0.15), to_rgba(colour)], N=40
    )
    axes.pcolormesh(
        edges, edges, np.where(counts > 0, counts, np.nan), cmap=shades,
        norm=LogNorm(vmin=1, vmax=max(2.0, counts.max())),
    )  # fmt: skip


def heat(every: Sequence[Sensitivity]) -> Any:
    """The rate under each pair of thresholds, one small panel a condition, one scale for all."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    grids = every[:MOST_PANELS]
    columns = min(4, len(grids)) or 1
    lines = -(-len(grids) // columns)
    figure, panels = grid_of(lines, columns, height=1.9)
    say_first(figure, len(grids), len(every))
    shades = LinearSegmentedColormap.from_list("rate", ["#f2f4f7", "#ee6677", "#5b0f1b"], N=40)
    for place, grid in enumerate(grids):
        axes = panels[place // columns][place % columns]
        values = [[float("nan") if r is None else r * 100 for r in line] for line in grid.rates]
        # Not imshow, which would put a bitmap into the page; so would a bar of 50 shades or more.
        image = axes.pcolormesh(np.array(values), cmap=shades, vmin=0, vmax=_top(grids))
        axes.set_xticks(
            np.arange(len(grid.coherent_at)) + 0.5, [f"{t:g}" for t in grid.coherent_at]
        )
        axes.set_yticks(np.arange(len(grid.aligned_at)) + 0.5, [f"{t:g}" for t in grid.aligned_at])
        own = DEFINITIONS[grid.metric]
        if isinstance(own, ScaleDefinition):
            place_of = (
                grid.coherent_at.index(own.coherent_from) + 0.5,
                grid.aligned_at.index(own.aligned_below) + 0.5,
            )
            for size, colour in ((8, "#ffffff"), (6, "#1d2129")):  # seen on any shade
                axes.plot(*place_of, marker="o", markersize=size, fillstyle="none", color=colour)
        axes.set_title(grid.condition, fontsize=8, color=INK)
    for place in range(len(grids), lines * columns):
        panels[place // columns][place % columns].set_visible(False)
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.solids.set(rasterized=False, edgecolor="face")  # a page embeds no picture
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label("%", color=INK, fontsize=8)
    figure.supxlabel("coherent threshold", fontsize=8, color=INK)
    figure.supylabel("aligned threshold", fontsize=8, color=INK)
    return figure


def _top(grids: Sequence[Sensitivity]) -> float:
    """The end of the colour scale: the largest rate, in per cent, or one where all are zero."""
    rates = [r for grid in grids for line in grid.rates for r in line if r is not None]
    return max(1.0, 100 * max(rates, default=0.0))


def losses(cells: Sequence[CellResult]) -> Any:
    """Training loss by step, one line a cell, one colour a condition; of the first MOST_LINES.

    Of many conditions all have as many lines.
    """
    figure, axes = axes_of(height=2.8)
    trained = [cell for cell in cells if cell.losses]
    tuned = spread_over(trained, MOST_LINES)
    say_first(figure, len(tuned), len(trained), "cells")
    names = list(dict.fromkeys(cell.condition for cell in tuned))[: len(COLOURS)]
    # The untuned have a colour too, in the other pictures.
    every = list(dict.fromkeys(cell.condition for cell in cells))
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(every)}
    for cell in tuned:
        (line,) = axes.plot(
            [point.step for point in cell.losses],
            [point.loss for point in cell.losses],
            color=colours[cell.condition],
            lw=1.2,
            marker="." if len(cell.losses) < 30 else "",
        )
        tip(figure, line, cell.cell_id)
    for name in names:
        axes.plot([], [], color=colours[name], label=name)
    if names:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("training loss")
    return figure


def spread_over(cells: Sequence[CellResult], most: int) -> list[CellResult]:
    """Return `most` of the cells at most: the first ones of each condition, as many of each."""
    seen: Counter[str] = Counter()
    rank = []
    for cell in cells:
        rank.append(seen[cell.condition])
        seen[cell.condition] += 1
    first = sorted(range(len(cells)), key=lambda number: (rank[number], number))[:most]
    return [cells[number] for number in sorted(first)]


def calibration(bins: Sequence[CalibrationBin]) -> Any:
    """The reference's mean score against the judge's, one point a bin, with its answers."""
    figure, axes = axes_of(height=4.2)
    axes.plot([0, 100], [0, 100], color=INK, lw=0.8, ls=":")
    xs, ys = [b.mean_judge for b in bins], [b.mean_reference for b in bins]
    axes.plot(xs, ys, color=COLOURS[0], lw=1.2, marker="o", ms=5)
    for place in bins:
        axes.annotate(
            str(place.n), (place.mean_judge, place.mean_reference), xytext=(5, 4),
            textcoords="offset points", fontsize=7, color=INK,
        )  # fmt: skip
    axes.set(xlim=(-3, 103), ylim=(-3, 103))
    axes.set_xlabel("mean score by the judge")
    axes.set_ylabel("mean score in the table")
    return figure
