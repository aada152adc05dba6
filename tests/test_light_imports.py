"""Planning, status and reports load nothing heavy: they start at once, and run anywhere."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "ray",
    "vllm",
    "transformers",
    "wandb",
    "deepspeed",
    "peft",
    "datasets",
    "inspect_ai",
)
# The modules that do the training: each imports torch or transformers in its first lines.
TRAINING = {
    "em.base_model", "em.batching", "em.canaries", "em.finetune", "em.merging", "em.output",
    "em.ranks", "em.trainer",
}  # fmt: skip
PACKAGES = ("em", "cluster", "sweeps")

LOADED = """
import importlib, json, sys
heavy = json.loads(sys.argv[1])
found = {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    found[name] = [h for h in heavy if h in sys.modules]
print(json.dumps(found))
"""


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def loaded(*names: str) -> dict[str, list[str]]:
    """The heavy packages that are loaded after each of `names`, imported in a fresh interpreter."""
    said = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(HEAVY), *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found: dict[str, list[str]] = json.loads(said.stdout)
    return found


def test_no_module_of_the_light_install_loads_anything_heavy() -> None:
    light = [name for p in PACKAGES for name in modules(p) if name not in TRAINING]
    assert {"sweeps.cli", "sweeps.report", "em.judging", "cluster.engine"} <= set(light)
    assert {name: heavy for name, heavy in loaded(*light).items() if heavy} == {}


def test_that_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("")
    (tmp_path / "sloppy.py").write_text("import transformers\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    said = subprocess.run(
        [sys.executable, "-c", path + LOADED, json.dumps(HEAVY), "em.record", "sloppy"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout) == {"em.record": [], "sloppy": ["transformers"]}


def test_the_exceptions_are_really_heavy() -> None:
    """One that no longer imports torch or transformers, or is gone, has no place in the list."""
    for name in TRAINING:
        text = (ROOT / name.replace(".", "/")).with_suffix(".py").read_text()
        assert re.search(r"^(import|from) (torch|transformers)\b", text, re.MULTILINE), name


@pytest.mark.parametrize("name", PACKAGES)
def test_the_packages_are_this_projects(name: str) -> None:
    """Such short names may be taken by another package, which would be found first."""
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).resolve() == ROOT / name / "__init__.py"
