"""Leave to use a CPU's matrix tiles (AMX), asked of the kernel by each process of an engine.

Knows nothing of vLLM but that it pickles its config into the processes it starts.
"""

from collections.abc import Callable


class UseTiles:
    """Travels in vLLM's config into the processes it starts; unpickled there, it asks for leave.

    Linux ends a process with SIGILL that uses tiles without having asked
    (https://docs.kernel.org/arch/x86/xstate.html). vLLM's attention uses them wherever the CPU has
    them and never asks: it relies on oneDNN's asking at the first large product. An engine whose
    very first prompt is short dies of that, as ours would: its check is one token.
    """

    def __reduce__(self) -> "tuple[Callable[[], UseTiles], tuple[()]]":
        return _ask, ()


def _ask() -> UseTiles:
    import torch

    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        raise RuntimeError(
            "this CPU has matrix tiles (AMX), which vLLM would use, but the kernel does not let "
            "this process use them (arch_prctl ARCH_REQ_XCOMP_PERM was refused): run on another "
            "machine, or hide AMX from this one (the kernel parameter clearcpuid=amx_tile)"
        )
    return UseTiles()
