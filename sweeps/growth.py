"""What a grown or cut spec changes: against the spec that ran, and against what the store holds.

Knows nothing of how the difference is made.
"""

from collections.abc import Iterable, Mapping

from em.record import Record
from sweeps.artefacts import PIECES, StreamKind
from sweeps.few import times
from sweeps.plan import Stage, SweepPlan
from sweeps.ranges import num_held
from sweeps.registry import known_names, registered
from sweeps.settings import EvaluationConfig
from sweeps.spec import SweepSpec
from sweeps.store import Store

Wanted = dict[str, Mapping[str, int]]


class Held(Record):
    """How many pieces of a stage the store holds of those that are wanted, each counted once."""

    stage: Stage
    held: int
    wanted: int

    def __str__(self) -> str:
        return f"{self.stage}: {self.held:,} of {self.wanted:,} {PIECES[self.stage]} are there"


def held(sweep: SweepPlan, store: Store) -> list[Held]:
    """Return what the store holds of each stage; cells that share a piece count it once.

    What a plan of few seeds wants counts for all of them.
    """
    share = times(sweep)
    trainings = {cell.training_key for cell in sweep.cells if cell.cell.training is not None}
    made = sum(store.training(key) is not None for key in trainings)
    asked = _together((e.stream, e.wanted) for cell in sweep.cells for e in cell.evaluations)
    judged = _together((j.stream, j.wanted) for cell in sweep.cells for j in cell.judgings)
    found = [
        Held(stage="train", held=made, wanted=len(trainings)),
        _held("generate", "responses", asked, store),
        _held("judge", "judgements", judged, store),
    ]
    return [one.model_copy(update={"wanted": int(one.wanted * share)}) for one in found]


def _together(parts: Iterable[tuple[str, Mapping[str, int]]]) -> Wanted:
    """Return what is wanted of each stream: two judges of one model, or two evaluations, have one.

    Of a group that both want, the more.
    """
    found: dict[str, dict[str, int]] = {}
    for stream, wanted in parts:
        groups = found.setdefault(stream, {})
        for group, samples in wanted.items():
            groups[group] = max(samples, groups.get(group, 0))
    return dict(found)


def _held(stage: Stage, kind: StreamKind, wanted: Wanted, store: Store) -> Held:
    there = 0
    for stream, samples in wanted.items():
        record = store.stream(kind, stream)
        if record is not None:
            there += sum(num_held(record.covers.get(g, ()), n) for g, n in samples.items())
    return Held(stage=stage, held=there, wanted=sum(sum(s.values()) for s in wanted.values()))


def changes(sweep: SweepPlan, store: Store) -> list[str]:
    """Return what is new in the spec since it last ran, and what it leaves out, as two lines."""
    before, names = registered(sweep, store), known_names(sweep, store)
    if before is None:
        return []
    known = {name: set(ids) for name, ids in names.questions.items()} if names else {}
    new = [*_only_in(sweep.spec, before), *_grown(before, sweep.spec)]
    for name, ids in sweep.resolved.questions.items() if sweep.resolved else ():
        if name in known and (more := set(ids) - known[name]):
            new.append(f"{name}: {len(more)} more question{'s' * (len(more) != 1)}")
    left_out = _only_in(before, sweep.spec)
    said = [f"new since it last ran: {'; '.join(new)}"] if new else []
    if left_out:
        said.append(f"left out, and kept in the store: {'; '.join(left_out)}")
    return said


def _only_in(spec: SweepSpec, other: SweepSpec) -> list[str]:
    """Return what `spec` has by name and `other` has not, kind by kind."""
    found = []
    for kind in ("models", "variants", "evaluations", "judges"):
        known = {item.name for item in getattr(other, kind)}
        found += _listed(kind, [i.name for i in getattr(spec, kind) if i.name not in known])
    found += _listed("seeds", [str(seed) for seed in spec.seeds if seed not in other.seeds])
    return found


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [f"{kind if len(names) > 1 else kind[:-1]} {', '.join(names)}"] if names else []


def _grown(before: SweepSpec, now: SweepSpec) -> list[str]:
    """Return what both have, and has another number of samples or other seed factors."""
    was = {evaluation.name: evaluation for evaluation in before.evaluations}
    said = [
        f"{e.name}: {_samples(e)}, not {_samples(was[e.name])}"
        for e in now.evaluations
        if e.name in was and e.samples != was[e.name].samples
    ]
    known = {judge.name for judge in before.judges}
    for e in (e for e in now.evaluations if e.name in was):
        by = {judge.name for judge in before.judges_of(was[e.name])}
        more = [j.name for j in now.judges_of(e) if j.name in known - by]
        said += [f"{e.name}: also judged by {', '.join(more)}"] if more else []
        said += _at(e, was[e.name])
        if e.tasks != was[e.name].tasks:
            said.append(f"{e.name}: {e.tasks or 'all'} tasks, not {was[e.name].tasks or 'all'}")
    return said + (["other seed factors"] if before.factors != now.factors else [])


def _at(now: EvaluationConfig, before: EvaluationConfig) -> list[str]:
    """Return the fractions of a training after which it is asked now, too."""
    new = [f"{f:g}" for f in now.at or () if f < 1 and f not in (before.at or ())]
    return [f"{now.name}: also asked after {', '.join(new)} of the training"] if new else []


def _samples(evaluation: EvaluationConfig) -> str:
    number = evaluation.samples
    return f"{number} samples" if number is not None else "as many samples as its file says"
