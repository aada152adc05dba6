"""What a sweep needs of this machine to run on another: the project's code, the spec's own files.

Written into a folder by what is wanted, never by what is not: no data of the user's, stores,
environments, or files that neither the spec names nor the project ships can be in it. Knows
nothing of where it is sent.
"""

import os
import re
import shutil
from pathlib import Path

from em.catalogue import config_dir, path_given
from em.sources import ROW_FILES, catalogue_entry, catalogue_names
from em.yaml_files import load_yaml
from sweeps.planner import PRICES
from sweeps.provenance import SENT_FROM, commit
from sweeps.spec import SweepSpec

PACKAGES = ("em", "cluster", "sweeps")
CODE = (".py", ".j2", ".css", ".js")
CONFIGS = (".yaml", ".json")
FOLDER = "spec"
MOST_BYTES = 16 * 2**20  # of one file; Ray takes 100 MiB in all
MOST_DEMONSTRATION = 64 * 2**10  # of a data set in configs/; the project's have 30 KiB at most
# Keys as their makers write them (OpenAI and Anthropic, AWS, GitHub, Hugging Face, Google, W&B),
# private keys, and passwords in addresses.
SECRETS = re.compile(
    r"\bsk-[\w-]{20}|\bA(?:KIA|SIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{30}|\bgithub_pat_\w{30}"
    r"|\bhf_[A-Za-z0-9]{30}|\bAIza[\w-]{30}|-----BEGIN [A-Z ]*PRIVATE KEY|\bwandb_v1_\w{20}"
    r"|(?i:wandb|api).{0,20}(?i:key)[\"']?\s*[=:]\s*[\"']?[0-9a-f]{40}\b"
    r"|://[^/\s:@{}]+:[^/\s@{}]+@"
)


def pack(path: Path, spec: SweepSpec, folder: Path) -> Path:
    """Write the project's code and configs, and the spec at `path` with the files that it names.

    They go into the empty `folder`; return the spec's place in it. Raises ValueError for a named
    file that looks as if it held a key, is very large, or would lie elsewhere there, and for data
    and model folders that only this machine has.
    """
    check_nothing_is_only_here(path, spec)
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        _copy(root / package, folder / package, CODE)
    _copy(config_dir(), folder / "configs", CONFIGS)
    _copy(config_dir() / "tasks", folder / "configs" / "tasks", CODE)
    for source in _shipped_data(path, spec):
        shutil.copyfile(source, folder / "configs" / "datasets" / source.name)
    if made_from := commit():
        (folder / SENT_FROM).write_text(made_from)
    inside = Path(FOLDER) / path.name
    for name, source in {path.name: path, **named_files(path, spec)}.items():
        target = folder / FOLDER / name
        place = Path(os.path.normpath(target))
        if not place.is_relative_to(folder) or place.exists():
            raise ValueError(
                f"{path} names {name!r}, which lies where nothing can be put when it is sent: put "
                "it beside the spec, or below"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(check_sendable(source))
    return inside


def named_files(path: Path, spec: SweepSpec) -> dict[str, Path]:
    """Return the files of this machine that the spec names by a relative path, by that name.

    Question files and judges' prompts, and a table of prices beside the spec. What is in configs/
    or in the folder of public data is not among them: the cluster has these, or fetches them.
    """
    names = [e.questions for e in spec.evaluations] + [j.prompts for j in spec.judges] + [PRICES]
    names += [e.inspect.rpartition("@")[0] for e in spec.evaluations if e.inspect]
    found: dict[str, Path] = {}
    for name in names:
        if not name or path_given(name).is_absolute():
            continue
        places = (path.resolve().parent / name, Path.cwd() / name)
        if here := next((place for place in places if place.is_file()), None):
            found[name] = here
    return found


def check_nothing_is_only_here(path: Path, spec: SweepSpec) -> None:
    """Raise ValueError for data sets and model folders by a relative path: they are not sent."""
    beside = path.resolve().parent
    for variant in spec.variants:
        for dataset in variant.datasets:
            given = path_given(dataset)
            is_file = dataset.endswith(ROW_FILES) or any(
                place.exists() for place in (beside / given, Path.cwd() / given)
            )
            if dataset not in catalogue_names() and is_file and not given.is_absolute():
                raise ValueError(
                    f"{path}: variant {variant.name!r} has its data in {dataset!r} on this machine,"
                    " and data is not sent: put it where all nodes see it, and name it by its "
                    "absolute path"
                )
    written = load_yaml(path)[0]
    models = [*written.get("models", ()), *(j.get("model") for j in written.get("judges", ()))]
    for model in models:
        folder = model and model.get("folder")
        if folder and not path_given(folder).is_absolute():
            raise ValueError(
                f"{path}: the model {model.get('name')!r} is in the folder {folder!r} of this "
                "machine, and models are not sent: put it where all nodes see it, and name it by "
                "its absolute path"
            )


def _shipped_data(path: Path, spec: SweepSpec) -> set[Path]:
    """Return the files of the demonstrations in configs/datasets that the spec is about."""
    names = {name for variant in spec.variants for name in variant.datasets}
    entries = [catalogue_entry(name) for name in sorted(names & set(catalogue_names()))]
    found = {config_dir() / "datasets" / entry.file for entry in entries if entry.file}
    for place in found:
        if not place.is_file() or place.stat().st_size > MOST_DEMONSTRATION:
            raise ValueError(
                f"{path} names a data set of the catalogue that is in {place}, and data is not "
                "sent: put it where all nodes see it, and name it by its absolute path"
            )
    return found


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
            place.write_bytes(check_sendable(path))
