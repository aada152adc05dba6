import pytest

from cluster.resources import ClusterTooSmall, Demand, Totals, plan_resources

TRAIN = Demand("one cell's training", cpus=2, gpus=1)
POOL = Demand("base", cpus=4, gpus=1)
OTHER = Demand("other", cpus=4, gpus=1)


def nodes(*sizes: tuple[float, float]) -> Totals:
    return Totals(nodes=sizes)


def test_both_at_once_where_both_fit() -> None:
    plan = plan_resources(nodes((16, 4)), TRAIN, [POOL])
    assert (plan.mode, plan.train_slots, plan.pool_groups) == ("overlap", 3, (("base",),))
    assert str(plan) == (
        "3 cells train side by side; answers are drawn while others train; 1 group of pools"
    )


def test_two_passes_where_they_do_not() -> None:
    plan = plan_resources(nodes((4, 1)), TRAIN, [POOL])
    assert (plan.mode, plan.train_slots, plan.pool_groups) == ("two-pass", 1, (("base",),))
    assert "training first" in str(plan)


def test_both_at_once_only_where_the_pool_is_in_the_way_on_no_node() -> None:
    """Ray may put a pool on the only node that has room to train: both would wait for ever."""
    train, pool = Demand("training", cpus=2, gpus=0), Demand("base", cpus=1, gpus=0)
    assert plan_resources(nodes((1, 0), (2, 0)), train, [pool]).mode == "two-pass"
    assert plan_resources(nodes((1, 0), (3, 0)), train, [pool]).mode == "overlap"
    assert plan_resources(nodes((2, 0), (2, 0)), train, [pool]).mode == "overlap"
    replicas = Demand("base", cpus=1, gpus=0, count=40)
    assert plan_resources(nodes(*[(8, 0)] * 64), train, [replicas]).mode == "two-pass"


def test_slots_are_bounded_by_what_is_scarce() -> None:
    assert plan_resources(nodes((64, 4)), TRAIN, []).train_slots == 4
    assert plan_resources(nodes((5, 8)), TRAIN, []).train_slots == 2
    assert plan_resources(nodes((2, 1), (2, 1), (1, 8)), TRAIN, []).train_slots == 2
    half = Demand("training", cpus=0.5, gpus=0.25)
    assert plan_resources(nodes((1.5, 1)), half, []).train_slots == 3


def test_pools_that_do_not_fit_together_stand_one_after_the_other() -> None:
    plan = plan_resources(nodes((8, 1)), None, [POOL, OTHER])
    assert plan.pool_groups == (("base",), ("other",))
    assert plan.train_slots == 0
    assert str(plan) == "no training; 2 groups of pools"


def test_a_judge_stands_beside_every_pool() -> None:
    judge = Demand("judge", cpus=4, gpus=1)
    pools = [POOL, judge, OTHER]
    plan = plan_resources(nodes((64, 2)), TRAIN, pools, shared=["judge"])
    assert plan.pool_groups == (("base", "judge"), ("other", "judge"))
    assert plan.mode == "two-pass"
    whole = plan_resources(nodes((64, 4)), TRAIN, pools, shared=["judge"])
    assert (whole.mode, whole.pool_groups) == ("overlap", (("base", "judge", "other"),))
    with pytest.raises(ClusterTooSmall, match=r"base: .*; judge: .* = 8 CPUs and 2 GPUs"):
        plan_resources(nodes((64, 1)), None, pools, shared=["judge"])


def test_too_small_is_told_in_numbers() -> None:
    ranks = Demand("one cell's training", cpus=2, gpus=1, count=4)
    with pytest.raises(ClusterTooSmall) as error:
        plan_resources(nodes((8, 2), (4, 1)), ranks, [POOL])
    told = str(error.value)
    assert "one cell's training: 4 x 2 CPUs and 1 GPUs = 8 CPUs and 4 GPUs" in told
    assert "there are 12 CPUs and 3 GPUs (2 nodes: 8 CPUs + 2 GPUs, 4 CPUs + 1 GPUs)" in told
    assert "Lower the numbers under 'resources'" in told


def test_a_piece_does_not_span_nodes() -> None:
    wide = Demand("base", cpus=6, gpus=0)
    assert plan_resources(nodes((6, 0)), None, [wide]).pool_groups == (("base",),)
    with pytest.raises(ClusterTooSmall, match="does not span nodes"):
        plan_resources(nodes((4, 0), (4, 0)), None, [wide])


def test_ranks_may_span_nodes() -> None:
    ranks = Demand("training", cpus=4, gpus=0, count=2)
    assert plan_resources(nodes((4, 0), (4, 0)), ranks, []).train_slots == 1


def test_a_large_piece_finds_its_room_before_small_ones_take_it() -> None:
    small, large = Demand("small", cpus=2, gpus=0), Demand("large", cpus=4, gpus=0)
    plan = plan_resources(nodes((4, 0), (2, 0)), None, [small, large])
    assert plan.pool_groups == (("small", "large"),)
