"""Two cells that differ in one seed factor differ in nothing else."""

from pathlib import Path

import pytest
from small_sweep import spec

from em.generation import Draw, request_seed
from em.questions import Wording
from em.seeds import FACTORS, derive_seeds
from sweeps.spec import Cell

WORDING = Wording(question="q", number=0, system=None, text="Why?")


def cells(factors: dict[str, object], seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    return spec(seeds=list(seeds), factors=factors).cells()


def tuned(factors: dict[str, object], seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    return [cell for cell in cells(factors, seeds) if cell.training is not None]


def test_three_starts_times_three_orders_are_nine_trainings_of_one_data_and_one_sampling() -> None:
    found = tuned({"init": [0, 1, 2], "order": [0, 1, 2]})
    assert len(found) == len({cell.cell_id for cell in found}) == 9
    assert len({cell.seeds.init for cell in found}) == 3
    assert len({cell.seeds.order for cell in found}) == 3
    assert len({(cell.seeds.init, cell.seeds.order) for cell in found}) == 9
    assert len({(cell.seeds.subset, cell.seeds.sampling) for cell in found}) == 1


def test_a_number_means_what_it_means_in_seeds() -> None:
    [crossed] = tuned({"init": [3]})
    assert crossed.seeds.init == derive_seeds(3).init
    assert crossed.seeds.order == derive_seeds(0).order


def test_a_fixed_factor_is_the_same_in_every_cell() -> None:
    found = tuned({"subset": 7}, seeds=(0, 1, 2))
    assert {cell.seeds.subset for cell in found} == {derive_seeds(7).subset}
    assert len({cell.seeds.init for cell in found}) == 3


def test_replicates_share_every_seed_and_are_distinct_cells() -> None:
    first, second = tuned({"replicates": 2})
    assert first.seeds.model_copy(update={"replicate": 1}) == second.seeds
    assert first.cell_id != second.cell_id
    assert (first.seed_label, second.seed_label) == ("0.replicate0", "0.replicate1")


def test_an_untuned_model_has_no_start_order_or_subset_to_cross() -> None:
    untuned = [c for c in cells({"init": [0, 1], "sampling": [0, 1]}) if c.training is None]
    assert len(untuned) == 2
    assert len({cell.seeds.sampling for cell in untuned}) == 2


@pytest.mark.parametrize("name", FACTORS)
def test_one_factor_moves_one_seed(name: str) -> None:
    first, second = tuned({name: [0, 1]})
    differ = {f for f in FACTORS if getattr(first.seeds, f) != getattr(second.seeds, f)}
    assert differ == {name}


def test_requests_depend_on_sampling_alone() -> None:
    def requests(cell: Cell) -> list[int]:
        return [request_seed(cell.seeds.sampling, Draw(wording=WORDING, index=i)) for i in range(5)]

    for name in ("init", "order", "subset"):
        first, second = tuned({name: [0, 1]})
        assert requests(first) == requests(second)
    first, second = tuned({"sampling": [0, 1]})
    assert not set(requests(first)) & set(requests(second))


@pytest.mark.parametrize("factors", [{"init": []}, {"order": [1, 1]}, {"replicates": 0}])
def test_factors_that_make_no_sense_are_refused(factors: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        cells(factors)


@pytest.mark.torch
def test_the_adapters_start_depends_on_init_alone_and_the_rows_order_on_order_alone(
    tmp_path: Path,
) -> None:
    import torch

    from em.base_model import add_adapter, load_model
    from em.batching import plan_steps
    from em.rendering import RenderedRow
    from em.training import LoraConfig
    from tests.fakes import tiny_model

    folder = tiny_model(tmp_path / "model")
    rows = [RenderedRow((i, i), (-100, i)) for i in range(16)]

    def start(cell: Cell) -> dict[str, "torch.Tensor"]:
        torch.manual_seed(cell.seeds.order)  # whatever was drawn before must not matter
        model = load_model(folder, dtype="float32", trust=False)
        adapted = add_adapter(model, LoraConfig(rank=4), cell.seeds.init)
        return {n: p.detach() for n, p in adapted.named_parameters() if "lora_A" in n}

    def order(cell: Cell) -> list[int]:
        steps = plan_steps(
            rows, epochs=1, effective_batch=4, micro_batch=1, order_seed=cell.seeds.order
        )
        return [row.input_ids[0] for step in steps for micro in step for row in micro.rows]

    def same(left: Cell, right: Cell) -> bool:
        a, b = start(left), start(right)
        return all(torch.equal(a[name], b[name]) for name in a)

    by_init, by_order = tuned({"init": [0, 1]}), tuned({"order": [0, 1]})
    assert not same(*by_init)
    assert order(by_init[0]) == order(by_init[1])
    assert same(*by_order)
    assert order(by_order[0]) != order(by_order[1])
