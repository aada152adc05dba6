"""The recorded quickstart: a finished sweep with real answers, as tests/data/record.py wrote it.

Knows nothing of what a test does with it.
"""

import shutil
from pathlib import Path

from sweeps.plan import SweepPlan
from sweeps.planner import load_plan
from sweeps.store import Store, open_store

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "configs" / "sweeps" / "quickstart.yaml"


def recorded(folder: Path) -> tuple[SweepPlan, Store]:
    """Return the quickstart's plan, and a store of one's own that holds it finished."""
    shutil.copytree(ROOT / "tests" / "data" / "quickstart", folder)
    return load_plan(SPEC), open_store(str(folder))
