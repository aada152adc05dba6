"""W&B is down while a cell trains and when it has ended: the cell never notices.

What was not sent is sent by the next driver, once.
"""

from pathlib import Path

import pytest
from matrix import Case
from wandb_backend import Mood, wandb_backend
from world import World

from sweeps.attempts import statuses
from sweeps.sent import not_sent
from sweeps.settings import TrackingConfig
from sweeps.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.faults]

KEY = "a-made-up-key-of-this-test-" + "x" * 40


@pytest.mark.parametrize(
    ("first", "then", "stage"),
    [
        pytest.param("500", "500", "train", marks=pytest.mark.fault("W&B: 500", "train")),
        pytest.param("hangs", "hangs", "train", marks=pytest.mark.fault("W&B: hangs", "train")),
        pytest.param("429", "429", "judge", marks=pytest.mark.fault("W&B: 429", "judge")),
        pytest.param("well", "hangs", "judge", marks=pytest.mark.fault("W&B: stops", "judge")),
    ],
)
def test_a_cell_goes_on_without_it(
    first: Mood, then: Mood, stage: str, world: World, case: Case, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("wandb")
    store = world.store_before("train" if stage == "train" else "judge", tmp_path / "store")
    tracked = world.tracked(TrackingConfig(mode="online"))
    environment = {"WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
    with wandb_backend(first, then) as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        with case.recovery():
            process = tracked.start(store, WANDB_BASE_URL=backend.url, **environment)
            process.join(240)
        assert process.exitcode == 0
        world.check_as_undisturbed(store)
        assert left(tracked, store) == 1
        case.happened("the cell ends; the next driver, or 'emsweep sync', sends it")
        backend.be("well")
        again = tracked.start(store, WANDB_BASE_URL=backend.url, **environment)
        again.join(240)
        assert again.exitcode == 0
        assert left(tracked, store) == 0
    (cell,) = (run for run in backend.runs.values() if run.fields["jobType"] == "cell")
    assert cell.state == "finished"
    assert cell.overwritten == []
    steps = [row["train/step"] for row in cell.rows() if "train/step" in row]
    assert steps == list(range(1, len(steps) + 1)) != []
    assert sum("eval/step" in row for row in cell.rows()) == 1


def left(world: World, store: Store) -> int:
    """How many cells W&B has not, or not as they are."""
    return not_sent(world.sweep, store, statuses(world.sweep, store)).cells
