"""A judge's comparison with a table as one page that opens offline. Everything is escaped.

Knows nothing of how the numbers come about.
"""

from pathlib import Path

import jinja2
from markupsafe import Markup

from sweeps import figures
from sweeps.drawing import svg
from sweeps.files import write_output
from sweeps.judge_commands import JudgeCheck


def write_judge_check(check: JudgeCheck, folder: Path) -> Path:
    """Write judge_check.html and judge_check.json; return the page's path.

    Raises ValueError where they cannot be written.
    """
    write_output(folder / "judge_check.json", (check.model_dump_json(indent=1) + "\n").encode())
    path = folder / "judge_check.html"
    write_output(path, render(check).encode())
    return path


def render(check: JudgeCheck) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sweeps", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number}
    plots = {
        score.score: Markup(svg(figures.calibration(score.calibration))) for score in check.scores
    }
    return environment.get_template("judge_check.html.j2").render(check=check, plots=plots)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
