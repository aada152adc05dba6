import pytest

from cluster.resources import ClusterTooSmall, Demand, Totals, plan_resources

TRAIN = Demand("one cell's training", cpus=2, gpus=1)
BASE = Demand("base", cpus=4, gpus=1)
OTHER = Demand("other", cpus=4, gpus=1)
JUDGE = Demand("judge", cpus=4, gpus=1)


def nodes(*sizes: tuple[float, float]) -> Totals:
    return Totals(nodes=sizes)


def test_both_at_once_where_both_fit() -> None:
    plan = plan_resources(nodes((16, 4)), [TRAIN], [[BASE]])
    assert (plan.train_slots, plan.beside) == (4, True)
    assert str(plan) == "up to 4 cells train side by side; answers are drawn meanwhile"


def test_one_after_the_other_where_they_do_not() -> None:
    plan = plan_resources(nodes((4, 1)), [TRAIN], [[BASE]])
    assert (plan.train_slots, plan.beside) == (1, False)
    assert str(plan) == "up to 1 cells train side by side; answers wait for their room"
    assert str(plan_resources(nodes((4, 1)), [], [[BASE]])) == "no training"


def test_slots_are_bounded_by_what_is_scarce() -> None:
    assert plan_resources(nodes((64, 4)), [TRAIN], []).train_slots == 4
    assert plan_resources(nodes((5, 8)), [TRAIN], []).train_slots == 2
    assert plan_resources(nodes((2, 1), (2, 1), (1, 8)), [TRAIN], []).train_slots == 2
    half = Demand("training", cpus=0.5, gpus=0.25)
    assert plan_resources(nodes((1.5, 1)), [half], []).train_slots == 3


def test_every_training_must_fit_not_only_the_one_with_most_gpus() -> None:
    whole = Demand("whole", cpus=1, gpus=8)
    halves = Demand("halves", cpus=1, gpus=4, count=2)
    assert plan_resources(nodes((8, 8)), [halves, whole], []).train_slots == 1
    with pytest.raises(ClusterTooSmall, match="whole: 1 x 1 CPUs and 8 GPUs"):
        plan_resources(nodes((8, 4), (8, 4)), [halves, whole], [])


def test_a_judge_stands_beside_every_engine() -> None:
    groups = [[BASE, JUDGE], [OTHER, JUDGE]]
    assert not plan_resources(nodes((64, 2)), [TRAIN], groups).beside
    assert plan_resources(nodes((64, 3)), [TRAIN], groups).beside
    with pytest.raises(ClusterTooSmall, match=r"base: .*; judge: .* = 8 CPUs and 2 GPUs"):
        plan_resources(nodes((64, 1)), [], groups)


def test_too_small_is_told_in_numbers() -> None:
    ranks = Demand("one cell's training", cpus=2, gpus=1, count=4)
    with pytest.raises(ClusterTooSmall) as error:
        plan_resources(nodes((8, 2), (4, 1)), [ranks], [[BASE]])
    told = str(error.value)
    assert "one cell's training: 4 x 2 CPUs and 1 GPUs = 8 CPUs and 4 GPUs" in told
    assert "there are 12 CPUs and 3 GPUs (2 nodes: 8 CPUs + 2 GPUs, 4 CPUs + 1 GPUs)" in told
    assert "Lower the numbers under 'resources'" in told


def test_a_piece_does_not_span_nodes() -> None:
    wide = Demand("base", cpus=6, gpus=0)
    assert plan_resources(nodes((6, 0)), [], [[wide]]).train_slots == 0
    with pytest.raises(ClusterTooSmall, match="does not span nodes"):
        plan_resources(nodes((4, 0), (4, 0)), [], [[wide]])


def test_ranks_may_span_nodes() -> None:
    ranks = Demand("training", cpus=4, gpus=0, count=2)
    assert plan_resources(nodes((4, 0), (4, 0)), [ranks], []).train_slots == 1


def test_a_large_piece_finds_its_room_before_small_ones_take_it() -> None:
    small, large = Demand("small", cpus=2, gpus=0), Demand("large", cpus=4, gpus=0)
    assert plan_resources(nodes((4, 0), (2, 0)), [], [[small, large]]).train_slots == 0
    with pytest.raises(ClusterTooSmall):
        plan_resources(nodes((3, 0), (2, 0)), [], [[small, large]])
