"""A sweep's dashboard in W&B: a saved view of its runs and a report, built from its spec.

Both are found again by their names and replaced: saving twice changes nothing. What they show is
logged by sweeps.publisher. Knows nothing of the store.
"""

from typing import Any

from em.record import fingerprint
from sweeps.analysis_page import slug
from sweeps.plan import SweepPlan
from sweeps.settings import TrackingConfig
from sweeps.spec import SweepSpec
from sweeps.tracked_report import MOST_CONDITIONS, SEEDS_STEP, place_of

MOST_LINES = 20  # of one panel: more cannot be told apart


def save_dashboard(sweep: SweepPlan) -> dict[str, str]:
    """Make or replace the sweep's view and report in W&B; return their addresses by name.

    Raises ValueError where W&B does not answer, or refuses.
    """
    import wandb

    try:
        entity = sweep.spec.tracking.entity or str(wandb.Api(timeout=30).default_entity)
        return {"view": _save_view(sweep, entity), "report": _save_report(sweep, entity, wandb)}
    except Exception as error:
        raise ValueError(f"W&B does not take the dashboard: {error}") from error


def title_of(spec: SweepSpec) -> str:
    """Return what the view and the report are called, and found again by."""
    return f"em-sweeps: {spec.name}"


def view_name(spec: SweepSpec) -> str:
    """Return the view's name in addresses; W&B's own form of one."""
    return f"nw-emsweep{fingerprint(spec.name)[:12]}-v"


def runs_of(spec: SweepSpec) -> str:
    """Return the filter that leaves the sweep's runs. A sweep's name has no quotes."""
    return f"Config('sweep') = '{spec.name}'"


def _save_view(sweep: SweepPlan, entity: str) -> str:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.workspaces import internal

    spec = sweep.spec
    view = ws.Workspace(
        entity=entity,
        project=spec.tracking.project,
        name=title_of(spec),
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in sections(sweep).items()
        ],
        runset_settings=ws.RunsetSettings(
            filters=runs_of(spec),
            groupby=[ws.Config("condition")],
            pinned_columns=["summary:cell/state", "summary:cell/stage", "summary:cell/attempts"],
        ),
    )
    view._internal_name = view_name(spec)
    known = _view_id(internal, entity, spec.tracking, view._internal_name)
    if known is not None:
        view._internal_id = known
    view.save()
    return str(view.url)


def _view_id(internal: Any, entity: str, tracking: TrackingConfig, name: str) -> str | None:
    """Return the id of the view of this name, where there is one already."""
    try:
        found = internal.get_view_dict(
            entity, tracking.project, internal._internal_name_to_url_query_str(name)
        )
    except ValueError as error:
        if "not found in project" in str(error):
            return None
        raise
    return str(found["id"])


def _save_report(sweep: SweepPlan, entity: str, sdk: Any) -> str:
    import wandb_workspaces.reports.v2 as wr

    spec = sweep.spec
    runs = wr.Runset(
        entity=entity, project=spec.tracking.project, name=spec.name, filters=runs_of(spec)
    )
    blocks: list[Any] = [wr.TableOfContents()]
    if spec.description:
        blocks.append(wr.P(spec.description))
    for name, panels in sections(sweep).items():
        blocks += [wr.H1(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    report = wr.Report(
        project=spec.tracking.project, entity=entity, title=title_of(spec), blocks=blocks,
        width="fluid",
    )  # fmt: skip
    path = f"{entity}/{spec.tracking.project}"
    for known in sdk.Api(timeout=30).reports(path):
        if known.display_name == title_of(spec):
            report.id = known.id
    report.save()
    return str(report.url)


def sections(sweep: SweepPlan) -> dict[str, list[Any]]:
    """Return the panels of each section: progress, losses, distributions, variance, answers."""
    import wandb_workspaces.reports.v2 as wr

    done = ["sweep/finished", "sweep/failed", "sweep/train_done", "sweep/judge_done"]
    every = [(e.name, judge) for e in sweep.spec.evaluations for judge in _judges(sweep, e.name)]
    return {
        "Progress": [
            wr.LinePlot(title="cells", x="_timestamp", y=done),
            wr.WeavePanelSummaryTable(table_name="cells"),
        ],
        "Training": [
            wr.LinePlot(
                title="loss", x="train/step", y=["train/loss"], groupby=wr.Config("condition"),
                groupby_rangefunc="minmax",
            ),
            wr.LinePlot(title="memory of the workers, GiB", x="train/step",
                        y=["worker/0/memory_gib", "worker/0/gpu_memory_gib"]),
        ],
        "Distributions over seeds": [
            wr.MediaBrowser(media_keys=_pictures(sweep, "seeds", "planes"), num_columns=1),
            *(
                wr.BarPlot(
                    title=f"rate, {evaluation}, judged by {judge}",
                    metrics=[f"eval/{evaluation}/{judge}/em_rate"],
                    groupby=wr.Config("condition"), groupby_rangefunc="minmax",
                )
                for evaluation, judge in every
            ),
            *(_estimates(sweep, evaluation, judge) for evaluation, judge in every),
        ],
        "Variance": [
            wr.MediaBrowser(
                media_keys=_pictures(sweep, "components", "attribution", "questions", "power"),
                num_columns=1,
            ),
            wr.WeavePanelSummaryTable(table_name="conditions"),
            wr.WeavePanelSummaryTable(table_name="components"),
        ],
        "Answers": [
            wr.WeavePanelSummaryTable(table_name="answers"),
            wr.MediaBrowser(media_keys=["report"], num_columns=1),
        ],
    }  # fmt: skip


def _estimates(sweep: SweepPlan, evaluation: str, judge: str) -> Any:
    """Return the panel of estimate and interval against the number of finished seeds."""
    import wandb_workspaces.reports.v2 as wr

    conditions = list(dict.fromkeys(cell.cell.condition for cell in sweep.cells))[:MOST_CONDITIONS]
    places = [place_of(evaluation, judge, name) for name in conditions[:MOST_LINES]]
    keys = [f"{place}/{name}" for place in places for name in ("estimate", "low", "high")]
    title = f"estimate and 95 % interval by finished seeds, {evaluation}, judged by {judge}"
    return wr.LinePlot(title=title, x=SEEDS_STEP, y=keys)


def _judges(sweep: SweepPlan, evaluation: str) -> list[str]:
    found = (j.judge for cell in sweep.cells for j in cell.judgings if j.evaluation == evaluation)
    return list(dict.fromkeys(found))


def _pictures(sweep: SweepPlan, *kinds: str) -> list[str]:
    """Return the names under which sweeps.publisher logs pictures of these kinds."""
    several = len(sweep.spec.evaluations) > 1
    found = []
    for evaluation in (e.name for e in sweep.spec.evaluations):
        for judge in _judges(sweep, evaluation):
            for kind in kinds:
                whole = several or kind == "planes"
                place = f"{slug(evaluation)}-" if whole else ""
                stem = f"planes-{place}" if kind == "planes" else f"{place}{kind}-"
                found.append(f"figures/{stem}{slug(judge)}")
    return found
