"""A judge's comparison with a table as one page that opens offline. Everything is escaped.

Knows nothing of how the numbers come about.
"""

from pathlib import Path

from markupsafe import Markup

from sweeps import figures
from sweeps.drawing import svg
from sweeps.judge_commands import JudgeCheck
from sweeps.outputs import write_output
from sweeps.templating import environment


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
    plots = {
        score.score: Markup(svg(figures.calibration(score.calibration))) for score in check.scores
    }
    return (
        environment(number=_number)
        .get_template("judge_check.html.j2")
        .render(check=check, plots=plots)
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
