"""What a sweep's API judges have cost, read from stored judgements, and may still cost.

Kept nowhere else: resumed runs and cells judged side by side add up by themselves.
Knows nothing of how judges are called.
"""

from collections.abc import Iterable, Mapping, Sequence

from em.api_client import check_key
from em.budget import NOTHING, Budget, BudgetConfig, Price, Usage, usage_of
from em.judging import WORD_TOKENS, Judgement, judgement_group
from em.record import Record
from sweeps.few import times
from sweeps.plan import CellPlan, SweepPlan
from sweeps.store import Store


class BudgetPlan(Record):
    """One judge's budget in a sweep, and the streams in which what it spent is found."""

    judge: str
    config: BudgetConfig
    price: Price | None
    streams: tuple[str, ...]


def budget_plans(plan: SweepPlan) -> tuple[BudgetPlan, ...]:
    """Return the budgets of the sweep's judges that have one."""
    return tuple(
        BudgetPlan(
            judge=judge.name,
            config=judge.budget,
            price=plan.prices.get(judge.name),
            streams=judged_streams(plan, judge.name),
        )
        for judge in plan.spec.judges
        if judge.budget is not None
    )


def judged_streams(plan: SweepPlan, judge: str) -> tuple[str, ...]:
    """Return every stream of the sweep that holds judgements of `judge`, each once."""
    judgings = (j for cell in plan.cells for j in cell.judgings if j.judge == judge)
    return tuple(dict.fromkeys(judging.stream for judging in judgings))


def expected(plan: SweepPlan, todo: Iterable[CellPlan], store: Store, judge: str) -> Usage:
    """Return about the most that the missing judgements of `judge` will use.

    Every answer as long as it may be, and four characters of prompt and question a token, which is
    of English; equal answers are not foreseen.
    """
    total = NOTHING
    for cell in todo:
        longest = {e.name: e.sampling.max_tokens for e in cell.evaluations}
        asked = {w.key: len(w.text) for e in cell.evaluations for w, _ in e.asked}
        for judging in (j for j in cell.judgings if j.judge == judge):
            left = store.num_missing("judgements", judging.stream, judging.wanted)
            for wording, templates in judging.templates.items():
                for score, template in templates.items():
                    rule = judging.rule(wording, score)
                    count = left.get(judgement_group(wording, score, template, rule), 0)
                    if rule.kind == "exact":
                        continue
                    prompt = (len(template) + asked[wording]) // 4
                    tokens = prompt + longest[judging.evaluation]
                    total += Usage(
                        calls=count,
                        prompt_tokens=count * tokens,
                        completion_tokens=count * WORD_TOKENS,
                    )
    return total


def foreseen(plan: SweepPlan, todo: Sequence[CellPlan], store: Store) -> list[str]:
    """Return a line for each judge behind an address: what it may still use, and what it lacks."""
    said = []
    for judge in plan.spec.judges:
        if judge.api is None:
            continue
        usage = expected(plan, todo, store, judge.name).times(times(plan))
        spent = Spending(store, judge.name).total(judged_streams(plan, judge.name))
        price = plan.prices.get(judge.name)
        money = f", {usage.usd(price):.2f} USD" if price else ""
        line = (
            f"judge {judge.name}: at most about {usage.calls} calls, {usage.tokens} tokens{money} "
            f"to come; {spent.calls} calls, {spent.tokens} tokens until now"
        )
        try:
            check_key(judge.api, judge.api_key_env)
        except ValueError as error:
            line += f". IT CANNOT RUN YET: {error}"
        said.append(line)
    return said


class Spending:
    """What one judge has spent, by stream; a part is read once, because it never changes."""

    def __init__(self, store: Store, judge: str) -> None:
        self._store, self._judge = store, judge
        self._parts: dict[str, Usage] = {}

    def total(self, streams: Iterable[str]) -> Usage:
        """Return what is spent in `streams`; parts of attempts that did not end count too."""
        return sum((self._part_sums(stream) for stream in streams), start=NOTHING)

    def _part_sums(self, stream: str) -> Usage:
        total = NOTHING
        for part in self._store.all_parts("judgements", stream):
            if part.used is not None:
                total += part.used.get(self._judge, NOTHING)
                continue
            if part.name not in self._parts:
                items = self._store.read_part("judgements", stream, part, Judgement)
                mine = (item for item in items if item.judge == self._judge)
                self._parts[part.name] = usage_of(mine)
            total += self._parts[part.name]
        return total


def open_budgets(plans: Iterable[BudgetPlan], cell: CellPlan, store: Store) -> Mapping[str, Budget]:
    """Return the budgets of the judges of one cell, by name, with what is spent until now."""
    return {plan.judge: _open(plan, cell, store) for plan in plans}


def _open(plan: BudgetPlan, cell: CellPlan, store: Store) -> Budget:
    own = {judging.stream for judging in cell.judgings if judging.judge == plan.judge}
    spending = Spending(store, plan.judge)
    others = [stream for stream in plan.streams if stream not in own]
    return Budget(
        plan.config,
        judge=plan.judge,
        price=plan.price,
        spent=spending.total(own),
        elsewhere=lambda: spending.total(others),
    )
