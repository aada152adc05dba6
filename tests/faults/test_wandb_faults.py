"""W&B is down while a cell trains and when it has ended: the cell never notices."""

from pathlib import Path

import pytest
from matrix import Case
from wandb_server import Mood, wandb_server
from world import World

from sweeps.settings import TrackingConfig
from sweeps.tracking import reach_of

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.faults]


@pytest.mark.parametrize(
    ("first", "then", "stage"),
    [
        pytest.param("500", "500", "train", marks=pytest.mark.fault("W&B: 500", "train")),
        pytest.param("hangs", "hangs", "train", marks=pytest.mark.fault("W&B: hangs", "train")),
        pytest.param("500", "500", "judge", marks=pytest.mark.fault("W&B: 500", "judge")),
        pytest.param("well", "hangs", "judge", marks=pytest.mark.fault("W&B: stops", "judge")),
    ],
)
def test_a_cell_goes_on_without_it(
    first: Mood, then: Mood, stage: str, world: World, case: Case, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    store = world.store_before("train" if stage == "train" else "judge", tmp_path / "store")
    tracked = world.tracked(TrackingConfig(mode="online"))
    key = "a-made-up-key-of-this-test-" + "x" * 40
    with wandb_server(first, then) as server, case.recovery():
        process = tracked.start(
            store, WANDB_BASE_URL=server.url, WANDB_API_KEY=key, WANDB_ERROR_REPORTING="false"
        )
        process.join(240)
    assert process.exitcode == 0
    why = reach_of(Path(store.url)).why()
    assert why is not None
    kept = [path for path in Path(store.url, "wandb").iterdir() if path.is_dir()]
    assert any("run-" in path.name for path in kept)
    assert key not in why
    case.happened("runs are kept in the store's folder, to be sent later")
    world.check_as_undisturbed(store)
