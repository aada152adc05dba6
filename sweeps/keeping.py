"""What the user answers where finished work drifted: keep what is stored, or what is there now.

An answer is recorded with the sweep and holds until something else drifts. Knows nothing of how
drift is found (see sweeps.drift), or of how work is done.
"""

from collections.abc import Iterable, Mapping, Sequence

from sweeps.drift import (
    drifted_names,
    drifted_prompts,
    drifted_questions,
    drifted_tasks,
    drifted_versions,
    moved,
)
from sweeps.keep import Keep
from sweeps.made_with import made_with, numeric
from sweeps.plan import CellPlan, Stage, SweepPlan, stages_to_run
from sweeps.registry import known_names
from sweeps.rekeyed import Pins, rekeyed, served_model
from sweeps.resolved import Drift, Resolved, Versions
from sweeps.resolving import merged, resolve
from sweeps.store import Store


def settle(
    sweep: SweepPlan,
    store: Store,
    *,
    installed: Mapping[str, str] | None,
    keep: Keep | None = None,
) -> SweepPlan:
    """Return the sweep with what drifted, and under the keys of the answer that holds.

    The answer is `keep`, else the one that was recorded; where there is none, keys are those of
    what is stored, so that a report stays what it was. `keep` answers what is open; where nothing
    is, it replaces earlier answers. `installed` are the versions of packages here; None where
    nothing will be made. Writes nothing: the sweep's `resolved` is what registering it records.

    Raises ValueError where `keep` is STORED and what is stored can be counted only with the file
    that it was made with.
    """
    known = _without_unused(sweep, known_names(sweep, store) or Resolved(), installed, store)
    now = resolve(sweep)
    pins = moved(sweep, now, known, store)
    stored = rekeyed(sweep, pins)
    found = [
        *drifted_names(stored, now, pins, store),
        *drifted_questions(stored, now, known, store),
        *drifted_tasks(stored, now, known, store),
        *drifted_prompts(stored, now, known, store),
    ]
    versions = known.versions
    if installed is not None:
        of_packages, versions = drifted_versions(
            stored, known, installed, store, again=keep is not None
        )
        found += of_packages
    drifts = [d.model_copy(update={"answered": _is_answered(d, known)}) for d in found]
    accepted = known.accepted
    if keep is not None:
        answered = [d for d in drifts if not d.answered] or drifts
        accepted = {k: now for k, now in accepted.items() if k not in {d.key for d in answered}}
        if keep is Keep.STORED:
            _check_can_keep(answered)
            accepted |= {drift.key: drift.now for drift in answered}
            drifts = [d.model_copy(update={"answered": True}) for d in drifts]
        else:
            drifts = [d for d in drifts if d not in answered]
            pins = _without(pins, answered, installed or {})
            versions = _only_installed(versions, answered, installed or {})
    settled = rekeyed(sweep, pins)
    counted = now if settled is sweep else resolve(settled)
    record = merged(known, counted).model_copy(
        update={"versions": versions, "in_keys": pins.versions, "accepted": accepted}
    )
    return settled.model_copy(update={"drifts": tuple(drifts), "resolved": record})


def check_answered(sweep: SweepPlan, *, command: str) -> None:
    """Raise ValueError where something drifted and the user has not said which to keep."""
    asked = [drift for drift in sweep.drifts if not drift.answered]
    if not asked:
        return
    stored = (
        "--keep stored counts what is finished as it is"
        if all(drift.can_keep_stored for drift in asked)
        else "--keep stored is not possible here, as what is finished counts only with its file"
    )
    raise ValueError(
        f"the sweep {sweep.spec.name!r} has finished work that was made from other things than "
        f"are here now:\n{_told(asked)}\nsay with '{command} --keep …' which to keep: {stored}; "
        "--keep current makes again from what is here now, and leaves what is stored where it is, "
        "uncounted. Or put back what was there"
    )


