"""What an engine's processes ask of the kernel before they use a CPU's matrix tiles."""

import pickle
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.tiles import UseTiles

ROOT = Path(__file__).parents[1]
# Numbers of x86-64 Linux: arch_prctl is call 158, ARCH_GET_XCOMP_PERM 0x1022, tile data bit 18.
UNPICKLED = """
import ctypes, pickle, sys
import torch

def allowed():
    mask = ctypes.c_uint64(0)
    known = ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(mask)) == 0  # from Linux 5.16 on
    return known and mask.value >> 18 & 1

before = allowed()
pickle.load(sys.stdin.buffer)
print(int(before), int(allowed()), int(torch.cpu._is_amx_tile_supported()))
"""


@pytest.mark.torch
@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="only x86-64 Linux has tiles that must be asked for",
)
def test_a_process_may_use_the_tiles_that_its_cpu_has_once_it_unpickles_the_wish() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLED],
        input=pickle.dumps(UseTiles()), capture_output=True, check=True, cwd=ROOT,
    )  # fmt: skip
    before, after, supported = map(int, done.stdout.split())
    if not supported:
        pytest.skip("this CPU has no tiles")
    assert before == 0 and after == 1
