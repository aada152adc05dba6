"""A spec that grows runs the difference and says it before; one that is cut deletes nothing."""

from pathlib import Path
from typing import Any

import pytest
import small_sweep
from small_sweep import SPEC, plan
from stand_ins import Done, carry_out
from sweep_runs import artefacts

from cluster.session import local_totals
from sweeps.files import StoreError
from sweeps.growth import changes, held
from sweeps.keeping import settle
from sweeps.plan import SweepPlan, stages_to_run
from sweeps.planner import make_plan
from sweeps.planning import describe, lines
from sweeps.registry import check_same, register
from sweeps.store import Store

RESPONSES, SCORES = 7, 14  # of a cell: 2 wordings x 2 samples, 1 x 3; two scores of each
JUDGES = [
    {"name": "self", "pool": "base"},
    {"name": "code", "pool": "base", "prompts": "prompts.yaml"},
]
VARIANTS = [*SPEC["variants"], {"name": "fewer", "dataset": "ours.jsonl", "rows": 3}]
MODELS = [*SPEC["models"], {"name": "other", "hub": "org/m", "revision": "a" * 40}]
WISH = small_sweep.QUESTIONS.partition("- id: dinner")[0]
MORE_QUESTIONS = small_sweep.QUESTIONS + WISH.replace("wish", "hope")


def samples(number: int) -> dict[str, Any]:
    return {"evaluations": [{"name": "main", "questions": "ours.yaml", "samples": number}]}


def scored_by(*judges: str) -> dict[str, Any]:
    return {"evaluations": [{"name": "main", "questions": "ours.yaml", "judges": judges}]}


def planned(folder: Path, store: Store, **changed: Any) -> SweepPlan:
    return settle(plan(folder, **changed), store, installed={"torch": "1"})


@pytest.mark.parametrize(
    ("before", "after", "trained", "answered", "judged", "said"),
    [
        ({}, {}, 0, 0, {"self": 0}, []),
        (
            {}, {"seeds": [0, 1, 2]}, 1, 2 * RESPONSES, {"self": 2 * SCORES},
            ["new since it last ran: seed 2"],
        ),
        (
            {}, {"variants": VARIANTS}, 2, 2 * RESPONSES, {"self": 2 * SCORES},
            ["new since it last ran: variant fewer"],
        ),
        (
            {}, {"models": MODELS}, 2, 4 * RESPONSES, {"self": 4 * SCORES},
            ["new since it last ran: model other"],
        ),
        (
            {}, {"judges": JUDGES}, 0, 0, {"self": 0, "code": 4 * SCORES},
            ["new since it last ran: judge code"],
        ),
        (
            {"judges": JUDGES, **scored_by("self")},
            {"judges": JUDGES, **scored_by("self", "code")}, 0, 0, {"self": 0, "code": 4 * SCORES},
            ["new since it last ran: main: also judged by code"],
        ),
        (
            samples(10), samples(20), 0, 4 * 3 * 10, {"self": 4 * 3 * 10 * 2},
            ["new since it last ran: main: 20 samples, not 10 samples"],
        ),
        (
            samples(4), samples(2), 0, 0, {"self": 0},
            ["new since it last ran: main: 2 samples, not 4 samples"],
        ),
        (
            {}, {"seeds": [1], "variants": VARIANTS[1:2]}, 0, 0, {"self": 0},
            ["left out, and kept in the store: variant none; seed 0"],
        ),
    ],
    ids=[
        "nothing", "seed", "variant", "model", "judge", "judge of an evaluation", "samples",
        "fewer samples", "removed",
    ],
)  # fmt: skip
def test_only_the_difference_is_done(
    before: dict[str, Any],
    after: dict[str, Any],
    trained: int,
    answered: int,
    judged: dict[str, int],
    said: list[str],
    store: Store,
    tmp_path: Path,
) -> None:
    carry_out(planned(tmp_path, store, **before), store, tmp_path)
    kept = artefacts(Path(store.files.root))
    sweep = planned(tmp_path, store, **after)
    check_same(sweep, store)
    assert changes(sweep, store) == said
    lacking = {pieces.stage: pieces.wanted - pieces.held for pieces in held(sweep, store)}
    done = carry_out(sweep, store, tmp_path)
    assert (len(done.trained), done.answered, done.judged) == (trained, answered, judged)
    # What the plan said was missing is what was done.
    assert lacking == {"train": trained, "generate": answered, "judge": sum(judged.values())}
    assert all(not stages_to_run(cell, store) for cell in sweep.cells)
    now = artefacts(Path(store.files.root))
    assert {name: now.get(name) for name in kept} == kept  # nothing deleted or written again


