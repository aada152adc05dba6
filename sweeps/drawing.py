"""How every picture of a page is drawn: its colours, its axes, and its SVG text.

Knows nothing of what a picture shows.
"""

import html
import io
import re
from pathlib import Path
from typing import Any

from sweeps.outputs import write_output

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
INK = "#7a7f87"  # readable on a light and on a dark page


def axes_of(height: float) -> tuple[Any, Any]:
    """Return a calm figure of the page's width with one set of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    calm(axes)
    return figure, axes


def grid_of(
    lines: int, columns: int, *, height: float = 2.4, one_scale: bool = True
) -> tuple[Any, Any]:
    """Return a figure with a grid of panels, each `height` inches, with shared axes or without."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=one_scale, sharey=one_scale)
    for axes in grid.flat:
        calm(axes)
    return figure, grid


def calm(axes: Any) -> None:
    """Draw two thin spines in a grey that both pages show, and no ground."""
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.xaxis.label.set(color=INK, fontsize=8)
    axes.yaxis.label.set(color=INK, fontsize=8)


def say_first(figure: Any, shown: int, every: int, what: str = "conditions") -> None:
    """Say on the picture that it has the first `shown` of `every`, where it has not all."""
    if shown < every:
        said = [figure.get_suptitle(), f"the first {shown} of {every} {what}"]
        figure.suptitle(", ".join(filter(None, said)), fontsize=8, color=INK)


def tip(figure: Any, artist: Any, text: str) -> None:
    """Have a browser show `text` where the pointer is over a part of the picture: no script does.

    The text may be hostile.
    """
    tips = figure.__dict__.setdefault("tips", [])
    artist.set_gid(f"tip-{len(tips)}")
    tips.append(text)


def svg(figure: Any) -> str:
    """Return the picture without an XML head, its text as text, the same for the same data."""
    text = _as_svg(figure, transparent=True)
    return text[text.index("<svg") :]


def _as_svg(figure: Any, **settings: Any) -> str:
    import matplotlib

    _as_it_is_written(figure)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "em-sweeps"}):
        figure.savefig(out, format="svg", metadata={"Date": None}, **settings)
    tips = figure.__dict__.get("tips", ())

    def told(group: re.Match[str]) -> str:
        return f"{group[0]}<title>{html.escape(tips[int(group[1])])}</title>"

    return re.sub(r'<g id="tip-(\d+)">', told, out.getvalue())


def _as_it_is_written(figure: Any) -> None:
    """Have dollars in names drawn as such: matplotlib would take what is between for a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def save(figure: Any, stem: Path) -> None:
    """Write the picture as PNG and SVG beside each other, on white: for papers and slides.

    Raises ValueError where they cannot be written.
    """
    _as_it_is_written(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white", dpi=200)
    write_output(stem.with_name(f"{stem.name}.png"), out.getvalue())
    text = _as_svg(figure, facecolor="white")
    write_output(stem.with_name(f"{stem.name}.svg"), text.encode())
