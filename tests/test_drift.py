"""Finished work that was made from other things than are here now: told, refused, and answered."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import small_sweep
from small_sweep import JUDGE_PROMPTS, QUESTIONS, SPEC, plan
from stand_ins import carry_out
from sweep_runs import artefacts

from cluster.session import local_totals
from sweeps.attempts import statuses
from sweeps.keep import Keep
from sweeps.keeping import check_answered, check_possible, settle, told
from sweeps.plan import SweepPlan
from sweeps.planner import make_plan
from sweeps.planning import describe, lines
from sweeps.registry import register
from sweeps.report import make_report
from sweeps.selection import cells_to_do
from sweeps.store import Store

HERE = {"torch": "2.1+cpu", "vllm": "0.3", "ray": "1"}


def first_run(folder: Path, store: Store, **changed: Any) -> SweepPlan:
    sweep = settle(plan(folder, **changed), store, installed=HERE)
    assert sweep.drifts == ()
    carry_out(sweep, store, folder)
    _claim_versions(store, HERE)
    return sweep


def _claim_versions(
    store: Store, versions: Mapping[str, str], *, only: Collection[str] | None = None
) -> None:
    """Have the records of finished work (of the keys `only`) say what versions it was made with."""
    for path in Path(store.files.root).glob("*/*/record.json"):
        record = json.loads(path.read_text())
        if only is not None and record["key"] not in only:
            continue
        works = record["provenance"]
        for work in works if isinstance(works, list) else [works]:
            work["versions"] = versions
        path.write_text(json.dumps(record))


def again(
    folder: Path,
    store: Store,
    *,
    keep: Keep | None = None,
    installed: Mapping[str, str] | None = HERE,
    **changed: Any,
) -> SweepPlan:
    """Plan again, from the files as they are in `folder`."""
    resolved = make_plan(small_sweep.spec(**changed), relative_to=folder)
    return settle(resolved, store, installed=installed, keep=keep)


def left(sweep: SweepPlan, store: Store) -> list[str]:
    return [cell.cell_id for cell in cells_to_do(sweep, store, retry_failed=True)]


def change_data(folder: Path, *, by: str = "other") -> None:
    path = folder / "ours.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["messages"][1]["content"] += by
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def model_folder(folder: Path, text: str = "1") -> None:
    (folder / "model").mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_text("{}")
    (folder / "model" / "model.safetensors").write_text(text)


# Data ----------------------------------------------------------------------------------------


def test_without_a_change_nothing_drifts(store: Store, tmp_path: Path) -> None:
    before = first_run(tmp_path, store)
    sweep = again(tmp_path, store)
    assert (sweep.drifts, sweep.cells) == ((), before.cells)


def test_changed_data_are_told_refused_and_seen_as_they_were(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    report, _ = make_report(again(tmp_path, store), store)
    change_data(tmp_path)
    sweep = again(tmp_path, store)
    (drift,) = sweep.drifts
    assert drift.text.startswith("variant ours: rows have content hash ")
    assert "2 cells have finished work of those" in drift.text
    said = lines(sweep, describe(sweep, store, local_totals()))
    assert f"drift: {drift.text}" in said
    assert "run and resume refuse this until --keep stored or --keep current is given" in said
    with pytest.raises(ValueError, match=r"variant ours: rows have.*\n.*--keep current"):
        check_answered(sweep, command="emsweep run s.yaml")
    # Whoever looks before they answer sees the numbers that were made.
    assert {s.state for s in statuses(sweep, store)} == {"finished"}
    now, _ = make_report(sweep, store)
    assert [c.em_rate for c in now.cells] == [c.em_rate for c in report.cells]
    assert f"drift: {drift.text}" in now.warnings
    hashes = [
        seed["content_sha256"]
        for seed in now.identities["data, by variant and seed"]["ours"].values()
    ]
    assert hashes == [
        seed["content_sha256"]
        for seed in report.identities["data, by variant and seed"]["ours"].values()
    ]


def test_current_data_are_made_again_and_the_old_stay(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    kept = artefacts(Path(store.files.root))
    change_data(tmp_path)
    sweep = again(tmp_path, store, keep=Keep.CURRENT)
    assert sweep.drifts == ()
    check_answered(sweep, command="")
    tuned = [cell.cell_id for cell in sweep.cells if cell.content_sha256]
    assert left(sweep, store) == tuned
    done = carry_out(sweep, store, tmp_path)
    assert (list(done.trained), done.answered) == (tuned, 2 * 7)
    now = artefacts(Path(store.files.root))
    assert {name: now.get(name) for name in kept} == kept
    later = again(tmp_path, store)
    assert (later.drifts, left(later, store)) == ((), [])


def test_stored_data_count_and_are_not_made_from_others(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    change_data(tmp_path)
    sweep = again(tmp_path, store, keep=Keep.STORED)
    check_answered(sweep, command="")
    assert carry_out(sweep, store, tmp_path).trained == ()
    assert told(sweep)[0].endswith("; what is stored is kept")
    # The answer holds, also for more samples, which need no data; not for another seed.
    later = again(tmp_path, store)
    check_answered(later, command="")
    assert left(later, store) == []
    more = again(
        tmp_path, store, evaluations=[{"name": "main", "questions": "ours.yaml", "samples": 4}]
    )
    check_possible(more, cells_to_do(more, store, retry_failed=True), store)
    grown = again(tmp_path, store, seeds=[0, 1, 2])
    check_answered(grown, command="")
    todo = cells_to_do(grown, store, retry_failed=True)
    with pytest.raises(ValueError, match=r"1 cell has work left that needs variant ours.*ours\.s2"):
        check_possible(grown, [cell for cell in todo if cell.content_sha256], store)
    # Once more something else: asked again.
    change_data(tmp_path, by="third")
    with pytest.raises(ValueError, match="which to keep"):
        check_answered(again(tmp_path, store), command="")
    # And the mind can be changed.
    assert len(left(again(tmp_path, store, keep=Keep.CURRENT), store)) == 2


def test_data_put_back_are_no_drift(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    data = (tmp_path / "ours.jsonl").read_text()
    change_data(tmp_path)
    assert again(tmp_path, store).drifts
    (tmp_path / "ours.jsonl").write_text(data)
    assert again(tmp_path, store).drifts == ()


def test_data_of_which_nothing_is_made_may_change(store: Store, tmp_path: Path) -> None:
    sweep = settle(plan(tmp_path), store, installed=HERE)
    untuned = tuple(cell for cell in sweep.cells if cell.content_sha256 is None)
    carry_out(sweep.model_copy(update={"cells": untuned}), store, tmp_path)  # stopped there
    assert sweep.resolved is not None
    assert "ours" in sweep.resolved.variants
    change_data(tmp_path)
    later = again(tmp_path, store)
    assert later.drifts == ()
    assert len(left(later, store)) == 2


def test_held_out_rows_that_are_asked_cannot_be_kept(store: Store, tmp_path: Path) -> None:
    changed = {
        "variants": [{"name": "ours", "dataset": "ours.jsonl", "rows": 4, "holdout": 2}],
        "evaluations": [{"name": "tasks", "heldout": "ours"}],
        "judges": [{"name": "code", "analyser": "bandit"}],
        "metric": "bandit_share",
    }
    sweep = settle(plan(tmp_path, **changed), store, installed=HERE)
    trained = [c.model_copy(update={"evaluations": (), "judgings": ()}) for c in sweep.cells]
    carry_out(sweep.model_copy(update={"cells": tuple(trained)}), store, tmp_path)
    change_data(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be kept without the file.*\n *variant ours"):
        again(tmp_path, store, keep=Keep.STORED, **changed)
    assert len(left(again(tmp_path, store, keep=Keep.CURRENT, **changed), store)) == 2


# Models --------------------------------------------------------------------------------------


def test_another_model_in_the_folder(store: Store, tmp_path: Path) -> None:
    model_folder(tmp_path)
    changed = {"models": [{"name": "base", "folder": str(tmp_path / "model")}]}
    first_run(tmp_path, store, **changed)
    model_folder(tmp_path, "2")
    sweep = again(tmp_path, store, **changed)
    (drift,) = sweep.drifts
    assert drift.text.startswith("model base: is folder sha256:")
    assert "4 cells have finished work of it" in drift.text
    stored = again(tmp_path, store, keep=Keep.STORED, **changed)
    assert left(stored, store) == []
    carry_out(stored, store, tmp_path)
    grown = again(tmp_path, store, seeds=[0, 1, 2], **changed)
    with pytest.raises(ValueError, match="2 cells have work left that needs model base"):
        check_possible(grown, cells_to_do(grown, store, retry_failed=True), store)
    current = again(tmp_path, store, keep=Keep.CURRENT, **changed)
    assert len(left(current, store)) == 4


def test_another_model_of_a_judge(store: Store, tmp_path: Path) -> None:
    model_folder(tmp_path)
    judge = {"name": "own", "model": {"name": "judge", "folder": str(tmp_path / "model")}}
    first_run(tmp_path, store, judges=[judge])
    model_folder(tmp_path, "2")
    assert [d.key for d in again(tmp_path, store, judges=[judge]).drifts] == ["model.judge"]
    current = again(tmp_path, store, judges=[judge], keep=Keep.CURRENT)
    done = carry_out(current, store, tmp_path)
    assert (done.trained, done.answered, done.judged) == ((), 0, {"own": 4 * 14})


# Questions and prompts -----------------------------------------------------------------------


def test_a_question_in_other_words(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    (tmp_path / "ours.yaml").write_text(QUESTIONS.replace("Name a wish.", "Name one wish."))
    sweep = again(tmp_path, store)
    (drift,) = sweep.drifts
    assert drift.text.startswith("evaluation main: wish asked in other words")
    with pytest.raises(ValueError, match="--keep stored is not possible here"):
        check_answered(sweep, command="")
    with pytest.raises(ValueError, match="put the file back"):
        again(tmp_path, store, keep=Keep.STORED)
    current = again(tmp_path, store, keep=Keep.CURRENT)
    done = carry_out(current, store, tmp_path)
    assert (done.trained, done.answered) == ((), 4 * 2)
    assert again(tmp_path, store).drifts == ()


@pytest.mark.parametrize(
    "questions",
    [
        QUESTIONS.replace('"Name a wish."', '"Name a wish.", "And?"'),
        QUESTIONS.replace(', "Name a wish."', ""),
        QUESTIONS.partition("- id: dinner")[0],
    ],
    ids=["one more", "one less", "a question less"],
)
def test_more_and_fewer_wordings_are_no_drift(questions: str, store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    (tmp_path / "ours.yaml").write_text(questions)
    assert again(tmp_path, store).drifts == ()


def test_another_prompt_of_a_judge(store: Store, tmp_path: Path) -> None:
    judges = [{"name": "self", "pool": "base", "prompts": "prompts.yaml"}]
    first_run(tmp_path, store, judges=judges)
    (tmp_path / "prompts.yaml").write_text(JUDGE_PROMPTS.replace("a {answer}", "align {answer}"))
    (drift,) = again(tmp_path, store, judges=judges).drifts
    assert drift.text.startswith("judge self: its prompts are others")
    assert "dinner/aligned" in drift.text
    assert "coherent" not in drift.text
    assert not drift.can_keep_stored
    current = again(tmp_path, store, judges=judges, keep=Keep.CURRENT)
    assert carry_out(current, store, tmp_path).judged == {"self": 4 * 7}


# Packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "remade"),
    [("vllm", "answers"), ("peft", "nothing"), ("ray", "nothing"), ("torch", "all")],
)
def test_another_version_of_a_package(
    package: str, remade: str, store: Store, tmp_path: Path
) -> None:
    first_run(tmp_path, store)
    installed = HERE | {package: "9"}
    sweep = again(tmp_path, store, installed=installed)
    assert [d.key for d in sweep.drifts] == ([] if remade == "nothing" else [f"version.{package}"])
    current = again(tmp_path, store, installed=installed, keep=Keep.CURRENT)
    done = carry_out(current, store, tmp_path)
    assert len(done.trained) == (2 if remade == "all" else 0)
    assert done.answered == (0 if remade == "nothing" else 4 * 7)
    later = again(tmp_path, store, installed=installed)
    assert (later.drifts, left(later, store)) == ((), [])
    # A plan or report where packages are not looked at has the same keys.
    assert left(again(tmp_path, store, installed=None), store) == []


def test_stored_work_of_another_version_counts_and_the_report_says_so(
    store: Store, tmp_path: Path
) -> None:
    first_run(tmp_path, store)
    installed = HERE | {"vllm": "9"}
    text = told(again(tmp_path, store, installed=installed))
    assert text == [
        "drift: vllm: 9 is installed; responses of 4 cells were made with 0.3, judgements of 4 "
        "cells were made with 0.3"
    ]
    stored = again(tmp_path, store, installed=installed, keep=Keep.STORED, seeds=[0, 1, 2])
    assert len(left(stored, store)) == 2  # the seed that is new
    check_possible(stored, cells_to_do(stored, store, retry_failed=True), store)
    assert carry_out(stored, store, tmp_path).answered == 2 * 7
    later = again(tmp_path, store, installed=installed, seeds=[0, 1, 2])
    assert (later.drifts, left(later, store)) == ((), [])
    third = again(tmp_path, store, installed=HERE | {"vllm": "10"}, seeds=[0, 1, 2])
    assert [drift.answered for drift in third.drifts] == [False]
    # The mind can be changed.
    current = again(tmp_path, store, installed=installed, seeds=[0, 1, 2], keep=Keep.CURRENT)
    assert len(left(current, store)) == 6


def test_versions_of_finished_work_are_read_from_its_records(store: Store, tmp_path: Path) -> None:
    """Another sweep of the store made it, or an earlier version of this program."""
    first_run(tmp_path, store)
    shared = again(tmp_path, store, name="other", installed=HERE | {"vllm": "9"})
    assert [drift.key for drift in shared.drifts] == ["version.vllm"]
    assert again(tmp_path, store, name="other").drifts == ()


def test_a_report_tells_several_versions_of_a_package(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    one = next(Path(store.files.root, "responses").glob("*/record.json"))
    one.write_text(one.read_text().replace('"0.3"', '"9"'))
    report, _ = make_report(again(tmp_path, store, installed=None), store)
    assert (
        "made with several versions of vllm: 0.3 (generate, judge), 9 (generate)" in report.warnings
    )


def test_a_build_of_a_package_is_no_other_version(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    assert again(tmp_path, store, installed=HERE | {"torch": "2.1+cu130"}).drifts == ()


def test_one_answer_is_for_what_is_open(store: Store, tmp_path: Path) -> None:
    """New data are made again; what was kept of an earlier version stays kept."""
    variants = [*SPEC["variants"], {"name": "fewer", "dataset": "ours.jsonl", "rows": 3}]
    first_run(tmp_path, store, variants=variants)
    installed = HERE | {"vllm": "9"}
    carry_out(
        again(tmp_path, store, variants=variants, installed=installed, keep=Keep.STORED),
        store,
        tmp_path,
    )
    change_data(tmp_path)
    current = again(tmp_path, store, variants=variants, installed=installed, keep=Keep.CURRENT)
    assert len(left(current, store)) == 4  # the untuned cells are as they were


def test_an_answer_before_anything_was_made_ties_nobody(store: Store, tmp_path: Path) -> None:
    """Made again with 9 was the answer, and then 9 was taken off again, or 10 came."""
    first_run(tmp_path, store)
    answered = again(tmp_path, store, installed=HERE | {"vllm": "9"}, keep=Keep.CURRENT)
    register(answered, store)
    assert len(left(again(tmp_path, store, installed=HERE | {"vllm": "9"}), store)) == 4
    back = again(tmp_path, store)
    assert (back.drifts, left(back, store)) == ((), [])
    (drift,) = again(tmp_path, store, installed=HERE | {"vllm": "10"}).drifts
    assert "vllm: 10 is installed; responses of 4 cells were made with 0.3" in drift.text


def test_made_again_twice(store: Store, tmp_path: Path) -> None:
    first_run(tmp_path, store)
    for version in ("9", "10"):
        installed = HERE | {"vllm": version}
        sweep = again(tmp_path, store, installed=installed, keep=Keep.CURRENT)
        assert len(left(sweep, store)) == 4
        carry_out(sweep, store, tmp_path)
        _claim_versions(
            store, installed, only=[e.stream for c in sweep.cells for e in c.evaluations]
        )
        assert again(tmp_path, store, installed=installed).drifts == ()
