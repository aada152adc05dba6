"""Tune's trials one by one, as somebody else releases them.

Knows nothing of what a trial does, or of why it may start.
"""

from collections.abc import Callable
from typing import Any


def released_trials(release: Callable[[], str | None], more: Callable[[], bool]) -> Any:
    """Return a searcher for Tune: its trials have `{"cell": release()}` as their config.

    `release` is asked at each of Tune's steps, and gives None where no trial may start now. The
    search is over when it gives None and no trial is under way, or no `more` may come: Tune keeps
    the process of an ended trial for the next one, and with it what others wait for.
    """
    from ray.tune.search import Searcher

    class Released(Searcher):  # type: ignore[misc]
        # Tune writes its searcher, class and all, to disk. What belongs to this process must be
        # in attributes, which are left out, and never in the methods' closures.
        def __init__(self, release: Callable[[], str | None], more: Callable[[], bool]) -> None:
            super().__init__()
            self._release, self._more = release, more
            self._under_way = 0

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def set_search_properties(self, *arguments: Any, **more: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            cell = self._release()
            if cell is not None:
                self._under_way += 1
                return {"cell": cell}
            return None if self._under_way and self._more() else Searcher.FINISHED

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            self._under_way -= 1

        def save(self, checkpoint_path: str) -> None:
            """There is nothing to go on from: the store remembers."""

        def restore(self, checkpoint_path: str) -> None:
            """See save."""

    return Released(release, more)
