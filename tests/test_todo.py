"""What is left of cells, read once: in a folder, and side by side in a bucket."""

from pathlib import Path

import pytest
from places import PLACES, place_url
from small_sweep import plan
from test_times import answered

from sweeps.attempts import statuses
from sweeps.plan import stages_to_run
from sweeps.selection import todo_of
from sweeps.store import Store
from sweeps.todo import read_todo


@pytest.mark.parametrize("place", PLACES)
def test_each_cell_has_the_stages_that_the_store_lacks(
    place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    sweep, store = plan(tmp_path), Store(place_url(place, request, tmp_path))
    answered(sweep.cells[0], store, started=0, seconds=1)
    todo = read_todo(sweep.cells, store)
    assert todo.cells == sweep.cells
    assert {c.cell_id: [*todo.left(c)] for c in sweep.cells} == {
        c.cell_id: stages_to_run(c, store) for c in sweep.cells
    }
    assert todo.lacking("generate") == [*sweep.cells[1:]]
    assert [c.cell_id for c in todo.lacking("judge")] == [c.cell_id for c in sweep.cells]
    assert todo_of(sweep.cells, statuses(sweep, store)) == todo