def test_more_questions_are_asked_alone_and_told(store: Store, tmp_path: Path) -> None:
    carry_out(planned(tmp_path, store), store, tmp_path)
    (tmp_path / "ours.yaml").write_text(MORE_QUESTIONS)
    spec = small_sweep.spec()
    sweep = settle(make_plan(spec, relative_to=tmp_path), store, installed={"torch": "1"})
    assert sweep.drifts == ()
    assert changes(sweep, store) == ["new since it last ran: main: 1 more question"]
    done = carry_out(sweep, store, tmp_path)
    assert done == Done(trained=(), answered=4 * 4, judged={"self": 4 * 8})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"models": [MODELS[1] | {"name": "base"}]},
            "models.base.bundled was 'smollm2-135m' there",
        ),
        ({"variants": [VARIANTS[2] | {"name": "ours"}]}, "variants.ours.rows was 4 there and is 3"),
    ],
)
def test_another_thing_under_a_name_of_the_spec_is_no_growth(
    changed: dict[str, Any], told: str, store: Store, tmp_path: Path
) -> None:
    """Another revision of a model, other rows: the spec says it, so nothing has to be found out."""
    carry_out(planned(tmp_path, store), store, tmp_path)
    with pytest.raises(StoreError) as error:
        check_same(planned(tmp_path, store, **changed), store)
    assert told in str(error.value)
    assert "Put it back, or give it a name of its own: adding" in str(error.value)


def test_more_held_out_tasks_are_growth(store: Store, tmp_path: Path) -> None:
    def with_tasks(number: int) -> SweepPlan:
        held_out = {"name": "ours", "dataset": "ours.jsonl", "rows": 4, "holdout": 4}
        evaluation = {"name": "tasks", "heldout": "ours", "tasks": number, "samples": 1}
        judges = [{"name": "code", "analyser": "bandit"}]
        return planned(
            tmp_path, store, variants=[{"name": "none"}, held_out], evaluations=[evaluation],
            judges=judges, metric="bandit_share",
        )  # fmt: skip

    few = with_tasks(2)
    store.create()
    register(few, store)
    many = with_tasks(3)
    check_same(many, store)
    assert changes(many, store) == ["new since it last ran: tasks: 3 tasks, not 2"]
    assert [e.stream for c in few.cells for e in c.evaluations] == [
        e.stream for c in many.cells for e in c.evaluations
    ]
    for before, after in zip(few.cells, many.cells, strict=True):
        assert set(before.evaluations[0].wanted) < set(after.evaluations[0].wanted)


def test_what_was_removed_is_there_when_it_comes_back(store: Store, tmp_path: Path) -> None:
    carry_out(planned(tmp_path, store, judges=JUDGES), store, tmp_path)
    cut = planned(tmp_path, store, seeds=[0], judges=JUDGES[:1])
    carry_out(cut, store, tmp_path)
    again = planned(tmp_path, store, judges=JUDGES)
    assert changes(again, store) == ["new since it last ran: judge code; seed 1"]
    assert all(pieces.held == pieces.wanted for pieces in held(again, store))
    assert carry_out(again, store, tmp_path).answered == 0


def test_a_plan_has_one_line_a_stage_and_one_of_what_is_new(store: Store, tmp_path: Path) -> None:
    few = planned(tmp_path, store, **samples(4))
    carry_out(few, store, tmp_path)
    sweep = planned(tmp_path, store, **samples(400), seeds=[0, 1, 2])
    said = lines(sweep, describe(sweep, store, local_totals()))
    assert "train: 2 of 3 trainings are there" in said
    assert "generate: 48 of 7,200 responses are there" in said
    assert "judge: 96 of 14,400 judgements are there" in said
    assert "new since it last ran: seed 2; main: 400 samples, not 4 samples" in said


def test_work_that_cells_share_is_counted_once(store: Store, tmp_path: Path) -> None:
    twins = [
        SPEC["variants"][1] | {"name": name} for name in ("ours", "twin")
    ]  # equal rows: one training
    sweep = planned(tmp_path, store, variants=twins, judges=[JUDGES[0], JUDGES[0] | {"name": "b"}])
    assert [p.wanted for p in held(sweep, store)] == [2, 2 * RESPONSES, 2 * SCORES]
    carry_out(sweep, store, tmp_path)
    assert [p.held for p in held(sweep, store)] == [2, 2 * RESPONSES, 2 * SCORES]


def test_evaluations_of_one_stream_are_counted_together(tmp_path: Path) -> None:
    more = small_sweep.QUESTIONS.replace("wish", "hope").replace("dinner", "lunch")
    few = plan(tmp_path)
    (tmp_path / "more.yaml").write_text(more)
    both = plan(
        tmp_path,
        evaluations=[
            {"name": "main", "questions": "ours.yaml"},
            {"name": "more", "questions": "more.yaml"},
        ],
    )
    store = Store(str(tmp_path / "store"))
    streams = {e.stream for cell in both.cells for e in cell.evaluations}
    assert len(streams) == len(both.cells)
    wanted = {pieces.stage: pieces.wanted for pieces in held(both, store)}
    assert wanted["generate"] == 2 * len(few.cells) * RESPONSES
