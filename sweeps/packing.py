"""What a sweep needs of this machine to run on another: the project's code, the spec's own files.

Written into a folder by what is wanted, never by what is not: no data, stores, environments, or
files that the spec does not name can be in it. Knows nothing of where it is sent.
"""

import os
import re
import shutil
from pathlib import Path

from em.catalogue import config_dir, path_given
from em.sources import ROW_FILES, catalogue_names
from em.yaml_files import load_yaml
from sweeps.planner import PRICES
from sweeps.provenance import SENT_FROM, commit
from sweeps.spec import SweepSpec

PACKAGES = ("em", "cluster", "sweeps")
CODE = (".py", ".j2", ".css", ".js")
CONFIGS = (".yaml", ".json", ".jsonl")  # the data sets of configs/ are small demonstrations of ours
FOLDER = "spec"
MOST_BYTES = 16 * 2**20  # of one file; Ray takes 100 MiB in all
# Keys as their makers write them (OpenAI, AWS, GitHub, Hugging Face, Google, W&B), private keys,
# and passwords in addresses.
SECRETS = re.compile(
    r"\bsk-[\w-]{20}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30}|\bhf_[A-Za-z]{30}|\bAIza[\w-]{30}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\bwandb_v1_\w{20}|://[^/\s:@]+:[^/\s@]+@"
)


def pack(path: Path, spec: SweepSpec, folder: Path) -> Path:
    """Write the project's code and configs, and the spec at `path` with the files that it names.

    They go into the empty `folder`; return the spec's place in it. Raises ValueError for a named
    file that looks as if it held a key, is very large, or would lie elsewhere there, and for data
    and model folders that only this machine has.
    """
    _check_nothing_is_only_here(path, spec)
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        _copy(root / package, folder / package, CODE)
    _copy(config_dir(), folder / "configs", CONFIGS)
    if made_from := commit():
        (folder / SENT_FROM).write_text(made_from)
    inside = Path(FOLDER) / path.name
    for source, name in [(path, path.name), *named_files(path, spec).items()]:
        target = Path(os.path.normpath(folder / FOLDER / name))
        if not target.is_relative_to(folder):
            raise ValueError(
                f"{path} names {name!r}, which is too far from it to be sent along: put it beside "
                "the spec, or below"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(check_sendable(source))
    return inside


def named_files(path: Path, spec: SweepSpec) -> dict[Path, str]:
    """Return the files of this machine that the spec names by a relative path, and those names.

    Question files and judges' prompts, and a table of prices beside the spec.
    """
    names = [e.questions for e in spec.evaluations] + [j.prompts for j in spec.judges] + [PRICES]
    found: dict[Path, str] = {}
    for name in names:
        if name is None or path_given(name).is_absolute():
            continue
        for place in (path.resolve().parent / name, Path.cwd() / name):
            if place.is_file():
                found[place] = name
                break
    return found


def _check_nothing_is_only_here(path: Path, spec: SweepSpec) -> None:
    """Raise ValueError for data sets and model folders by a relative path: they are not sent."""
    known = catalogue_names()
    for variant in spec.variants:
        for dataset in variant.datasets:
            given = path_given(dataset)
            local = dataset.endswith(ROW_FILES) or (path.resolve().parent / given).exists()
            if dataset not in known and local and not given.is_absolute():
                raise ValueError(
                    f"{path}: variant {variant.name!r} has its data in {dataset!r} on this machine,"
                    " and data is not sent: put it where all nodes see it, and name it by its "
                    "absolute path"
                )
    written = load_yaml(path)[0]
    for model in written.get("models", ()):
        folder = model.get("folder")
        if folder is not None and not path_given(folder).is_absolute():
            raise ValueError(
                f"{path}: the model {model.get('name')!r} is in the folder {folder!r} of this "
                "machine, and models are not sent: put it where all nodes see it, and name it by "
                "its absolute path"
            )


def check_sendable(path: Path) -> bytes:
    """Return a file's bytes. Raises ValueError where it must not be sent."""
    data = path.read_bytes()
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} has {len(data):,} bytes; at most {MOST_BYTES:,} are sent")
    text = data.decode(errors="replace")
    if found := SECRETS.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(
            f"{path}, line {line}, looks as if it held a key or a password, and would be sent: "
            "take it out (keys are read from the environment of the cluster's nodes)"
        )
    return data


def _copy(source: Path, target: Path, suffixes: tuple[str, ...]) -> None:
    for path in source.rglob("*"):
        if path.suffix in suffixes and path.is_file() and "__pycache__" not in path.parts:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
