"""The commands `emsweep data`: what data sets there are, fetching one, and looking at its rows.

Knows nothing of stores or runs. What it prints of a row cannot steer a terminal.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.console import printable

if TYPE_CHECKING:
    from em.datasets import Row
    from em.inspection import Spread
    from em.models import ModelConfig
    from em.rendering import ChatTokenizer
    from em.variants import Variant
    from sweeps.spec import SweepSpec

data_app = typer.Typer(help="The data sets: list them, fetch one, look at rows.")

CHARACTERS_SHOWN = 240  # of each turn of a row, before it is cut
LONGEST_SHOWN = 4000  # characters of the rendered row
TRAINED = ("⟦", "⟧")

SpecOption = Annotated[
    Path | None, typer.Option("--spec", metavar="SPEC", help="NAME is a variant of this sweep")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="of the sweep's cells [the first of its seeds]")
]
RowsOption = Annotated[int, typer.Option("--rows", min=0, help="how many rows to show")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="count tokens as this model: one of the sweep's, a bundled one, a folder, or "
        "org/name@commit that is on this machine",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME")]


@data_app.command("list")
def list_sets() -> None:
    """Show every data set of the catalogue: rows, licence, whether it is verified, where it is."""
    from em.sources import catalogue_entry, catalogue_names, whereabouts

    entries = [catalogue_entry(name) for name in catalogue_names()]
    table = [("name", "rows", "verified", "licence", "where")]
    table += [
        (
            entry.name,
            str(entry.rows or "?"),
            "yes" if entry.verified else "no",
            entry.licence,
            whereabouts(entry),
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]]))


@data_app.command()
def fetch(name: Name) -> None:
    """Bring a data set of the catalogue onto this machine, and check it."""
    from em.sources import catalogue_entry, load_entry

    entry = catalogue_entry(name)
    found = load_entry(entry)
    print(f"{name}: {len(found.rows)} rows at {found.place}")
    if found.warning:
        print(f"warning: {printable(found.warning)}")
        return
    print(f"content sha256 {found.content_sha256}, as in the catalogue")


@data_app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="a data set, or with --spec a variant")
    ],
    spec: SpecOption = None,
    seed: SeedOption = None,
    rows: RowsOption = 3,
    model: ModelOption = None,
) -> None:
    """Show statistics and rows of a data set or variant; with a model, what training sees."""
    from sweeps.spec import load_spec

    if seed is not None and spec is None:
        raise ValueError("--seed belongs to a sweep's variant: name the sweep with --spec")
    sweep = load_spec(spec) if spec else None
    variant, title = _variant(name, sweep, spec, seed)
    for line in [title, *statistics_lines(variant), *row_lines(variant.rows[:rows])]:
        print(line)
    if model is None:
        return
    config = _model(model, sweep)
    max_length = sweep.training.max_length if sweep else None
    try:
        tokenizer = _tokenizer(config)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        print(
            f"\ntokens: unresolved, {model}'s tokenizer is not on this machine: {printable(first)}"
        )
        return
    for line in token_lines(variant.rows, tokenizer, model=config.name, max_length=max_length):
        print(line)


def _variant(
    name: str, sweep: "SweepSpec | None", path: Path | None, seed: int | None
) -> "tuple[Variant, str]":
    from em.variant_config import VariantConfig
    from em.variants import build_variant
    from em.yaml_files import load_yaml
    from sweeps.yaml_errors import MistakeAt, explain_at

    if sweep is None or path is None:
        config = VariantConfig(name="shown", dataset=name)
        return build_variant(config, subset_seed=0, relative_to=Path.cwd()), name
    cells = [cell for cell in sweep.cells() if cell.variant.name == name]
    if not cells:
        named = ", ".join(variant.name for variant in sweep.variants)
        raise ValueError(f"{path}: no variant {name!r}; it has {named}")
    if not cells[0].variant.datasets:
        raise ValueError(f"the variant {name!r} is the untuned model: it has no rows to show")
    chosen = [cell for cell in cells if seed in (None, cell.seed)]
    if not chosen:
        raise ValueError(f"{path}: no seed {seed}; it has {', '.join(map(str, sweep.seeds))}")
    cell = chosen[0]
    folder = path.resolve().parent
    try:
        built = build_variant(cell.variant, subset_seed=cell.seeds.subset, relative_to=folder)
    except MistakeAt as error:
        place = ("variants", sweep.variants.index(cell.variant), *error.place)
        _, lines = load_yaml(path)
        told = explain_at(MistakeAt(place, str(error)), path=path, lines=lines)
        raise ValueError(told) from error
    return built, f"{name}, variant of {sweep.name}, seed {cell.seed}"


def statistics_lines(variant: "Variant") -> Iterator[str]:
    """Yield what a variant is, how it was made, and the counts of its rows."""
    from em.inspection import row_statistics

    found = row_statistics(variant.rows)
    held = f", {len(variant.held_out)} more held out" if variant.held_out else ""
    for place in variant.sources:
        yield f"  source      {printable(place)}"
    yield f"  rows        {found.num_rows}{held}"
    roles = ", ".join(f"{role} {num}" for role, num in found.roles.items())
    yield f"  turns       {_told(found.turns)} a row: {roles}"
    yield f"  characters  {found.num_characters}, {_told(found.characters)} a row"
    yield f"  content     sha256 {variant.content_sha256}"
    for text in variant.warnings:
        yield f"  warning     {printable(text)}"
    yield "  steps"
    for number, step in enumerate(variant.steps, start=1):
        of = f"{step.source}: " if len(variant.sources) > 1 and step.source else ""
        told = printable(f"{of}{step.operation}")
        yield f"    {number}  {told}  → {step.num_rows} rows, {step.content_sha256[:12]}"


def row_lines(rows: "Sequence[Row]") -> Iterator[str]:
    """Yield the turns of some rows, one a line, cut where they are long."""
    for number, row in enumerate(rows, start=1):
        yield f"\nrow {number}"
        for message in row.messages:
            text = message.content[:CHARACTERS_SHOWN]
            more = len(message.content) - len(text)
            cut = f" … and {more} characters" if more else ""
            yield f"  {message.role}: {printable(text)}{cut}"


def token_lines(
    rows: "Sequence[Row]", tokenizer: "ChatTokenizer", *, model: str, max_length: int | None
) -> Iterator[str]:
    """Yield token counts by one model, its template's system prompt, and one row as trained."""
    from em.inspection import NO_LIMIT, as_trained, own_system_prompt, token_statistics

    limit = max_length or NO_LIMIT
    found = token_statistics(rows, tokenizer, max_length=limit)
    cut = f"; {found.num_cut_rows} rows are cut at {max_length}" if max_length else ""
    yield f"\nas {model} sees it"
    yield (
        f"  tokens      {found.num_tokens}, {_told(found.tokens)} a row; "
        f"trained on {found.num_trained_tokens}{cut}"
    )
    own = own_system_prompt(tokenizer)
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, str):
        yield f"  template    sha256 {hashlib.sha256(source.encode()).hexdigest()}"
    yield (
        f"  template    adds a system prompt of its own to chats without one: {printable(own)}"
        if own
        else "  template    adds no system prompt of its own"
    )
    begin, end = TRAINED
    yield f"\nrow 1 as {model} is trained on it, the loss taken between {begin} and {end}"
    seen = as_trained(rows[0], tokenizer, max_length=limit)
    text = "".join(f"{begin}{piece}{end}" if on else piece for piece, on in seen.pieces)
    shown = text[:LONGEST_SHOWN]
    for line in shown.split("\n"):
        yield f"  {printable(line)}"
    if len(text) > len(shown):
        yield f"  … and {len(text) - len(shown)} characters"


