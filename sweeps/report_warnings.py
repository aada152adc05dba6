"""What a reader of a report must know before its numbers: what is missing, failed or unscored.

Knows nothing of how the numbers were made, or of how they are shown.
"""

from collections.abc import Mapping, Sequence

from em.definitions import Definition
from em.scoring import scores_needed
from sweeps.asking import given_scores
from sweeps.plan import SweepPlan
from sweeps.results import CellResult

MANY_LOST = 0.1  # share of responses without a score that is worth a warning


def warnings_of(
    sweep: SweepPlan, results: Sequence[CellResult], metrics: Mapping[str, Definition]
) -> list[str]:
    """Return a line for each thing that a reader of the numbers must know first."""
    found = []
    for judge in sweep.spec.judges:
        if judge.demonstration:
            found.append(
                f"The judge {judge.name!r} is a demonstration: it cannot judge, and every rate in "
                "this report that comes from it means nothing. It shows that the machinery works."
            )
    for state in ("failed", "missing", "running"):
        names = sorted({r.cell_id for r in results if r.state == state})
        if names:
            found.append(
                f"{len(names)} of {len(sweep.cells)} cells are {state}: {', '.join(names)}"
            )
    silent = {
        (j.evaluation, j.judge)
        for j in sweep.cells[0].judgings
        if not scores_needed(metrics[j.evaluation], given_scores(j.templates))
    }
    for (evaluation, name), group in _by_judge(results).items():
        if (evaluation, name) in silent:
            definition = metrics[evaluation]
            found.append(
                f"{evaluation}, judged by {name}: no rate, because {definition.name} needs "
                f"{definition.needs}, which this judge does not give"
            )
            continue
        finished = [r for r in group if r.state == "finished"]
        empty = [r.cell_id for r in finished if r.em_rate is None]
        if empty:
            found.append(
                f"{evaluation}, judged by {name}: {len(empty)} of {len(finished)} finished cells "
                f"have no rate, because no answer counts under {group[0].metric} (this is not a "
                f"rate of zero): {', '.join(empty)}"
            )
        responses = sum(r.counts.responses for r in finished)
        unscored = sum(r.counts.unscored for r in finished)
        failed = sum(r.counts.failed for r in finished)
        if failed:
            found.append(
                f"{evaluation}, judged by {name}: the judge's call failed for {failed} of "
                f"{responses} responses, which count as failed; emsweep resume asks them again"
            )
        if unscored + failed > responses * MANY_LOST:
            found.append(
                f"{evaluation}, judged by {name}: {unscored + failed} of {responses} responses "
                f"lack a score that {group[0].metric} reads (unscored {unscored}, failed {failed}) "
                "and count nowhere in it"
            )
    return found


def _by_judge(results: Sequence[CellResult]) -> dict[tuple[str, str], list[CellResult]]:
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.evaluation, result.judge), []).append(result)
    return groups
