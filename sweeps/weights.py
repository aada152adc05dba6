"""What trained weights are, by their bytes; of those that an API keeps, by their name there.

Knows nothing of where they are kept.
"""

import hashlib
from pathlib import Path

NAMES = ("adapter_config.json", "config.json", "api_model.json")
API_MODEL = "api_model.json"  # in the folder of a training that an API did: which model it came to


def weights_sha256(folder: Path) -> str:
    """Return the content hash of trained weights: tensors and the configuration they need."""
    names = sorted(
        path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name in NAMES
    )
    digest = hashlib.sha256()
    for path in names:
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
