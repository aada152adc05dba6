"""What trained weights are, by their bytes. Knows nothing of where they are kept."""

import hashlib
from pathlib import Path


def weights_sha256(folder: Path) -> str:
    """Return the content hash of trained weights: tensors and the configuration they need."""
    names = sorted(
        path
        for path in folder.iterdir()
        if path.suffix == ".safetensors" or path.name in ("adapter_config.json", "config.json")
    )
    digest = hashlib.sha256()
    for path in names:
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
