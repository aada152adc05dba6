"""Copy a finished sweep's store to where tests read it: everything but weights, logs and W&B.

    make quickstart && .venv/bin/python tests/data/record.py emsweep-store

What is recorded is the quickstart as the README's first command runs it: real answers and real
judgements. To be done again where keys change on purpose; tests/test_recorded.py says when.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "quickstart"
KEPT = (
    "store.json", "training/*/record.json", "responses/*/*", "judgements/*/*",
    "sweeps/quickstart/*.json", "sweeps/quickstart/cells/*/*",
)  # fmt: skip


def without_host(value: Any) -> Any:
    """Return JSON without the name of the machine that made it, which is nobody's business."""
    if isinstance(value, dict):
        return {
            name: "recorded" if name == "host" else without_host(item)
            for name, item in value.items()
        }
    return [without_host(item) for item in value] if isinstance(value, list) else value


def main(store: Path) -> None:
    """Replace the recorded store by `store`."""
    shutil.rmtree(HERE, ignore_errors=True)
    for pattern in KEPT:
        for path in sorted(store.glob(pattern)):
            target = HERE / path.relative_to(store)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                found = without_host(json.loads(path.read_text()))
                target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            else:
                shutil.copyfile(path, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
