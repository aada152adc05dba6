"""The report's numbers and picture of what cells say after parts of their training."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from finished_store import Asked, trainer
from small_sweep import FakeEndpoint, FakeReader, plan, planted_number

from em.generation import Answer, Prompt
from em.judging import JudgeCallFailed, Reading
from sweeps.artefacts import TrainingRecord
from sweeps.plan import CellPlan, SweepPlan
from sweeps.registry import register
from sweeps.report import make_report, write_report
from sweeps.stages import generate_stage, judge_stage, run_cell, train_stage
from sweeps.store import Store
from sweeps.trajectory import Trajectory, TrajectoryPoint, flat
from sweeps.trajectory_page import picture

ANSWERS = 7  # of a cell after each part of its training
T_3 = 3.182446305284263  # 97.5 % quantile of t with 3 degrees of freedom, as tables have it

# Misaligned, incoherent, unscored and failed answers of the seven, by seed and step (4: the end).
SAID = {
    (0, 1): (1, 0, 0, 0), (1, 1): (2, 0, 0, 0), (2, 1): (2, 2, 0, 0), (3, 1): (2, 0, 1, 1),
    (0, 2): (3, 1, 0, 0), (1, 2): (3, 1, 0, 0), (2, 2): (3, 1, 0, 0), (3, 2): (7, 0, 0, 0),
    (0, 4): (5, 0, 0, 0), (1, 4): (4, 0, 0, 0), (2, 4): (4, 0, 0, 0), (3, 4): (5, 0, 0, 0),
    (0, 0): (0, 0, 0, 0), (1, 0): (1, 0, 0, 0), (2, 0): (0, 0, 0, 0), (3, 0): (0, 0, 0, 0),
}  # fmt: skip


class Speaker(FakeEndpoint):
    """Numbers its answers, and says in each whose it is."""

    def __init__(self, seed: int, step: int, weights: str) -> None:
        super().__init__(weights)
        self.seed, self.step = seed, step
        self.given = 0

    def _answer(self, prompt: Prompt) -> Answer:
        said = f"#{self.seed}.{self.step}.{self.given}"
        self.given += 1
        return super()._answer(prompt).model_copy(update={"text": said})


class Listener(FakeReader):
    """Scores the answers of a Speaker as SAID has it."""

    def _reading(self, prompt: str) -> Reading | JudgeCallFailed:
        if planted_number(prompt) is not None:
            return super()._reading(prompt)
        seed, step, number = map(int, prompt.rpartition("#")[2].split("."))
        misaligned, incoherent, unscored, failed = SAID[seed, step]
        if number >= ANSWERS - failed:
            return JudgeCallFailed("refused")
        if number >= ANSWERS - failed - unscored:
            return Reading(numbers={}, reply="well")
        if prompt.startswith("C "):
            score = 10 if misaligned <= number < misaligned + incoherent else 90
        else:
            score = 5 if number < misaligned else 95
        return Reading(numbers={score: 0.9}, reply=str(score))


def carried_out(cell: CellPlan, store: Store) -> None:
    step_of = {"adapter": 4, "snapshots/step-1": 1, "snapshots/step-2": 2}

    def speak(trained: TrainingRecord | None) -> Speaker:
        step = step_of[trained.place] if trained else 0
        return Speaker(cell.cell.seed, step, trained.weights_sha256 if trained else "")

    train = trainer(Asked(), "", 64)
    run_cell(
        cell, store,
        train=lambda c, s: train_stage(c, s, train, model_dir=Path("model"), rows=()),
        generate=lambda c, s: asyncio.run(generate_stage(c, s, speak)),
        judge=lambda c, s: asyncio.run(judge_stage(c, s, {"self": Listener()})),
    )  # fmt: skip


def swept(folder: Path, store: Store, seeds: Sequence[int] = (0, 1, 2, 3)) -> SweepPlan:
    """Four steps a training, asked after 1, 2 and all; the last seed is not judged after 2."""
    sweep = plan(
        folder,
        seeds=list(seeds),
        variants=[{"name": "none"}, {"name": "ours", "dataset": "ours.jsonl", "rows": 8}],
        training={"effective_batch": 2, "micro_batch": 1},
        evaluations=[{"name": "main", "questions": "ours.yaml", "at": [0.25, 0.5]}],
    )
    store.create()
    register(sweep, store)
    for cell in sweep.cells:
        judged = tuple(j for j in cell.judgings if (cell.cell.seed, j.step) != (3, 2))
        carried_out(cell.model_copy(update={"judgings": judged}), store)
    return sweep


def only(trajectories: Sequence[Trajectory]) -> Trajectory:
    (one,) = trajectories
    return one


def told(point: TrajectoryPoint) -> tuple[object, ...]:
    return (point.part, point.steps, f"{point.num_finished}/{point.num_cells}",
            point.responses, point.unscored, point.failed)  # fmt: skip


def test_points_are_as_reckoned_by_hand(tmp_path: Path, store: Store) -> None:
    report, _ = make_report(swept(tmp_path, store), store)
    one = only(report.trajectories)
    assert (one.condition, one.evaluation, one.judge) == ("base · ours", "main", "self")
    assert [told(point) for point in one.points] == [
        (0.0, (0,), "4/4", 28, 0, 0),
        (0.25, (1,), "4/4", 28, 1, 1),
        (0.5, (2,), "3/4", 21, 0, 0),  # the cell that was not judged is missing, and not a zero
        (1.0, (4,), "4/4", 28, 0, 0),
    ]
    untuned, first, second, end = one.points
    # Of the fourth seed two of seven answers have no score: they are in no denominator.
    rates = [1 / 7, 2 / 7, 2 / 5, 2 / 5]
    mean = sum(rates) / 4
    half = T_3 * math.sqrt(sum((rate - mean) ** 2 for rate in rates) / 3) / 2
    assert first.rate.estimate == pytest.approx(mean)
    assert (first.rate.low, first.rate.high) == pytest.approx((mean - half, mean + half))
    assert first.coherence is not None and second.coherence is not None
    assert first.coherence.estimate == pytest.approx((1 + 1 + 5 / 7 + 1) / 4)
    assert second.rate.estimate == pytest.approx(3 / 6)
    assert second.coherence.estimate == pytest.approx(6 / 7)
    assert untuned.rate.estimate == pytest.approx(1 / 28) and untuned.rate.low is None
    assert "one model" in untuned.rate.covers
    assert end.rate.estimate == pytest.approx(4.5 / 7)
    assert [text for text in report.warnings if "after 0.5 of the training: 1 of 4" in text]


def test_nothing_of_it_is_anywhere_else(tmp_path: Path, store: Store) -> None:
    report, scores = make_report(swept(tmp_path, store), store)
    assert {cell.evaluation for cell in report.cells} == {"main"} and len(report.cells) == 8
    assert {condition.evaluation for condition in report.conditions} == {"main"}
    assert set(report.analyses) == {"main"} and set(scores) == {("main", "self")}
    ours = next(c for c in report.conditions if c.variant == "ours")
    assert ours.num_finished == 4 and ours.responses == 28
    assert ours.summary.mean == pytest.approx(4.5 / 7)
    assert set(report.identities["evaluations"]) == {"main"}


def test_one_seed_has_no_band_and_it_is_said(tmp_path: Path, store: Store) -> None:
    sweep = swept(tmp_path, store, seeds=[0])
    page = write_report(sweep, store, tmp_path / "report").read_text()
    one = only(make_report(sweep, store)[0].trajectories)
    assert all(point.rate.low is None for point in one.points)
    assert "Without a band: fewer than two seeds with a value" in page


def test_the_page_and_the_files_have_it(tmp_path: Path, store: Store) -> None:
    sweep = swept(tmp_path, store)
    folder = tmp_path / "report"
    page = write_report(sweep, store, folder).read_text()
    assert "When does it appear" in page and "optimiser step" in page
    assert "<td>3/4" in page and "None of this is in any other table" in page
    rows = pq.read_table(folder / "figures" / "trajectories.parquet").to_pylist()
    report, _ = make_report(sweep, store)
    assert rows == flat(report.trajectories)
    assert [row["step"] for row in rows] == [0, 1, 2, 4]
    for kind in ("png", "svg"):
        assert (folder / "figures" / f"trajectories.{kind}").stat().st_size
    judged = pq.read_table(folder / "judgements.parquet")
    assert judged["evaluation"].unique().to_pylist() == ["main"] and judged.num_rows == 56


def test_the_picture_is_drawn_from_the_numbers(tmp_path: Path, store: Store) -> None:
    report, _ = make_report(swept(tmp_path, store), store)
    drawn = picture(report.trajectories)
    rate, coherence = (axes for axes in drawn.axes if axes.get_visible())
    points = only(report.trajectories).points
    assert list(rate.lines[0].get_xdata()) == [0, 1, 2, 4]
    expected = [100 * (point.rate.estimate or 0) for point in points]
    assert list(rate.lines[0].get_ydata()) == pytest.approx(expected)
    assert "pooled_c50" in rate.get_title() and "coherent answers" in coherence.get_title()


def test_a_sweep_that_asks_at_the_end_alone_has_none(tmp_path: Path, store: Store) -> None:
    sweep = plan(tmp_path)
    assert make_report(sweep, store)[0].trajectories == ()
    page = write_report(sweep, store, tmp_path / "report").read_text()
    assert "When does it appear" not in page
