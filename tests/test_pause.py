"""Pauses after engines found no room."""

from sweeps.pause import FIRST_S, MOST_S, Pause


def test_a_pause_is_by_chance_and_longer_each_time_until_there_is_room() -> None:
    now, asked = [0.0], []

    def longest(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    pause = Pause(lambda: now[0], longest)
    assert pause.is_over(True) and asked == []
    for wanted in (FIRST_S, 2 * FIRST_S, 4 * FIRST_S):
        assert not pause.is_over(False)
        now[0] += wanted - 1
        assert not pause.is_over(False)
        now[0] += 1
        assert pause.is_over(False)
        assert pause.is_over(True)  # they start
    assert asked == [(high / 2, high) for high in (FIRST_S, 2 * FIRST_S, 4 * FIRST_S)]
    pause.forget()
    assert not pause.is_over(False)
    assert asked[-1] == (FIRST_S / 2, FIRST_S)


def test_no_pause_is_longer_than_the_longest() -> None:
    asked = []
    pause = Pause(lambda: 0.0, lambda low, high: asked.append(high) or high)  # type: ignore[func-returns-value]
    for _ in range(40):
        assert not pause.is_over(False)
        assert pause.is_over(True)
    assert max(asked) == MOST_S
