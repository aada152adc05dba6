"""Budgets of a sweep: spent once, counted over cells and runs, and gone on with."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_sweep import FakeEndpoint, FakeReader, plan, planted_number

from em.budget import Budget, BudgetConfig, BudgetSpent, Price, Usage, guess, load_prices
from em.catalogue import config_dir
from em.judging import JudgeCallFailed, Judgement, Reading
from sweeps.failure_kinds import is_transient
from sweeps.identities import identities
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.spend import Spending, budget_plans, foreseen, judged_streams, open_budgets
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store

API = {"name": "api", "api": "https://judge.example/v1", "api_model": "gpt-4o-2024-08-06"}


class PayingReader(FakeReader):
    """Says 80 to everything, for 10 + 1 tokens a prompt, within a budget."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self._budget = budget

    async def read(self, prompts: Sequence[str]) -> list[Any]:
        self._budget.refresh()
        found: list[Reading | JudgeCallFailed | None] = [None] * len(prompts)
        for place, prompt in enumerate(prompts):
            if planted_number(prompt) is not None:
                [found[place]] = await super().read([prompt])
                continue
            wanted = guess(prompt, 1)
            try:
                self._budget.reserve(wanted)
            except BudgetSpent as error:
                error.readings = found
                raise
            (reading,) = await super().read([prompt])
            assert isinstance(reading, Reading)
            used = {"prompt_tokens": 10, "completion_tokens": 1}
            found[place] = reading.model_copy(update=used)
            self._budget.settle(wanted, Usage(calls=1, **used))
        return [reading for reading in found if reading is not None]


def sweep(folder: Path, **budget: Any) -> SweepPlan:
    return plan(folder, judges=[API | {"budget": budget}])


def carry_out(sweep: SweepPlan, cell: CellPlan, store: Store) -> int:
    """Answer and judge one cell of `sweep`; return how many prompts the judge read."""
    reader = PayingReader(open_budgets(budget_plans(sweep), cell, store)["api"])
    try:
        asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
        asyncio.run(judge_stage(cell, store, {"api": reader}))
    except ExceptionGroup as errors:
        (error,) = errors.exceptions
        assert isinstance(error, BudgetSpent)
        assert not is_transient(errors)
    return len(reader.prompts)


def test_a_budget_is_one_over_cells_and_runs_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    """Each untuned cell needs 14 calls; 20 are allowed, and then 28."""
    store = Store(str(tmp_path / "store"))
    few = sweep(tmp_path, calls=20)
    first, second = (cell for cell in few.cells if cell.cell.training is None)
    assert carry_out(few, first, store) == 14
    assert carry_out(few, second, store) == 6
    assert stages_to_run(second, store) == ["judge"]
    assert carry_out(few, second, store) == 0  # nothing is left, and nothing is lost
    spent = Spending(store, "api").total(judged_streams(few, "api"))
    assert spent == Usage(calls=20, prompt_tokens=200, completion_tokens=20)
    told = identities(few, store)["spent by judges behind an address"]
    paid = {"calls": 20, "prompt_tokens": 200, "completion_tokens": 20, "usd": 0.0007}
    assert told == {"api": paid}
    more = sweep(tmp_path, calls=28)
    assert carry_out(more, second, store) == 8
    assert stages_to_run(second, store) == []
    found = store.read_stream("judgements", second.judgings[0].stream, Judgement)
    assert len(found) == 14


def test_what_was_spent_is_told_by_records_without_reading_answers(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    ours = sweep(tmp_path, calls=50)
    carry_out(ours, ours.cells[0], store)
    for part in Path(store.url).glob("judgements/*/part-*"):
        part.unlink()
    assert Spending(store, "api").total(judged_streams(ours, "api")).calls == 14


def test_another_judges_calls_are_not_in_the_budget(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    mine = sweep(tmp_path, calls=14)
    carry_out(mine, mine.cells[0], store)
    assert Spending(store, "other").total(judged_streams(mine, "api")) == Usage()


def test_the_plan_says_what_is_to_come_what_was_spent_and_that_a_key_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    store = Store(str(tmp_path / "store"))
    ours = sweep(tmp_path, usd=5)
    (line,) = foreseen(ours, ours.cells, store)
    assert "at most about 56 calls" in line  # 4 cells, 7 responses, 2 scores
    assert "USD to come; 0 calls, 0 tokens until now" in line
    assert "OPENAI_API_KEY is not set" in line
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    carry_out(ours, ours.cells[0], store)
    (line,) = foreseen(ours, ours.cells, store)
    assert "at most about 42 calls" in line
    assert "14 calls, 154 tokens until now" in line
    assert "CANNOT" not in line


def test_a_budget_in_money_needs_a_price(tmp_path: Path) -> None:
    assert sweep(tmp_path, usd=5).prices == {"api": Price(input=2.5, output=10)}
    assert sweep(tmp_path, tokens=5).prices == {"api": Price(input=2.5, output=10)}
    assert plan(tmp_path, judges=[API | {"api_model": "nobody's"}]).prices == {}
    unknown = API | {"api_model": "nobody's", "budget": {"usd": 5}}
    with pytest.raises(ValueError, match='has no price for "nobody\'s"'):
        plan(tmp_path, judges=[unknown])
    (tmp_path / "prices.yaml").write_text(
        "as_of: '2026-01-01'\nsource: us\nprices: {nobody's: {input: 1, output: 2}}\n"
    )
    assert plan(tmp_path, judges=[unknown]).prices == {"api": Price(input=1, output=2)}
    (tmp_path / "prices.yaml").write_text(
        "as_of: '2026-01-01'\nsource: us\nprices: {a: {input: 1}}"
    )
    with pytest.raises(ValueError, match=r"prices\.yaml: prices\.a\.output: Field required"):
        plan(tmp_path, judges=[unknown])


def test_the_price_table_says_its_day_and_source() -> None:
    table = load_prices(config_dir() / "judges" / "prices.yaml")
    assert table.as_of
    assert table.source.startswith("https://")
    assert "gpt-4o-2024-08-06" in table.prices


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget": {}}, "give at least one"),
        ({"budget": {"calls": 0}}, "greater than or equal to 1"),
        ({"api": None, "api_model": None, "pool": "base", "budget": {"calls": 1}}, "budget is for"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        plan(tmp_path, judges=[API | changes])


def test_a_call_is_reserved_at_a_guess_and_settled_at_what_it_used() -> None:
    budget = Budget(BudgetConfig(tokens=100), judge="j")
    first = budget.reserve(Usage(calls=1, prompt_tokens=60))
    with pytest.raises(BudgetSpent, match="one more call may pass 100 tokens"):
        budget.reserve(Usage(calls=1, prompt_tokens=60))
    budget.settle(first, Usage(calls=1, prompt_tokens=20))
    second = budget.reserve(Usage(calls=1, prompt_tokens=60))
    budget.settle(second, None)  # it was not made
    assert budget.spent == Usage(calls=1, prompt_tokens=20)
