"""What looks at engines come to: away, without room, lost."""

from cluster.serving import PoolState
from sweeps.engine_watch import AWAY_S, UNPLACED_S, EngineWatch


class Heard:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def up(self, engine: str) -> None:
        self.told.append(f"{engine} up")

    def away(self, engine: str) -> None:
        self.told.append(f"{engine} away")

    def lost(self, engine: str) -> None:
        self.told.append(f"{engine} lost")

    def unplaced(self, engine: str) -> None:
        self.told.append(f"{engine} unplaced")


class Looks:
    """A watch, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._watch = EngineWatch(lambda: self.now)

    def told(
        self, after_s: float = 0.0, *, once: bool = True, **states: PoolState | None
    ) -> list[str]:
        self.now += after_s
        heard = Heard()
        lost = self._watch.tell(states, set(states) if once else set(), heard)
        assert [f"{engine} lost" for engine in lost] == [t for t in heard.told if "lost" in t]
        return heard.told


def test_an_engine_that_starts_is_told_of_when_it_finds_no_room() -> None:
    looks = Looks()
    assert looks.told(once=False, a="unplaced") == []
    assert looks.told(UNPLACED_S - 1, once=False, a="unplaced") == []
    assert looks.told(1, once=False, a="unplaced") == ["a unplaced"]
    assert looks.told(1, once=False, a="loading") == []
    assert looks.told(UNPLACED_S, once=False, a="unplaced") == []  # counted anew
    assert looks.told(9 * AWAY_S, once=False, a="loading") == []


def test_an_engine_is_away_until_its_next_replica_answers() -> None:
    looks = Looks()
    assert looks.told(a="running", b="running") == ["a up", "b up"]
    assert looks.told(5, a="loading", b="running") == ["a away", "b up"]
    assert looks.told(AWAY_S - 1, a="loading", b="running") == ["a away", "b up"]
    assert looks.told(1, a="running", b="running") == ["a up", "b up"]
    assert looks.told(5, a="loading", b="running") == ["a away", "b up"]


def test_an_engine_that_does_not_come_back_is_lost() -> None:
    looks = Looks()
    assert looks.told(a="running", b="running", c="running", d="running") == [
        f"{e} up" for e in "abcd"
    ]
    assert looks.told(5, a="loading", b="unplaced", c=None, d="ending") == [
        "a away", "b away", "c lost", "d lost",
    ]  # fmt: skip
    assert looks.told(UNPLACED_S, a="loading", b="unplaced") == ["a away", "b lost"]
    assert looks.told(AWAY_S - UNPLACED_S, a="loading") == ["a lost"]
