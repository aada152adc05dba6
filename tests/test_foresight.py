"""What a spec cannot show is said before it runs."""

from pathlib import Path
from typing import Any

import pytest
from small_sweep import plan

from cluster.session import local_totals
from sweeps.foresight import foreseen_weaknesses
from sweeps.planning import describe, lines
from sweeps.store import Store

CLAIM = {"claim": "C2", "variant": "ours", "control": "none", "above": 0}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seeds": [0]}, ["one seed: no interval"]),
        ({"seeds": [0, 1]}, []),
        ({"seeds": [0, 1], "claims": [CLAIM]}, ["and there are 2", "2 seeds decide"]),
        ({"seeds": [0, 1, 2], "claims": [CLAIM]}, ["about 5 points", "30 points"]),
    ],
)
def test_weak_designs_are_told(changed: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    sweep = plan(tmp_path, **changed)
    said = "\n".join(foreseen_weaknesses(sweep.spec))
    assert all(word in said for word in words)
    assert bool(said) == bool(words)
    store = Store(str(tmp_path / "store"))
    told = "\n".join(lines(sweep, describe(sweep, store, local_totals())))
    assert all(f"warning: {line}" in told for line in said.splitlines())
