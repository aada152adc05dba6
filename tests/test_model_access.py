"""What a machine has of a model, told without fetching anything."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from em.catalogue import CACHE_ENV
from em.model_access import model_access, sampled_revision
from em.models import ModelConfig, bundled_folder

REVISION = "0" * 40


def model_folder(folder: Path, *, template: bool = True) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8192)
    written = {"chat_template": "{{ messages }}"} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


def test_a_folder_with_a_template_is_whole(tmp_path: Path) -> None:
    found = model_access(ModelConfig(name="m", folder=model_folder(tmp_path / "m")))
    assert (found.here, found.has_template, found.problem) == (True, True, None)
    assert found.revision


def test_a_template_in_a_file_of_its_own_counts(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", template=False)
    assert model_access(ModelConfig(name="m", folder=folder)).has_template is False
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert model_access(ModelConfig(name="m", folder=folder)).has_template is True


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("nothing", "there is no such folder"),
        ("config.json", "no config.json"),
        ("model.safetensors", "no *.safetensors"),
    ],
)
def test_a_folder_that_lacks_something_is_a_problem(broken: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    if broken != "nothing":
        (model_folder(folder) / broken).unlink()
    found = model_access(ModelConfig(name="m", folder=folder))
    assert not found.here and said in (found.problem or "")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_tokenizer_file_is_a_problem_that_names_it(text: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(text)
    found = model_access(ModelConfig(name="m", folder=folder))
    assert "tokenizer_config.json is damaged" in (found.problem or "")


def test_copies_are_told_apart_by_their_bytes_names_and_sizes(tmp_path: Path) -> None:
    first, second = model_folder(tmp_path / "a"), model_folder(tmp_path / "b")
    assert sampled_revision(first) == sampled_revision(second)
    weights = bytearray((second / "model.safetensors").read_bytes())
    for place in range(0, len(weights), 4096):  # as another fine-tune differs: all over
        weights[place] ^= 1
    (second / "model.safetensors").write_bytes(weights)
    assert sampled_revision(first) != sampled_revision(second)
    (second / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes() + b"0")
    assert sampled_revision(first) != sampled_revision(second)
    (second / "model.safetensors").unlink()
    (first / "model.safetensors").rename(second / "other.safetensors")
    assert sampled_revision(first) != sampled_revision(second)


def test_the_bundled_model_can_be_had_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    config = ModelConfig(name="m", bundled="smollm2-135m")
    found = model_access(config)
    assert (found.here, found.has_template, found.problem) == (False, None, None)
    model_folder(bundled_folder())
    assert model_access(config).here and model_access(config).has_template


def hub_folder(cache: Path, *names: str) -> Path:
    """A snapshot as the hub's own client leaves it."""
    folder = cache / "models--org--name" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and no hub; the client's own variables are read once in a process."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "hub"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield folder


HUB = ModelConfig(name="m", hub="org/name", revision=REVISION)


def test_a_hub_model_that_is_neither_here_nor_there_is_a_problem(hub_cache: Path) -> None:
    found = model_access(HUB)
    assert not found.here
    assert "org/name@000000000000 is not in this machine's cache" in (found.problem or "")


def test_a_hub_model_in_the_cache_is_here_once_all_weights_are(hub_cache: Path) -> None:
    folder = hub_folder(hub_cache, "config.json", "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not model_access(HUB).here
    (folder / "two.safetensors").write_text("{}")
    found = model_access(HUB)
    assert (found.here, found.has_template, found.problem) == (True, False, None)
    (folder / "model.safetensors.index.json").write_text("torn")
    assert "index.json is damaged" in (model_access(HUB).problem or "")
