"""Which checkpoints count: those with a whole mark of this training."""

from pathlib import Path

import pytest

from em.checkpoints import (
    disk_asked,
    last_whole,
    mark_whole,
    remove_from,
    remove_older,
    remove_torn,
)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "state").write_text("x")
    return path


def test_the_latest_with_a_mark_counts(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = checkpoint(tmp_path, step)
        if step < 3:
            mark_whole(path, "key")
    assert last_whole(tmp_path, "key") == tmp_path / "checkpoint-2"
    assert remove_torn(tmp_path) == [tmp_path / "checkpoint-3"]
    remove_older(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_what_is_not_gone_on_from_is_removed(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        mark_whole(checkpoint(tmp_path, step), "key")
    remove_from(tmp_path, 4)
    assert last_whole(tmp_path, "key") == tmp_path / "checkpoint-2"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("torn", ["", '{"ke', "[]", "{}", "null"])
def test_a_mark_that_a_loss_of_power_tore_is_none(tmp_path: Path, torn: str) -> None:
    mark_whole(checkpoint(tmp_path, 1), "key")
    (checkpoint(tmp_path, 2) / "whole.json").write_text(torn)
    assert last_whole(tmp_path, "key") == tmp_path / "checkpoint-1"
    assert remove_torn(tmp_path) == [tmp_path / "checkpoint-2"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    mark_whole(checkpoint(tmp_path, 1), "other")
    with pytest.raises(ValueError, match="checkpoint of another training"):
        last_whole(tmp_path, "key")


def test_what_torch_cannot_write_is_told_by_the_disk(tmp_path: Path) -> None:
    torn = "[enforce fail at inline_container.cc:672] . unexpected pos 22336 vs 22230"
    with pytest.raises(OSError, match="unexpected pos"), disk_asked(tmp_path):
        raise RuntimeError(torn)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), disk_asked(tmp_path / "gone"):  # the disk's own reason
        raise RuntimeError(torn)
    with pytest.raises(RuntimeError, match="shapes"), disk_asked(tmp_path):
        raise RuntimeError("shapes do not fit")
