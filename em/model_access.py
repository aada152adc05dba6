"""Can this machine have a model: are its files here, and if not, can they be fetched.

Fetches nothing but names. Knows nothing of other machines.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import Field

from em.models import MODEL_FILES, ModelConfig, bundled_folder, materialise
from em.record import Record

TIMEOUT_S = 10.0
SAMPLES, SAMPLE_BYTES = 16, 64 * 2**10  # of each file


class Access(Record):
    """What a machine has of a model. `problem` is None where it is here or can be had."""

    here: bool
    revision: str | None = Field(default=None, description="of a folder: see sampled_revision")
    has_template: bool | None = Field(default=None, description="None where the files are not here")
    problem: str | None = None


def model_access(config: ModelConfig) -> Access:
    """Return what this machine has of a model; raises nothing for what it lacks."""
    try:
        if config.folder is not None:
            folder = materialise(config)
            return Access(
                here=True, revision=sampled_revision(folder), has_template=_has_template(folder)
            )
        if config.bundled is not None:
            folder = bundled_folder()
            return Access(here=folder.is_dir(), has_template=_has_template(folder))
        return _hub_access(config)
    except (ValueError, OSError) as error:
        return Access(here=False, problem=str(error))


def sampled_revision(folder: Path) -> str:
    """Return a hash of the names and sizes of a model's files, and of a sample of their bytes.

    Copies that differ are told apart in a moment: all bytes of a large model take minutes from a
    shared disk. Two fine-tunes of one model differ in nearly every matrix, so in the sample.
    """
    digest = hashlib.sha256()
    for path in sorted(p for pattern in MODEL_FILES for p in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _hub_access(config: ModelConfig) -> Access:
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError(
            f"reading the hub needs the extra 'train' on this machine: {error}"
        ) from error
    assert config.hub is not None and config.revision is not None
    try:
        folder = Path(
            snapshot_download(config.hub, revision=config.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        folder = None
    if folder is not None and _is_whole(folder):
        return Access(here=True, has_template=_has_template(folder))
    try:
        HfApi().model_info(config.hub, revision=config.revision, timeout=TIMEOUT_S)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{config.hub}@{config.revision[:12]} is not in this machine's cache, and the hub does "
            f"not give it ({type(error).__name__}: {first})"
        ) from error
    return Access(here=False)


def _is_whole(folder: Path) -> bool:
    """Whether every file of weights that the index names is there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    named = _json(index).get("weight_map") or {}
    return bool(named) and all((folder / name).is_file() for name in named.values())


def _has_template(folder: Path) -> bool | None:
    """Whether the tokenizer says how a chat is written; None where nothing is there."""
    if not folder.is_dir():
        return None
    if (folder / "chat_template.jinja").is_file():
        return True
    written = folder / "tokenizer_config.json"
    return written.is_file() and bool(_json(written).get("chat_template"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no JSON: fetch it again ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object. Fetch it again")
    return found
