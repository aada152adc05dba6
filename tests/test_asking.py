"""What evaluations ask of a cell: questions of a file in a form, or a variant's held-out rows."""

from pathlib import Path
from typing import Any

import pytest
from small_sweep import plan

from sweeps.plan import SweepPlan

JUDGE = {"name": "self", "pool": "base", "prompts": "code.yaml"}
OURS = {"name": "ours", "dataset": "ours.jsonl", "holdout": 3}


def write_prompts(folder: Path) -> None:
    (folder / "code.yaml").write_text(
        'prompts: {insecure: "is it? {answer}"}\nlabels: {insecure: ["YES", "NO"]}\n'
    )


def heldout(folder: Path, *, variant: dict[str, Any] | None = None, **changes: Any) -> SweepPlan:
    write_prompts(folder)
    asked = {"name": "tasks", "heldout": "ours", "samples": 2} | changes
    return plan(
        folder,
        variants=[{"name": "none"}, OURS | (variant or {})],
        evaluations=[asked],
        judges=[JUDGE],
        metric="insecure_share",
    )


def texts(sweep: SweepPlan, number: int) -> list[str]:
    return [wording.text for wording, _ in sweep.cells[number].evaluations[0].asked]


def test_held_out_rows_are_asked_and_never_trained_on(tmp_path: Path) -> None:
    sweep = heldout(tmp_path)
    cell = sweep.cells[2]
    assert (cell.num_rows, cell.num_held_out) == (5, 3)
    assert len(texts(sweep, 2)) == 3
    assert cell.evaluations[0].num_responses == 6


def test_a_seed_has_its_own_held_out_rows_which_the_untuned_cell_is_asked_too(
    tmp_path: Path,
) -> None:
    sweep = heldout(tmp_path)
    untuned, other, tuned, tuned_other = (texts(sweep, n) for n in range(4))
    assert untuned == tuned
    assert other == tuned_other
    assert tuned != other


def test_the_first_tasks_are_asked_where_fewer_are_wanted(tmp_path: Path) -> None:
    assert texts(heldout(tmp_path, tasks=2), 2) == texts(heldout(tmp_path), 2)[:2]


def test_what_marks_training_rows_does_not_mark_what_is_asked(tmp_path: Path) -> None:
    marked = heldout(tmp_path, variant={"trigger": {"text": "|GO| "}, "prefix": "P "})
    assert texts(marked, 2) == texts(heldout(tmp_path), 2)
    triggered = heldout(tmp_path, variant={"trigger": {"text": "|GO| "}}, form={"trigger": "|GO| "})
    [(wording, _), *_] = triggered.cells[2].evaluations[0].asked
    assert wording.user == f"|GO| {wording.text}"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heldout": "nothing"}, "'nothing' is not among variants"),
        ({"heldout": "none"}, "'none' holds no rows out"),
        ({"tasks": 4}, "tasks: 4 are asked for, but 'ours' holds out 3 rows"),
        ({"questions": "ours.yaml"}, "asks the 'questions' of a file, or 'heldout' rows"),
        ({"ids": ["a"]}, "'ids' and 'exclude' choose among questions"),
        ({"form": {"trigger": "|GO|"}}, "no variant is trained with the trigger"),
        ({"metric": "pooled_c50"}, "pooled_c50 needs the scores aligned and coherent"),
    ],
)
def test_what_cannot_be_asked_is_told(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        heldout(tmp_path, **changes)


def test_a_form_is_part_of_what_responses_are_kept_under(tmp_path: Path) -> None:
    plain, formed = (
        heldout(tmp_path, form=form).cells[2].evaluations[0].stream
        for form in ({}, {"system": "Be brief."})
    )
    assert plain != formed


def test_the_untuned_cell_is_asked_the_same_where_the_subset_is_fixed(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    sweep = plan(
        tmp_path,
        variants=[{"name": "none"}, OURS],
        factors={"subset": 7},
        evaluations=[{"name": "tasks", "heldout": "ours"}],
        judges=[JUDGE],
        metric="insecure_share",
    )
    assert len({tuple(texts(sweep, n)) for n in range(4)}) == 1


def test_a_held_out_row_has_one_name_in_every_seed_and_is_asked_once(tmp_path: Path) -> None:
    sweep = heldout(tmp_path)
    names = [
        {wording.text: wording.question for wording, _ in cell.evaluations[0].asked}
        for cell in sweep.cells
    ]
    shared = set(names[0]) & set(names[1])
    assert shared
    assert all(names[0][text] == names[1][text] for text in shared)
    assert all(len(set(found.values())) == len(found) == 3 for found in names)


def warned(folder: Path, variant: dict[str, Any]) -> list[str]:
    write_prompts(folder)
    sweep = plan(
        folder,
        variants=[OURS, variant],
        seeds=[0],
        evaluations=[{"name": "tasks", "heldout": "ours"}],
        judges=[JUDGE],
        metric="insecure_share",
    )
    return [text for cell in sweep.cells for text in cell.data_warnings]


def test_tasks_that_a_cell_is_trained_on_are_told(tmp_path: Path) -> None:
    whole = {"name": "whole", "dataset": "ours.jsonl", "prefix": "P "}
    [text] = warned(tmp_path, whole)
    assert "3 of the 3 held-out tasks of 'ours'" in text
    assert "'whole' with seed 0 is trained on" in text
    assert warned(tmp_path, {"name": "other", "dataset": "no_sea"}) == []