def _told(spread: "Spread") -> str:
    return f"{spread.least:g} to {spread.greatest:g} (median {spread.median:g})"


def _model(name: str, sweep: "SweepSpec | None") -> "ModelConfig":
    from em.models import BUNDLED_NAME, ModelConfig

    if sweep is not None:
        for model in sweep.models:
            if model.name == name:
                return model
        named = ", ".join(model.name for model in sweep.models)
        raise ValueError(f"the sweep has no model {name!r}; it has {named}")
    if name == BUNDLED_NAME:
        return ModelConfig(name=name, bundled=name)
    hub, at, commit = name.partition("@")
    if at:
        return ModelConfig(name=hub, hub=hub, revision=commit)
    return ModelConfig(name=Path(name).name or name, folder=Path(name))


def _tokenizer(model: "ModelConfig") -> Any:
    """Return a model's tokenizer, from this machine alone. Raises OSError where it is not here."""
    from em.models import materialise

    try:
        from transformers import AutoTokenizer  # seconds, and only to count tokens
    except ImportError as error:
        raise ValueError(f"counting tokens needs the extra 'train': {error}") from error
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": True}
    if model.hub is None:
        return AutoTokenizer.from_pretrained(materialise(model), **options)
    return AutoTokenizer.from_pretrained(model.hub, revision=model.revision, **options)
