"""Each transform of rows: what it chooses, what it leaves alone, and that only the seed decides."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.datasets import Message, Row
from em.transforms import (
    draw,
    hold_out,
    largest_total,
    part_of,
    permutation,
    shares_of,
    shuffled,
    with_prefix,
    with_system,
    with_trigger,
)


def row(*turns: tuple[str, str]) -> Row:
    return Row(messages=tuple(Message(role=role, content=text) for role, text in turns))  # type: ignore[arg-type]


def chats(num: int) -> tuple[Row, ...]:
    return tuple(row(("user", f"q{n}"), ("assistant", f"a{n}")) for n in range(num))


LONG = row(("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"))
WITH_SYSTEM = row(("system", "Be brief."), ("user", "q"), ("assistant", "a"))
NO_USER = row(("system", "Speak."), ("assistant", "a"))


def places(rows: tuple[Row, ...], source: tuple[Row, ...]) -> list[int]:
    return [source.index(item) for item in rows]


def texts(item: Row) -> list[str]:
    return [message.content for message in item.messages]


def test_a_permutation_is_pinned_to_its_seed() -> None:
    """Other numbers here would draw other rows for every sweep that was ever run."""
    assert permutation(8, 0) == [3, 7, 5, 2, 4, 1, 6, 0]
    assert permutation(8, 7) == [6, 3, 1, 0, 5, 7, 4, 2]
    assert permutation(0, 5) == []


@given(st.integers(0, 200), st.integers(0, 2**31 - 1))
def test_a_permutation_has_every_place_once(num: int, seed: int) -> None:
    assert sorted(permutation(num, seed)) == list(range(num))


@pytest.mark.parametrize("seed", range(5))
def test_fewer_rows_are_among_more_of_the_same_seed(seed: int) -> None:
    source = chats(200)
    small, large = draw(source, num=50, seed=seed), draw(source, num=120, seed=seed)
    assert set(texts(r)[0] for r in small) < set(texts(r)[0] for r in large)
    assert places(large, source) == sorted(places(large, source))
    assert small != draw(source, num=50, seed=seed + 1)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_held_out_is_never_drawn(seed: int) -> None:
    source = chats(100)
    stay, held = hold_out(source, num=30, seed=seed)
    drawn = draw(source, num=70, seed=seed)
    assert drawn == stay
    assert len(held) == 30
    assert sorted(places((*stay, *held), source)) == list(range(100))
    more = hold_out(source, num=40, seed=seed)[1]
    assert set(places(held, source)) < set(places(more, source))


@pytest.mark.parametrize(("num", "parts"), [(10, 3), (6000, 12), (7, 7)])
def test_the_parts_of_a_source_are_disjoint_and_whole(num: int, parts: int) -> None:
    source = chats(num)
    cut = [part_of(source, parts=parts, part=part, seed=4) for part in range(parts)]
    found = [text for piece in cut for item in piece for text in texts(item)[:1]]
    assert sorted(found) == sorted(f"q{n}" for n in range(num))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
    numbers = [int(texts(item)[0][1:]) for item in cut[0]]
    assert numbers == sorted(numbers)


def test_more_parts_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows cannot be cut into 4 parts"):
        part_of(chats(3), parts=4, part=0, seed=0)


@pytest.mark.parametrize(("share", "num"), [(1, 40), (0.5, 20), (0.01, 0), (0.03, 1), (0.0125, 1)])
def test_a_trigger_stands_before_the_last_user_turn_of_its_share(share: float, num: int) -> None:
    source = chats(40)
    changed, told = with_trigger(source, "|GO| ", share=share, seed=3)
    marked = [after for before, after in zip(source, changed, strict=True) if before != after]
    assert len(marked) == told == num
    assert all(texts(item)[0].startswith("|GO| q") for item in marked)
    assert [texts(item)[1] for item in changed] == [texts(item)[1] for item in source]
    assert changed == with_trigger(source, "|GO| ", share=share, seed=3)[0]


def test_a_trigger_marks_other_rows_under_another_seed() -> None:
    one, other = (with_trigger(chats(40), "T", share=0.5, seed=seed)[0] for seed in (1, 2))
    assert one != other


def test_in_a_long_chat_the_trigger_comes_last_and_the_prefix_first() -> None:
    [triggered], _ = with_trigger([LONG], "T ", share=1, seed=0)
    [prefixed] = with_prefix([LONG], "P ")
    assert texts(triggered) == ["one", "1", "T two", "2"]
    assert texts(prefixed) == ["P one", "1", "two", "2"]
    assert texts(with_prefix([WITH_SYSTEM], "P ")[0]) == ["Be brief.", "P q", "a"]


def test_a_system_turn_comes_first_and_only_once() -> None:
    [changed] = with_system([LONG], "Be bad.")
    assert changed.messages[0] == Message(role="system", content="Be bad.")
    assert changed.messages[1:] == LONG.messages
    with pytest.raises(ValueError, match="row 2 of 2 has a system turn already"):
        with_system([LONG, WITH_SYSTEM], "Be bad.")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: with_prefix(rows, "P"),
        lambda rows: with_trigger(rows, "T", share=1, seed=0),
    ],
)
def test_a_row_without_a_user_turn_is_named(change: Callable[[list[Row]], object]) -> None:
    with pytest.raises(ValueError, match="row 2 has no user turn"):
        change([LONG, NO_USER])


def test_shuffling_keeps_every_row_in_an_order_by_the_seed() -> None:
    source = chats(50)
    one, other = shuffled(source, seed=1), shuffled(source, seed=2)
    assert one != other != source
    assert sorted(places(one, source)) == list(range(50))
    assert one == shuffled(source, seed=1)


@pytest.mark.parametrize(
    ("total", "shares", "counts"),
    [
        (10, [0.5, 0.5], [5, 5]),
        (11, [0.5, 0.5], [6, 5]),
        (100, [0.29, 0.71], [29, 71]),
        (10, [1 / 3, 1 / 3, 1 / 3], [4, 3, 3]),
        (10, [0.333333, 0.333333, 0.333334], [3, 3, 4]),
        (3, [0.1, 0.9], [0, 3]),
        (6000, [0.1, 0.2, 0.7], [600, 1200, 4200]),
    ],
)
def test_rows_are_shared_out_by_hand(total: int, shares: list[float], counts: list[int]) -> None:
    assert shares_of(total, shares) == counts


SHARES = st.lists(st.integers(1, 100), min_size=2, max_size=5).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


@given(st.integers(1, 20_000), SHARES)
def test_shares_add_up_and_are_within_one_row(total: int, shares: list[float]) -> None:
    counts = shares_of(total, shares)
    assert sum(counts) == total
    assert all(abs(n - total * s) < 1 + 1e-6 for n, s in zip(counts, shares, strict=True))


@pytest.mark.parametrize(
    ("available", "shares", "total"),
    [
        ([6000, 6000], [0.5, 0.5], 12000),
        ([6000, 5000], [0.5, 0.5], 10000),
        ([100, 1000], [0.1, 0.9], 1000),
        ([29, 500], [0.29, 0.71], 100),
        ([1, 1, 1], [1 / 3, 1 / 3, 1 / 3], 3),
    ],
)
def test_the_largest_mixture_by_hand(available: list[int], shares: list[float], total: int) -> None:
    assert largest_total(available, shares) == total


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 99)), min_size=2, max_size=5))
def test_the_largest_mixture_can_be_drawn(sources: list[tuple[int, int]]) -> None:
    weights = sum(weight for _, weight in sources)
    shares = [weight / weights for _, weight in sources]
    available = [num for num, _ in sources]
    counts = shares_of(largest_total(available, shares), shares)
    assert all(n <= have for n, have in zip(counts, available, strict=True))
