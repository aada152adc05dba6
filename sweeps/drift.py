"""Finished work that was made from other things than those that its names stand for now.

What a sweep's names stood for is read from the store and compared. Knows nothing of what the user
answers (see sweeps.keeping), or of how work is done.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

from em.record import fingerprint
from sweeps.artefacts import PIECES
from sweeps.made_with import Made, made_with, numeric
from sweeps.plan import STAGES, CellPlan, Stage, SweepPlan
from sweeps.rekeyed import Pins, rekeyed, served_model
from sweeps.resolved import Drift, Resolved, Rows, Versions
from sweeps.store import Store

MADE_OF = ("code", "version", "inspect_ai")  # of what a task is: what changes by itself
DIGITS = 12  # of a hash, for a person


def moved(sweep: SweepPlan, now: Resolved, known: Resolved, store: Store) -> Pins:
    """Return the models and variants that are others `now`, and of which work is finished.

    A variant is one thing: where the rows of one seed are others, all its recorded seeds are kept
    together.
    """
    models = {
        name: revision
        for name, revision in known.models.items()
        if now.models.get(name, revision) != revision
    }
    variants = {
        name: seeds
        for name, seeds in known.variants.items()
        if _moved_seeds(seeds, now.variants.get(name, {}))
    }
    pins = Pins(models=models, variants=variants, versions=known.in_keys)
    if not models and not variants:
        return pins
    stored = rekeyed(sweep, pins)
    return Pins(
        models={n: r for n, r in models.items() if _cells_of_model(stored, n, store)},
        variants={
            name: seeds
            for name, seeds in variants.items()
            if _cells_of_variant(stored, name, _moved_seeds(seeds, now.variants[name]), store)
        },
        versions=known.in_keys,
    )


def drifted_names(stored: SweepPlan, now: Resolved, pins: Pins, store: Store) -> Iterator[Drift]:
    """Yield the models and variants of `pins`, as `moved` returned them."""
    for name, was in pins.models.items():
        cells = _cells_of_model(stored, name, store)
        yield Drift(
            key=f"model.{name}",
            now=(now.models[name],),
            text=f"model {name}: is {_short(now.models[name])}, was {_short(was)} when the sweep "
            f"ran ({_cells(cells)} of it)",
        )
    for name, seeds in pins.variants.items():
        others = _moved_seeds(seeds, now.variants[name])
        seed, rows = next(iter(others.items()))
        first = "" if len(others) == 1 else f"the first of {len(others)} subset seeds; "
        held_out = any(e.heldout == name for e in stored.spec.evaluations)
        cells = _cells_of_variant(stored, name, others, store)
        yield Drift(
            key=f"variant.{name}",
            now=tuple(others.values()),
            text=f"variant {name}: rows have content hash {rows[:DIGITS]}, were "
            f"{seeds[seed].content_sha256[:DIGITS]} when the sweep ran "
            f"({first}{_cells(cells)} of those)",
            can_keep_stored=not held_out,  # what its held-out rows asked is gone with the file
        )


def drifted_questions(
    stored: SweepPlan, now: Resolved, known: Resolved, store: Store
) -> Iterator[Drift]:
    """Yield the evaluations with a question that is worded differently and has been answered.

    More wordings of a question are growth and fewer are removal: that is no drift.
    """
    for name, asked in now.questions.items():
        gone, other = set[str](), set[str]()
        ids: list[str] = []
        for question, before in known.questions.get(name, {}).items():
            left = set(before) - set(asked.get(question, before))
            new = set(asked.get(question, ())) - set(before)
            if left and new:
                gone, other, ids = gone | left, other | new, [*ids, question]
        cells = _count(stored, partial(_has_answers, name, gone, store)) if gone else 0
        if cells:
            yield Drift(
                key=f"questions.{name}",
                now=tuple(sorted(other)),
                text=f"evaluation {name}: {_list(ids)} asked in other words than when the sweep "
                f"ran ({_cells(cells, 'answers')} to those)",
                can_keep_stored=False,
            )


def drifted_tasks(
    stored: SweepPlan, now: Resolved, known: Resolved, store: Store
) -> Iterator[Drift]:
    """Yield the evaluations whose task of Inspect is made of other code, and has been answered.

    Other arguments, another grader or sandbox are other settings: that is no drift.
    """
    for name, task in now.tasks.items():
        before = known.tasks.get(name, task)
        other = sorted(part for part in MADE_OF if before.get(part) != task.get(part))
        settings = (dict.fromkeys(MADE_OF) | one | dict.fromkeys(MADE_OF) for one in (before, task))
        if not other or len({fingerprint(one) for one in settings}) > 1:
            continue
        cells = _count(stored, partial(_has_answered, name, before, store))
        if cells:
            yield Drift(
                key=f"task.{name}",
                now=(fingerprint([task.get(part) for part in MADE_OF]),),
                text=f"evaluation {name}: the task {task['task']} is made of other things than "
                f"when the sweep ran ({_list(other)}; {_cells(cells, 'answers')} to that one)",
                can_keep_stored=False,
            )


def drifted_prompts(
    stored: SweepPlan, now: Resolved, known: Resolved, store: Store
) -> Iterator[Drift]:
    """Yield the judges whose prompt, or whose way of reading it, is another for a score given."""
    for judge, prompts in now.prompts.items():
        before = known.prompts.get(judge, {})
        other = {p: sha for p, sha in prompts.items() if before.get(p, sha) != sha}
        evaluations = {place.partition("/")[0] for place in other}
        cells = _count(stored, partial(_is_judged, judge, evaluations, store)) if other else 0
        if cells:
            yield Drift(
                key=f"prompts.{judge}",
                now=tuple(sorted(set(other.values()))),
                text=f"judge {judge}: its prompts are others than when the sweep ran, for "
                f"{_list(sorted({p.partition('/')[2] for p in other}))} "
                f"({_cells(cells, 'judgements')} by those)",
                can_keep_stored=False,
            )


def drifted_versions(
    stored: SweepPlan,
    known: Resolved,
    installed: Mapping[str, str],
    store: Store,
    *,
    again: bool,
) -> tuple[list[Drift], Versions]:
    """Return the packages that drifted, and what is to be recorded where they are kept.

    What the sweep is not known to be made with is looked up in the records of finished work. With
    `again`, packages whose drift was accepted are listed, too.
    """
    versions: Versions = {stage: dict(known.versions.get(stage, {})) for stage in STAGES}
    told: dict[str, list[tuple[Stage, dict[str, int]]]] = {}
    made: Made | None = None
    for stage in STAGES:
        for package, version in numeric(installed, stage).items():
            was = versions[stage].get(package, ())
            asked_again = again and version in known.accepted.get(f"version.{package}", ())
            if version in was and not asked_again:
                continue
            if made is None:
                made = made_with(stored, store)
            found = made[stage][package]
            others = {other: cells for other, cells in found.items() if other != version}
            if others and (asked_again or version not in found):
                told.setdefault(package, []).append((stage, others))
            # Versions of which nothing is left to count are forgotten.
            versions[stage][package] = tuple(dict.fromkeys([*found, version]))
    drifts = [
        Drift(
            key=f"version.{package}",
            now=(installed[package].partition("+")[0],),
            text=f"{package}: {installed[package].partition('+')[0]} is installed; "
            + ", ".join(
                f"{PIECES[stage]} of {cells} cell{'s' * (cells != 1)} were made with {other}"
                for stage, others in stages
                for other, cells in others.items()
            ),
            stages=tuple(stage for stage, _ in stages),
        )
        for package, stages in told.items()
    ]
    return drifts, versions


def _moved_seeds(before: Mapping[str, Rows], now: Mapping[str, Rows]) -> dict[str, str]:
    """Return the hash that rows have now, by subset seed, where it is another."""
    return {
        seed: now[seed].content_sha256
        for seed, rows in before.items()
        if seed in now and now[seed].content_sha256 != rows.content_sha256
    }


def _cells_of_model(stored: SweepPlan, name: str, store: Store) -> int:
    judges = {j.name for j in stored.spec.judges if served_model(stored.spec, j) == name}

    def made_of(cell: CellPlan) -> bool:
        if cell.cell.model.name == name and _has_work(cell, store):
            return True
        mine = (j for j in cell.judgings if j.judge in judges)
        return any(store.stream("judgements", j.stream) is not None for j in mine)

    return _count(stored, made_of)


def _cells_of_variant(stored: SweepPlan, name: str, seeds: Collection[str], store: Store) -> int:
    def made_of(cell: CellPlan) -> bool:
        own = cell.cell.variant.name == name and str(cell.cell.seeds.subset) in seeds
        return own and _has_work(cell, store)

    return _count(stored, made_of)


def _has_work(cell: CellPlan, store: Store) -> bool:
    if cell.cell.training is not None:  # nothing of a cell is made before its training
        return store.training(cell.training_key) is not None
    return any(store.stream("responses", e.stream) is not None for e in cell.evaluations)


def _has_answers(evaluation: str, wordings: set[str], store: Store, cell: CellPlan) -> bool:
    for plan in (e for e in cell.evaluations if e.name == evaluation):
        record = store.stream("responses", plan.stream)
        if record is not None and wordings & set(record.covers):
            return True
    return False


def _has_answered(evaluation: str, task: Mapping[str, Any], store: Store, cell: CellPlan) -> bool:
    return any(
        store.stream("responses", fingerprint(plan.identity | {"inspect": dict(task)})) is not None
        for plan in cell.evaluations
        if plan.name == evaluation and plan.task is not None
    )


def _is_judged(judge: str, evaluations: set[str], store: Store, cell: CellPlan) -> bool:
    return any(
        store.stream("judgements", judging.stream) is not None
        for judging in cell.judgings
        if judging.judge == judge and judging.evaluation in evaluations
    )


def _count(sweep: SweepPlan, which: Callable[[CellPlan], bool]) -> int:
    return sum(which(cell) for cell in sweep.cells)


def _cells(number: int, what: str = "finished work") -> str:
    return f"{number} cells have {what}" if number != 1 else f"1 cell has {what}"


def _list(names: list[str], *, most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _short(revision: str) -> str:
    """A revision, with a long hash cut: a folder's or a hub's."""
    head, mark, digits = revision.rpartition(":" if "sha256:" in revision else "@")
    return f"{head}{mark}{digits[:DIGITS]}" if mark and len(digits) >= 40 else revision
