"""An analysis as a page, its pictures as files, and the numbers behind them as parquet.

Escapes everything: names are hostile text. Knows nothing of how the numbers come about.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from em.analysis import Analysis
from em.condition import ConditionAnalysis
from em.record import fingerprint
from sweeps import analysis_figures
from sweeps.drawing import save, svg
from sweeps.outputs import make_output_dir, write_output
from sweeps.tables import parquet
from sweeps.templating import environment, percent, small

FIGURES: dict[str, Callable[[Sequence[ConditionAnalysis]], Any]] = {
    "seeds": analysis_figures.seeds,
    "components": analysis_figures.components,
    "questions": analysis_figures.questions,
    "power": analysis_figures.power,
}

LONGEST = 60  # letters of a name in a file's


def write_analysis(analysis: Analysis, folder: Path, *, title: str) -> Path:
    """Write analysis.html, analysis.json, the pictures and their numbers; return the page's path.

    Raises ValueError where the folder cannot be written.
    """
    make_output_dir(folder)
    data = analysis.model_dump(mode="json")
    write_output(folder / "analysis.json", json.dumps(data, indent=1, ensure_ascii=False).encode())
    write_output(folder / "analysis.html", _page(analysis, title).encode())
    write_pictures(analysis, folder / "figures")
    return folder / "analysis.html"


def write_pictures(analysis: Analysis, folder: Path, *, prefix: str = "") -> None:
    """Write each picture as PNG and SVG, and the numbers behind all of them as parquet."""
    make_output_dir(folder)
    for judge in _judges(analysis):
        for name, figure in _drawn(analysis, judge):
            save(figure, folder / f"{prefix}{name}{f'-{slug(judge)}' if judge else ''}")
    for name, rows in numbers(analysis).items():
        if rows:
            write_output(folder / f"{prefix}{name}.parquet", parquet(rows))


def numbers(analysis: Analysis) -> dict[str, list[dict[str, Any]]]:
    """Return the numbers behind the pictures, as rows by name."""
    found: dict[str, list[dict[str, Any]]] = {
        name: []
        for name in ("seeds", "intervals", "components", "questions", "power", "attribution")
    }
    for judge, whose in analysis.attribution.items():
        found["attribution"] += [
            {"judge": judge}
            | part.model_dump()
            | {
                "share_of_rate": whose.shares_of_rate.get(part.name),
                "share_of_answer": whose.shares_of_answer.get(part.name),
            }
            for part in whose.parts
        ]
    for c in analysis.conditions:
        place = {"condition": c.condition, "judge": c.judge}
        found["seeds"] += [place | seed.model_dump() for seed in c.seeds]
        found["intervals"] += [
            place | {"questions": name} | interval.model_dump()
            for name, interval in (("fixed", c.fixed), ("random", c.random))
        ]
        found["components"] += [place | part.model_dump() for part in c.components]
        found["questions"] += [place | cell.model_dump() for cell in c.questions]
        found["power"] += [place | point.model_dump() for point in c.curve]
    return found


def pictures(analysis: Analysis, judge: str) -> dict[str, Markup]:
    """Return the pictures of what one judge says, as SVG text for a page."""
    return {name: Markup(svg(figure)) for name, figure in _drawn(analysis, judge)}


def _drawn(analysis: Analysis, judge: str) -> Iterator[tuple[str, Any]]:
    """Yield each picture with its name; one after the other, so that few are held at once."""
    mine = [c for c in analysis.conditions if c.judge == judge]
    for name, draw in FIGURES.items():
        yield name, draw(mine)
    if judge in analysis.attribution and analysis.attribution[judge].parts:
        yield "attribution", analysis_figures.attribution(analysis.attribution[judge])


def _page(analysis: Analysis, title: str) -> str:
    binary = all(c.binary for c in analysis.conditions)
    made = environment(value=percent if binary else small)
    judges = []
    for judge in _judges(analysis):
        mine = [c for c in analysis.conditions if c.judge == judge]
        whose = analysis.attribution.get(judge)
        judges.append(
            {"name": judge, "conditions": mine, "whose": whose, **pictures(analysis, judge)}
        )
    return made.get_template("analysis.html.j2").render(
        analysis=analysis, title=title, judges=judges
    )


def _judges(analysis: Analysis) -> list[str]:
    return list(dict.fromkeys(c.judge for c in analysis.conditions))


def slug(name: str) -> str:
    """Return a name as part of a file's: another for another name."""
    plain = "".join(one if one.isalnum() or one in "-_." else "_" for one in name)[:LONGEST]
    return plain if plain == name else f"{plain}-{fingerprint(name)[:6]}"