def check_possible(sweep: SweepPlan, todo: Iterable[CellPlan], store: Store) -> None:
    """Raise ValueError, with their names, for cells whose work needs data or a model that is gone.

    That is where what is stored was kept, and a name stands for another thing now.
    """
    kept = {drift.key for drift in sweep.drifts if drift.key.startswith(("variant.", "model."))}
    judges = {judge.name: served_model(sweep.spec, judge) for judge in sweep.spec.judges}
    lacking = {
        cell.cell_id: gone for cell in todo if kept and (gone := kept & _needs(cell, judges, store))
    }
    if lacking:
        names = sorted({key.replace(".", " ", 1) for gone in lacking.values() for key in gone})
        raise ValueError(
            f"{_cells(len(lacking))} work left that needs {', '.join(names)} as it was when the "
            f"sweep ran, which was kept and is not here: {', '.join(lacking)}. Put it back, take "
            "these cells out of the spec (nothing stored is deleted), or use --keep current, which "
            "makes again what was made from it"
        )


def told(sweep: SweepPlan) -> list[str]:
    """Return a line for each thing that drifted, with the answer where there is one."""
    return [
        f"drift: {drift.text}" + ("; what is stored is kept" if drift.answered else "")
        for drift in sweep.drifts
    ]


def _cells(number: int) -> str:
    return f"{number} cells have" if number != 1 else "1 cell has"


def _without_unused(
    sweep: SweepPlan, known: Resolved, installed: Mapping[str, str] | None, store: Store
) -> Resolved:
    """Return `known` without versions in keys that nothing was made with, and that are not here.

    They were answered, and other ones were installed before anything was made.
    """
    gone: list[Stage] = [
        stage
        for stage, versions in known.in_keys.items()
        if installed is not None and (versions | numeric(installed, stage)) != versions
    ]
    if not gone:
        return known
    now = resolve(sweep)
    made = made_with(rekeyed(sweep, moved(sweep, now, known, store)), store)
    unused = [stage for stage in gone if not made[stage]]
    return known.model_copy(
        update={
            "in_keys": {s: v for s, v in known.in_keys.items() if s not in unused},
            "versions": {s: v for s, v in known.versions.items() if s not in unused},
        }
    )


def _is_answered(drift: Drift, known: Resolved) -> bool:
    return set(drift.now) <= set(known.accepted.get(drift.key, ()))


def _check_can_keep(drifts: Sequence[Drift]) -> None:
    gone = [drift for drift in drifts if not drift.can_keep_stored]
    if gone:
        raise ValueError(
            f"what is stored cannot be kept without the file that it was made with:\n"
            f"{_told(gone)}\nput the file back as it was, or use --keep current, which leaves what "
            "is stored where it is, uncounted"
        )


def _told(drifts: Iterable[Drift]) -> str:
    return "\n".join(drift.text for drift in drifts)


def _without(pins: Pins, answered: Iterable[Drift], installed: Mapping[str, str]) -> Pins:
    """Return `pins` for what is current: names as they are, and the versions that are here."""
    keys = {drift.key for drift in answered}
    stages: list[Stage] = [stage for drift in answered for stage in drift.stages]
    return Pins(
        models={name: r for name, r in pins.models.items() if f"model.{name}" not in keys},
        variants={name: s for name, s in pins.variants.items() if f"variant.{name}" not in keys},
        versions=pins.versions | {stage: numeric(installed, stage) for stage in stages},
    )


def _only_installed(
    versions: Versions, answered: Iterable[Drift], installed: Mapping[str, str]
) -> Versions:
    again = {stage for drift in answered for stage in drift.stages}
    return {
        stage: {name: (version,) for name, version in numeric(installed, stage).items()}
        if stage in again
        else known
        for stage, known in versions.items()
    }


def _needs(cell: CellPlan, judges: Mapping[str, str | None], store: Store) -> set[str]:
    """Return the data and models that the work left of a cell uses, as drift's keys name them."""
    stages = stages_to_run(cell, store)
    needed: set[str] = set()
    if "train" in stages:
        needed.add(f"variant.{cell.cell.variant.name}")
    if "train" in stages or "generate" in stages:
        needed.add(f"model.{cell.cell.model.name}")
    for judging in cell.judgings:
        model = judges[judging.judge]
        if model and store.lacks("judgements", judging.stream, judging.wanted):
            needed.add(f"model.{model}")
    return needed
