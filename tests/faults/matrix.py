"""The matrix of faults: what a case tells it, and how it is printed. Knows no fault."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

STATES = ("passed", "failed", "xfailed", "xpassed", "error", "skipped")


def slow_unless(fast: bool) -> list[pytest.MarkDecorator]:
    """The mark of a case that is not in the fast part."""
    return [] if fast else [pytest.mark.faults]


class Case:
    """What a case tells the matrix."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def happened(self, text: str) -> None:
        """Say in a few words what the fault led to, before the recovery."""
        self._record("happened", text)

    @contextlib.contextmanager
    def recovery(self) -> Iterator[None]:
        """Take the time of the block as that of the recovery."""
        began = time.monotonic()
        yield
        self.took(time.monotonic() - began)

    def took(self, seconds: float) -> None:
        """Say how long the recovery took."""
        self._record("recovery_s", seconds)


def print_matrix(terminalreporter: Any) -> None:
    """Print a line for each case that ran, in pytest's own summary."""
    lines = []
    for state in STATES:
        for report in terminalreporter.stats.get(state, ()):
            told = dict(getattr(report, "user_properties", ()))
            if "fault" in told and (report.when == "call" or state in ("error", "skipped")):
                seconds = told.get("recovery_s")
                lines.append(
                    f"{told['fault']:<46} {told['stage']:<9} "
                    f"{'' if seconds is None else f'{seconds:8.1f} s':>10}  "
                    f"{state:<7} {told.get('happened', '')}"
                )
    if lines:
        terminalreporter.section(f"{len(lines)} faults")
        terminalreporter.write_line(
            f"{'fault':<46} {'stage':<9} {'recovery':>10}  {'':<7} what happened"
        )
        for line in sorted(lines):
            terminalreporter.write_line(line)
