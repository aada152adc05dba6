"""An engine's processes must not outlive the process that owns them.

Knows nothing of vLLM but that it pickles its config into the processes it starts.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable


class WatchParent:
    """Travels in vLLM's config into the processes it starts; unpickled there, it keeps watch.

    vLLM's engine process does not notice when the process that owns it is killed, and would keep
    its memory for ever. PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the
    engine ends. So each process that unpickles this polls who its parent is.
    """

    def __reduce__(self) -> tuple[Callable[[int], "WatchParent"], tuple[int]]:
        return _watch_parent, (os.getpid(),)


def _watch_parent(pickled_by: int) -> WatchParent:
    if pickled_by != os.getpid():
        name = "watch-parent"
        threading.Thread(target=_end_with, args=(pickled_by,), name=name, daemon=True).start()
    return WatchParent()


def _end_with(parent: int) -> None:
    """End this process when `parent` does, if it was started by it as a multiprocessing child."""
    deadline = (
        time.monotonic() + 60
    )  # multiprocessing tells who the parent is only after unpickling
    while (known := multiprocessing.parent_process()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if known is None or known.pid != parent:
        return
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
