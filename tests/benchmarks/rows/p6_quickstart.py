"""P6: the whole quickstart against that of the project's own first version.

The first version is the tree of COMMIT, by the same Python and packages. Both have their bytecode
compiled and the bundled model converted beforehand; timed is the command, from its start to the
path of the report. On a CPU with matrix tiles the first version's engines would end with SIGILL
(see cluster.tiles): each of its processes asks for leave as it starts.
"""

import platform
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tests.benchmarks.comparisons import Ask, Measured, Row, compared, demand_same
from tests.benchmarks.parts import ROOT, PartFailed
from tests.benchmarks.rows.whole_quickstart import FIRST, HERE, first_tree, whole

LEAST_OF_FIRST = 2.0  # ratio wanted

# arch_prctl(ARCH_REQ_XCOMP_PERM, tile data), by their numbers on x86-64.
TILES = "import ctypes\nctypes.CDLL(None).syscall(158, 0x1023, 18)\n"
COMMIT = "d3235d637472f57a868268bbd310dda1cd35b007"  # 2026-11-24, the first to time a quickstart


def first_version(folder: str) -> dict[str, Any]:
    """Unpack the first version. Raises CalledProcessError where the checkout has no such commit."""
    archive, tree = Path(folder) / "first.tar", first_tree(folder)
    subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--output", str(archive), COMMIT], check=True
    )
    with tarfile.open(archive) as packed:
        packed.extractall(tree, filter="data")
    if platform.machine() == "x86_64":
        (tree / "sitecustomize.py").write_text(TILES)  # Python runs it at the start of each
    return {"commit": COMMIT}


def measure(ask: Ask) -> Measured:
    """Measure the row. Where the first version does not run here, that is told, without a ratio."""
    own = ask(whole, version=HERE)
    what = "wall time of the quickstart"
    try:
        ask(first_version)
        first = ask(whole, version=FIRST)
    except PartFailed as error:
        told = str(error).splitlines()[-1]
        return Measured([compared(what, "s", own["wall_s"])], notes=[f"no first version: {told}"])
    sides = {"ours": own, "the first version": first}
    checked = [
        demand_same(name, {side: said[key] for side, said in sides.items()})
        for name, key in (("cells finished", "cells"), ("answers judged", "judged"))
    ]
    return Measured(
        comparisons=[
            compared(
                what, "s", own["wall_s"], f"the first version ({COMMIT[:7]})", first["wall_s"],
                less_is_better=True, least_ratio=LEAST_OF_FIRST,
            )
        ],
        checked=checked,
        notes=[f"most memory at a look: {own['peak_mib']:.0f} and {first['peak_mib']:.0f} MiB"],
    )  # fmt: skip


ROW = Row("P6", "The whole quickstart", measure)
