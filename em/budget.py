"""What judging by an API may cost, and what it has cost: calls, tokens, money.

Knows nothing of servers, or of where what was spent is stored.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from em.judging import Judgement, JudgingStopped
from em.record import Record
from em.told import first_mistake
from em.yaml_files import checked, load_yaml

CHARACTERS_A_TOKEN = 3  # fewer than the usual four: what is not known yet is guessed too high
MILLION = 1_000_000


class BudgetSpent(JudgingStopped):
    """The next call may pass the budget; what was judged is kept."""


class BudgetConfig(Record):
    """Limits on one judge's calls in a sweep, over all its runs; each left out is no limit."""

    calls: int | None = Field(default=None, ge=1, description="prompts that a reply came to")
    tokens: int | None = Field(default=None, ge=1, description="read and written, together")
    usd: float | None = Field(default=None, gt=0, description="by configs/judges/prices.yaml")

    @model_validator(mode="after")
    def _limits_something(self) -> "BudgetConfig":
        if self.calls is None and self.tokens is None and self.usd is None:
            raise ValueError("a budget limits calls, tokens or usd: give at least one")
        return self


class Price(Record):
    """US dollars for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class PriceTable(Record):
    """Prices by the model's name at its API, with the day they were looked up, and where."""

    as_of: str
    source: str
    prices: dict[str, Price]


class Usage(Record):
    """What calls used."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )

    def times(self, share: Fraction) -> "Usage":
        """Return what so many times as many calls use; whole numbers, rounded down."""
        return Usage(
            calls=int(self.calls * share),
            prompt_tokens=int(self.prompt_tokens * share),
            completion_tokens=int(self.completion_tokens * share),
        )

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    def usd(self, price: Price) -> float:
        """Return the money at `price`."""
        spent = self.prompt_tokens * price.input + self.completion_tokens * price.output
        return spent / MILLION


NOTHING = Usage()


def load_prices(path: Path) -> PriceTable:
    """Return the prices in a YAML file. Raises ValueError with the file and the key."""
    data, _ = load_yaml(path)
    try:
        return checked(TypeAdapter(PriceTable), data)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_mistake(error)}") from error


def usage_of(judgements: Iterable[Judgement]) -> Usage:
    """Return what the calls behind `judgements` used; one that shared a call adds nothing."""
    total = NOTHING
    for judgement in judgements:
        if judgement.prompt_tokens is not None:
            total += Usage(
                calls=1,
                prompt_tokens=judgement.prompt_tokens,
                completion_tokens=judgement.completion_tokens or 0,
            )
    return total


def guess(prompt: str, max_tokens: int) -> Usage:
    """Return about the most that one call can use, before it is made."""
    return Usage(
        calls=1,
        prompt_tokens=len(prompt) // CHARACTERS_A_TOKEN + 1,
        completion_tokens=max_tokens,
    )


class Budget:
    """One judge's budget, as one process sees it.

    `spent` is what this process's own judgements had cost before it began; `elsewhere` returns what
    those of other processes cost by now. A call is reserved at a guess that is too high, and
    settled at what it used, so that the limit is not passed by calls under way.
    """

    def __init__(
        self,
        config: BudgetConfig,
        *,
        judge: str,
        price: Price | None = None,
        spent: Usage = NOTHING,
        elsewhere: Callable[[], Usage] = lambda: NOTHING,
    ) -> None:
        self._config, self._judge, self._price = config, judge, price
        self._own, self._elsewhere = spent, elsewhere
        self._others = NOTHING
        self._reserved: list[Usage] = []

    def refresh(self) -> None:
        """Look again at what others have spent."""
        self._others = self._elsewhere()

    @property
    def spent(self) -> Usage:
        """All that is known to be spent."""
        return self._own + self._others

    def reserve(self, wanted: Usage) -> Usage:
        """Take `wanted` out of the budget until it is settled. Raises BudgetSpent."""
        total = sum([*self._reserved, wanted], start=self.spent)
        passed = self._passed(total)
        if passed:
            raise BudgetSpent(
                f"the budget of the judge {self._judge!r} is spent: one more call may pass "
                f"{passed}; {self._told(self.spent)} were used. What was judged is kept. To go on, "
                f"raise judges.{self._judge}.budget in the spec and run 'emsweep resume' on it"
            )
        self._reserved.append(wanted)
        return wanted

    def settle(self, reserved: Usage, used: Usage | None) -> None:
        """Put `used` in the place of what was reserved; None: the call was not made."""
        self._reserved.remove(reserved)
        self._own += used or NOTHING

    def _passed(self, total: Usage) -> str | None:
        limits = self._config
        if limits.calls is not None and total.calls > limits.calls:
            return f"{limits.calls} calls"
        if limits.tokens is not None and total.tokens > limits.tokens:
            return f"{limits.tokens} tokens"
        if limits.usd is not None and self._price and total.usd(self._price) > limits.usd:
            return f"{limits.usd:g} USD"
        return None

    def _told(self, usage: Usage) -> str:
        money = f" ({usage.usd(self._price):.4f} USD)" if self._price else ""
        return f"{usage.calls} calls and {usage.tokens} tokens{money}"
