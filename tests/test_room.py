from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.resources import Demand, Totals
from cluster.room import Room

ONE = Demand("one", cpus=1, gpus=1)


def room(*sizes: tuple[float, float]) -> Room:
    return Room(Totals(nodes=sizes))


def gpus(name: str, each: float, count: int = 1) -> Demand:
    return Demand(name, cpus=0, gpus=each, count=count)


def test_what_is_taken_is_given_back() -> None:
    here = room((8, 2))
    assert here.take({"a": ONE, "b": ONE})
    assert here.left == [(6, 0)]
    assert not here.take({"c": ONE})
    here.free("a")
    here.free("a")
    here.free("never there")
    assert here.left == [(7, 1)]
    assert here.take({"c": ONE})


def test_all_or_none() -> None:
    here = room((8, 2))
    assert not here.take({"a": ONE, "b": gpus("b", 2)})
    assert here.left == [(8, 2)]


def test_a_piece_does_not_span_nodes_but_pieces_do() -> None:
    assert not room((8, 1), (8, 1)).take({"a": gpus("a", 2)})
    assert room((8, 1), (8, 1)).take({"a": gpus("a", 1, count=2)})


def test_pieces_go_together_where_one_node_has_room() -> None:
    here = room((8, 1), (8, 4))
    assert here.take({"a": gpus("a", 1, count=2)})
    assert here.left == [(8, 1), (8, 2)]


def test_small_pieces_leave_nodes_whole() -> None:
    here = room((8, 4), (8, 3), (8, 4))
    assert here.take({"a": gpus("a", 1)})
    assert here.left == [(8, 4), (8, 2), (8, 4)]


def test_parts_of_a_gpu_add_up() -> None:
    here = room((8, 1))
    assert here.take({str(n): gpus("part", 0.1) for n in range(10)})
    assert not here.take({"more": gpus("part", 0.1)})


def test_a_node_is_kept_for_what_several_must_end_for() -> None:
    here = room((8, 4), (8, 4))
    assert here.take({str(n): gpus("small", 1) for n in range(8)})
    large = gpus("large", 4)
    here.free(here.on(0)[0])
    assert not here.take({"large": large})
    here.keep_for([large])
    assert not here.take({"another": gpus("small", 1)})
    here.free(here.on(1)[0])
    assert here.take({"another": gpus("small", 1)})  # on the other node
    for name in here.on(0):
        here.free(name)
    assert not here.would_fit([gpus("small", 1)], without=[])
    assert here.would_fit([large], without=[])
    assert here.take({"large": large})


def test_nothing_is_kept_where_any_end_is_enough() -> None:
    """Two GPUs each, one left over: whoever ends, the next has room, and the fifth is of use."""
    here = room((8, 5))
    two = gpus("two", 2)
    assert here.take({"a": two, "b": two})
    here.keep_for([two])
    assert here.take({"small": ONE})


def test_nothing_is_kept_for_what_never_fits() -> None:
    here = room((8, 2))
    assert here.take({"a": ONE})
    here.keep_for([gpus("huge", 3)])
    assert here.take({"b": ONE})


def test_as_many_nodes_are_kept_as_are_needed() -> None:
    here = room((8, 2), (8, 2), (8, 2))
    assert here.take({str(n): ONE for n in range(6)})
    for node in range(3):
        here.free(here.on(node)[0])
    both = gpus("both", 2, count=2)
    assert not here.take({"both": both})
    here.keep_for([both])
    assert here.take({"x": ONE})
    assert not here.take({"y": ONE})


def test_a_node_is_kept_where_least_is_there_to_stay() -> None:
    here = room((8, 2), (8, 2))
    assert here.take({"engine": ONE}, lasting=True)
    assert here.take({str(n): ONE for n in range(3)})
    here.free("0")
    assert here.left == [(7, 1), (6, 0)]
    here.keep_for([gpus("large", 2)])
    assert here.take({"more": ONE})


def test_who_would_fit_if_others_went() -> None:
    here = room((8, 2))
    assert here.take({"a": ONE, "b": ONE})
    assert not here.would_fit([ONE], without=[])
    assert here.would_fit([ONE], without=["a"])
    assert not here.would_fit([ONE, ONE], without=["a"])
    assert here.would_fit([ONE, ONE], without=["a", "b"])
    assert here.left == [(6, 0)]


def test_a_node_that_went_is_the_emptiest_of_its_size() -> None:
    here = room((8, 2), (8, 2), (8, 4))
    assert here.take({"a": ONE, "b": ONE, "c": gpus("c", 4)})
    assert sorted(here.left) == [(6, 0), (8, 0), (8, 2)]
    here.set_totals(Totals(nodes=((8, 2), (8, 4))))
    assert here.left == [(6, 0), (8, 0)]
    here.set_totals(Totals(nodes=((8, 2), (8, 4), (8, 2))))
    assert here.left == [(6, 0), (8, 0), (8, 2)]


def test_what_is_still_said_to_be_on_a_lost_node_takes_room_elsewhere() -> None:
    here = room((8, 2), (8, 2))
    assert here.take({"a": gpus("a", 2), "b": ONE})
    here.set_totals(Totals(nodes=((8, 2),)))
    assert here.left == [(7, -1)]
    assert not here.take({"c": ONE})
    here.free("a")
    assert here.take({"c": ONE})


def test_a_cluster_may_lose_all_its_nodes() -> None:
    here = room((8, 2))
    assert here.take({"a": ONE})
    here.set_totals(Totals(nodes=()))
    assert not here.take({"b": ONE})
    here.keep_for([ONE])
    here.free("a")
    here.set_totals(Totals(nodes=((8, 2),)))
    assert here.take({"b": ONE})


sizes = st.lists(
    st.tuples(st.integers(1, 16).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=4
)
demands = st.builds(
    Demand,
    st.sampled_from(["a", "b"]),
    cpus=st.integers(0, 4).map(float),
    gpus=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]),
    count=st.integers(1, 3),
)


@given(sizes, st.lists(st.tuples(st.integers(0, 3), demands), max_size=30))
def test_never_more_is_held_than_there_is(
    nodes: list[tuple[float, float]], steps: list[tuple[int, Any]]
) -> None:
    here, names = Room(Totals(nodes=tuple(nodes))), list[str]()
    for number, (what, demand) in enumerate(steps):
        if what == 0 and names:
            here.free(names.pop())
        elif what == 1:
            here.keep_for([demand])
        elif what == 2:
            here.keep_none()
        else:
            fits = here.would_fit([demand], without=[])
            assert here.take({str(number): demand}) == fits
            names += [str(number)] * fits
        assert all(cpus >= -1e-6 and gpus >= -1e-6 for cpus, gpus in here.left)
    for name in names:
        here.free(name)
    assert here.left == nodes


def test_what_found_no_place_when_its_node_went_has_one_once_another_ends() -> None:
    room = Room(Totals(nodes=((9.0, 1.0),) * 3))
    for name in "abc":
        assert room.take({name: Demand(name, cpus=1, gpus=1)})
    room.set_totals(Totals(nodes=((9.0, 1.0),) * 2))
    assert sorted(gpus for _, gpus in room.left) == [-1, 0]
    (alone,) = (room.on(n) for n in range(2) if len(room.on(n)) == 1)
    room.free(alone[0])
    assert [gpus for _, gpus in room.left] == [0, 0]
    assert not room.take({"d": Demand("d", cpus=1, gpus=1)})
    for name in "abc":
        room.free(name)
    assert room.left == [(9.0, 1.0)] * 2
