"""The analysed conditions of several reports as one, side by side.

Compares nothing by a test: reports hold no answers. Knows nothing of how a report came about.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from em.analysis import Analysis
from em.condition import ConditionAnalysis


def analyses_in(path: Path) -> dict[str, Analysis]:
    """Return the analyses in a report.json, by evaluation, or the one in an analysis.json.

    Raises ValueError for another file.
    """
    try:
        data: Any = json.loads(path.read_bytes())
        known = data.get("analyses", {"": data})
        return {name: Analysis.model_validate(one) for name, one in known.items()}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ValueError(
            f"{path} is no report.json of this version, nor an analysis.json: name one of those"
        ) from error


def side_by_side(paths: Sequence[Path]) -> Analysis:
    """Return all conditions of the reports `paths`, named by report and evaluation.

    A difference in the definition of the value is a note. Raises ValueError for other files, and
    for fewer than two.
    """
    if len(paths) < 2:
        raise ValueError("comparing takes two reports or more")
    names = _names(paths)
    found: list[ConditionAnalysis] = []
    notes, definitions = [], {}
    for name, path in zip(names, paths, strict=True):
        for evaluation, analysis in analyses_in(path).items():
            place = f"{name} · {evaluation}" if evaluation else name
            definitions[place] = analysis.what
            notes += [f"{place}: {note}" for note in analysis.notes]
            found += [
                c.model_copy(update={"condition": f"{place} · {c.condition}"})
                for c in analysis.conditions
            ]
    same = len(set(definitions.values())) == 1
    what = next(iter(definitions.values())) if same else "several definitions, see the notes"
    if not same:
        notes = [f"{place} counts by {text}" for place, text in definitions.items()] + notes
    return Analysis(
        what=what,
        weights="answers",
        num_rows=sum(c.num_rows for c in found),
        num_scored=sum(c.num_scored for c in found),
        num_unscored=sum(c.num_unscored for c in found),
        notes=tuple(notes),
        conditions=tuple(found),
        pooled={judge: () for judge in dict.fromkeys(c.judge for c in found)},
        contrasts={judge: () for judge in dict.fromkeys(c.judge for c in found)},
        judges=(),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each report: its sweep's, else its folder's, with a number where equal."""
    names = []
    for path in paths:
        try:
            data = json.loads(path.read_bytes())
            name = data.get("sweep") if isinstance(data, dict) else None
        except (OSError, ValueError):
            name = None
        names.append(str(name or path.resolve().parent.name))
    return [
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, 1)
    ]
