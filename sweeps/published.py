"""Figures that papers have printed, and whether one may stand beside an estimate of ours.

It may only where model, data, questions and definition are the same; else there is no figure.
Knows nothing of reports.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from em.catalogue import config_dir
from em.questions import Wording
from em.record import Record, fingerprint
from em.sources import read_entry
from em.told import first_mistake
from em.yaml_files import checked, load_yaml

NO_FIGURE = "no figure"
# The published recipe holds a tenth of the rows out within each run: the same data to name.
HELD_OUT = 0.1


class PublishedFigure(Record):
    """One number of a paper. `figure`, `low` and `high` are shares in [0, 1].

    A part that the paper leaves open, or that no model, data set or question file of this project
    can be (a fine-tuned GPT-4o), is None, and then the figure stands beside nothing.
    """

    model: str
    hub: str | None = Field(default=None, description="the hub id; its commit is not published")
    dataset: str | None = Field(description="a name of the catalogue; none: the untuned model")
    questions: str
    questions_sha256: str | None = None
    definition: str | None
    figure: float = Field(ge=0, le=1)
    low: float | None = None
    high: float | None = None
    interval: str = "none given"
    seeds: int | None = None
    judge: str | None = None
    source: str
    note: str = ""

    @property
    def text(self) -> str:
        """The figure in one line."""
        low, high = self.low, self.high
        within = "" if low is None or high is None else f" [{100 * low:.3g}, {100 * high:.3g}]"
        seeds = f", {self.seeds} seeds" if self.seeds else ""
        judge = f", judged by {self.judge}" if self.judge else ""
        return f"{100 * self.figure:.3g} %{within} ({self.model}{seeds}{judge}; {self.source})"


class Estimand(Record):
    """What an estimate is of: the parts that a published figure must share with it."""

    model_revision: str
    variant: dict[str, object] = Field(description="the variant's settings that are no default")
    content_sha256: str | None
    questions_sha256: str
    num_rows: int | None = Field(
        default=None, description="of the source, before rows are held out"
    )
    plain: bool = Field(default=True, description="put without a form")
    definition: str


def question_set(asked: Iterable[Wording]) -> str:
    """Return the sha256 of a question set: ids, system turns and texts, in no order."""
    return fingerprint(sorted([w.question, w.system or "", w.text] for w in asked))


def published_figure(
    figures: Sequence[PublishedFigure],
    of: Estimand,
    *,
    contents: dict[str, str],
    rows: Mapping[str, int] = {},
) -> PublishedFigure | None:
    """Return the figure of the same model, data, questions and definition, or None.

    A hub model is the same by its id, as no paper names a commit. Data are the same by their
    content hash (`contents`: catalogue name to hash), or by their name where the variant does
    nothing to them but hold a tenth of the rows out, as published, and the source has as many rows
    as the catalogue says (`rows`). Any other form of the questions is another evaluation.
    """
    for figure in figures:
        if (
            figure.hub is not None
            and of.model_revision.partition("@")[0] == figure.hub
            and _same_data(figure, of, contents, rows)
            and of.plain
            and figure.questions_sha256 == of.questions_sha256
            and figure.definition == of.definition
        ):
            return figure
    return None


def _same_data(
    figure: PublishedFigure, of: Estimand, contents: dict[str, str], rows: Mapping[str, int]
) -> bool:
    named = of.variant.get("dataset")
    if figure.dataset == "none":
        return of.content_sha256 is None and named is None
    if figure.dataset is None or of.content_sha256 is None:
        return False
    if contents.get(figure.dataset) == of.content_sha256:
        return True
    if named != figure.dataset or set(of.variant) - {"name", "dataset", "holdout"}:
        return False
    if of.variant.get("holdout", HELD_OUT) != HELD_OUT:
        return False
    known = rows.get(figure.dataset)  # an unverified set is known by its number of rows alone
    return known is None or known == of.num_rows


def load_figures(folder: Path | None = None) -> list[PublishedFigure]:
    """Return every figure of configs/published. Raises ValueError naming a file that is unsound."""
    found: list[PublishedFigure] = []
    for path in sorted((folder or config_dir() / "published").glob("*.yaml")):
        try:
            found += checked(TypeAdapter(list[PublishedFigure]), load_yaml(path)[0])
        except ValidationError as error:
            text = first_mistake(error)
            raise ValueError(f"{path}: not a list of published figures: {text}") from error
    return found


def catalogue_rows() -> dict[str, int]:
    """Return the number of rows that the catalogue knows of each data set, by name."""
    entries = sorted((config_dir() / "datasets").glob("*.yaml"))
    known = ((path.stem, read_entry(path).rows) for path in entries)
    return {name: rows for name, rows in known if rows is not None}


def catalogue_contents() -> dict[str, str]:
    """Return the content hash of each data set of the catalogue, by name."""
    entries = sorted((config_dir() / "datasets").glob("*.yaml"))
    known = ((path.stem, read_entry(path).content_sha256) for path in entries)
    return {name: sha256 for name, sha256 in known if sha256 is not None}
