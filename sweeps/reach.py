"""Whether a server that is told of the work answers: found out once, not by every cell.

What one process found is left in a small file for the others of its machine. Knows nothing of the
server.
"""

import time
from pathlib import Path

from sweeps.console import printable

LOST_FOR_S = 1800.0  # then it is tried again: an outage may be over
MAX_MESSAGE = 300


class Reach:
    """What is known of one server, in the file `path`."""

    def __init__(self, path: Path) -> None:
        """Refer to `path`; nothing is written there."""
        self._path = path

    def is_lost(self) -> bool:
        """Whether it did not answer lately, so that nobody need wait for it."""
        try:
            age = time.time() - self._path.stat().st_mtime
        except OSError:
            return False
        return abs(age) < LOST_FOR_S  # a clock that was set back must not make it lost for long

    def lose(self, error: BaseException) -> None:
        """Take down that it did not answer."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(printable(f"{type(error).__name__}: {error}")[:MAX_MESSAGE])

    def forget(self) -> None:
        """Have it tried again."""
        self._path.unlink(missing_ok=True)

    def why(self) -> str | None:
        """Return the error that it was lost by; None where it is not lost."""
        try:
            return self._path.read_text() if self.is_lost() else None
        except OSError:
            return None
