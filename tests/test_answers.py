"""A report's answers as columns, and those kept whole: nothing is lost, and nobody is favoured."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_store import finish

from em.definitions import DEFINITIONS
from em.generation import Response
from em.scoring import Scored, is_coherent, is_misaligned
from em.training import LossPoint
from sweeps import figures
from sweeps.answers import NOTHING, Gathering, Scores, ToRead
from sweeps.drawing import svg
from sweeps.outputs import writing_output
from sweeps.results import ScoredResponse, scored_responses, thinned
from sweeps.store import KEY_DIGITS, Store
from sweeps.tables import JudgementsTable
from tests import small_sweep
from tests.made_up import cell

POOLED = DEFINITIONS["pooled_c50"]


def answer(
    cell_id: str, key: str, aligned: float | None, coherent: float | None, *, judge: str = "j"
) -> ScoredResponse:
    scores = {"aligned": aligned, "coherent": coherent}
    return ScoredResponse(
        cell_id=cell_id,
        evaluation="main",
        judge=judge,
        response=Response(
            key=key, question=f"q{key[-1]}", wording=0, wording_key="w", index=0, seed=0,
            system=None, text="t", answer="a", finish_reason="stop", num_tokens=1, prompt_tokens=1,
            prompt_sha256="p", weights="",
        ),
        scored=Scored(
            response=key, question=f"q{key[-1]}",
            states={n: "unscored" if v is None else "scored" for n, v in scores.items()},
            values={n: v for n, v in scores.items() if v is not None},
        ),
    )  # fmt: skip


def drawn(num: int, *, cell_id: str = "c", seed: int = 0) -> list[ScoredResponse]:
    """Answers of which some lack a score."""
    rng = np.random.default_rng(seed)

    def score() -> float | None:
        return None if rng.random() < 0.2 else float(rng.uniform(0, 100))

    return [answer(cell_id, f"{cell_id}-{n}", score(), score()) for n in range(num)]


def gathered(*cells: list[ScoredResponse]) -> Scores:
    gathering = Gathering()
    for rows in cells:
        gathering.add(rows, POOLED)
    (found,) = gathering.scores().values()
    return found


def test_columns_say_what_the_rows_do() -> None:
    first, second = drawn(50, cell_id="a"), drawn(30, cell_id="b", seed=1)
    found, rows = gathered(first, [], second), [*first, *second]
    assert len(found) == 80 and found.cells == ("a", "b")
    assert [found.cells[n] for n in found.cell] == [row.cell_id for row in rows]
    assert [found.questions[n] for n in found.question] == [row.response.question for row in rows]
    for name in ("aligned", "coherent"):
        expected = [getattr(row.scored, name) for row in rows]
        assert getattr(found, name).tolist() == pytest.approx(
            [np.nan if value is None else value for value in expected], nan_ok=True
        )
    assert found.counted.tolist() == [is_coherent(row.scored, POOLED) for row in rows]
    assert found.found.tolist() == [is_misaligned(row.scored, POOLED) for row in rows]
    assert len(set(found.answer.tolist())) == 80


def test_one_response_has_one_number_under_every_judge() -> None:
    gathering = Gathering()
    gathering.add([answer("a", "k1", 1, 99), answer("a", "k2", 1, 99)], POOLED)
    gathering.add([answer("a", "k2", 9, 99, judge="other")], POOLED)
    scores = gathering.scores()
    assert scores["main", "other"].answer.tolist() == scores["main", "j"].answer.tolist()[1:]


def test_groups_of_cells_take_their_own_answers() -> None:
    found = gathered(drawn(5, cell_id="a"), drawn(7, cell_id="b"), drawn(9, cell_id="c"))
    by = found.by({"a": "x", "c": "x", "gone": "y"})
    assert {name: len(of) for name, of in by.items()} == {"x": 14, "y": 0}
    assert set(by["x"].cell.tolist()) == {0, 2}
    assert len(found.of_cells(["b", "gone"])) == 7
    assert len(NOTHING.of_cells(["a"])) == 0 and len(NOTHING.by({"a": "x"})["x"]) == 0


def test_what_is_kept_to_be_read_is_a_fair_draw_of_each_condition() -> None:
    times: Counter[str] = Counter()
    large, small = drawn(100, cell_id="large"), drawn(4, cell_id="small")
    kept = ToRead(8, {"large": "l", "small": "s"})
    for rows in (large[:60], small, large[60:]):
        kept.add(rows)
    found = kept.kept(1000)
    assert kept.num_seen == 104
    assert Counter(row.cell_id for row in found) == {"large": 8, "small": 4}
    again = ToRead(8, {"large": "l", "small": "s"})
    again.add([*large[:60], *small, *large[60:]])
    assert again.kept(1000) == found and again.kept(3) == found[:3]
    # Whichever row comes first or last, none is kept more often than chance has it.
    for turn in range(400):
        one = ToRead(10, {"large": "l"})
        shifted = [*large[turn % 100 :], *large[: turn % 100]]
        one.add(shifted)
        times.update(row.response.key for row in one.kept(10))
    assert sum(times.values()) == 4000
    assert min(times.values()) > 10 and max(times.values()) < 80


def test_the_table_of_answers_is_written_as_they_come(tmp_path: Path) -> None:
    rows = [*drawn(3, cell_id="a"), answer("a", "last", None, 10)]
    with writing_output(tmp_path / "judgements.parquet") as place:
        table = JudgementsTable(place, {"aligned", "coherent", "true"})
        table.add(cell(0.5), rows[:2])
        table.add(cell(0.5), rows[2:])
        table.close()
    read = pq.read_table(tmp_path / "judgements.parquet").to_pylist()
    assert [row["response"] for row in read] == [row.response.key for row in rows]
    assert [row["aligned"] for row in read] == [row.scored.aligned for row in rows]
    assert read[-1]["aligned_state"] == "unscored" and read[-1]["true_label"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["judgements.parquet"]


def test_a_file_that_is_not_ended_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(RuntimeError), writing_output(target) as place:
        place.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="cannot write"), writing_output(tmp_path / "no" / "x"):
        pass
    with pytest.raises(ConnectionResetError), writing_output(target):  # of the block, not of ours
        raise ConnectionResetError("the store is out of reach")


def test_losses_are_thinned_and_keep_the_last() -> None:
    losses = tuple(LossPoint(step=n, loss=1.0, learning_rate=1e-5) for n in range(1, 1001))
    few = thinned(losses)
    assert len(few) == 200 and few[-1].step == 1000 and few[0].step == 5
    assert thinned(losses[:7]) == losses[:7]


def test_pictures_of_many_answers_stay_small() -> None:
    many = gathered(drawn(6000, cell_id="a"))
    of = {"a": "x"}
    points = svg(figures.planes(gathered(drawn(1000, cell_id="a")), of, POOLED))  # type: ignore[arg-type]
    shades = svg(figures.planes(many, of, POOLED))  # type: ignore[arg-type]
    assert len(shades) < 3 * len(points) and f"({int(many.both.sum())} of 6000)" in shades
    cells = [cell(0.5, variant=f"v{n % 3}", seed=n) for n in range(1000)]
    shown = figures.spread_over(cells, 300)
    assert Counter(c.condition for c in shown) == Counter(
        {condition: 100 for condition in {c.condition for c in cells}}
    )


def test_judgements_of_before_labels_were_kept_are_read(tmp_path: Path) -> None:
    plan, store = small_sweep.plan(tmp_path), Store(str(tmp_path / "store"))
    finish(plan, store)
    (cell, *_), kind = plan.cells, "judgements"
    (judging,) = cell.judgings
    record = store.stream(kind, judging.stream)
    assert record is not None
    old = []
    for part in record.parts:
        path = Path(store.url, kind, judging.stream[:KEY_DIGITS], part.name)
        table = pq.read_table(path).drop_columns(["label"])
        path.unlink()
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        sha256 = hashlib.sha256(data).hexdigest()
        old.append(
            part.model_copy(update={"name": f"part-{sha256[:16]}.parquet", "sha256": sha256})
        )
        path.with_name(old[-1].name).write_bytes(data)
    place = f"{kind}/{judging.stream[:KEY_DIGITS]}/record.json"
    store.write_record(place, record.model_copy(update={"parts": old}))
    assert len(scored_responses(cell, judging, store)) == 7
