"""What models behind an API have cost in a sweep, read from the store, and may still cost.

Money only: tokens are counted by the API. Knows nothing of how the API is spoken to.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from em.api_client import check_key
from em.api_models import (
    CHARACTERS_A_TOKEN,
    ApiChatConfig,
    ApiModelConfig,
    KnownApiModel,
    known_api_model,
)
from em.budget import CHARACTERS_A_TOKEN as FEWEST_CHARACTERS
from em.generation import Answer, AskingStopped, Endpoint, Prompt
from em.models import ModelConfig
from em.record import Record
from sweeps.few import times
from sweeps.plan import CellPlan, SweepPlan
from sweeps.store import KEY_DIGITS, Store


class ApiBudgetSpent(ValueError):
    """What comes next may pass the model's budget; what is paid for is kept."""


class ApiJob(Record):
    """A job that was asked of an API for a training; `job_id` is None while it is being made.

    `usd` is about what it costs, None where no price is known. `told` says that its end without a
    model has been told as the cell's failure: who asks again wants another job. `over` are the
    cell's jobs before it.
    """

    job_id: str | None
    usd: float | None
    started: float
    told: bool = False
    over: tuple[str, ...] = ()


class PursePlan(Record):
    """A model's budget in a sweep, and where what it has cost is found.

    `streams` are (stream, whether it is of a tuned model).
    """

    model: str
    config: ApiModelConfig
    trainings: tuple[str, ...]
    streams: tuple[tuple[str, bool], ...]


class _Told(Record):
    """The columns of a response that cost money."""

    prompt_tokens: int
    num_tokens: int


def job_place(training_key: str) -> str:
    """Return where a training's job is noted in the store."""
    return f"training/{training_key[:KEY_DIGITS]}/api-job.json"


def purse_plan(plan: SweepPlan, model: ModelConfig) -> PursePlan:
    """Return the budget of a model behind an API."""
    assert model.api is not None
    mine = [cell for cell in plan.cells if cell.cell.model.name == model.name]
    tuned = (cell.training_key for cell in mine if cell.cell.training is not None)
    streams = (
        (e.stream, cell.cell.training is not None) for cell in mine for e in cell.evaluations
    )
    return PursePlan(
        model=model.name,
        config=model.api,
        trainings=tuple(dict.fromkeys(tuned)),
        streams=tuple(dict.fromkeys(streams)),
    )


def purse_plans(plan: SweepPlan) -> tuple[PursePlan, ...]:
    """Return the budgets of all models behind an API, those without a limit, too."""
    return tuple(purse_plan(plan, model) for model in plan.spec.models if model.api is not None)


class Purse:
    """What one model may cost, as this process sees it. May be used by several threads.

    Money is taken out before it is spent, at a guess that is too high where nothing better is
    known. Without a limit, or a price, everything is let pass.
    """

    def __init__(
        self, config: ApiChatConfig, whose: str, spent: Callable[[KnownApiModel], float]
    ) -> None:
        """Ask `spent` for what is spent until now, where there is a limit."""
        self._limit, self._whose = config.budget_usd, whose
        self.known = known_api_model(config)
        self._lock = threading.Lock()
        limited = self._limit is not None and self.known is not None
        self._spent = spent(self.known) if limited and self.known else 0.0
        self._taken = 0.0

    def take(self, usd: float, what: str) -> None:
        """Take out what `what` may cost. Raises ApiBudgetSpent where the limit may be passed."""
        with self._lock:
            gone = self._spent + self._taken
            if self._limit is not None and gone + usd > self._limit:
                raise ApiBudgetSpent(
                    f"the budget of the {self._whose} is spent: {what} may cost {usd:.2f} USD, and "
                    f"of {self._limit:g} USD {gone:.2f} are spent or under way. What is there is "
                    f"kept. To go on, raise budget_usd of the {self._whose} in the spec and run "
                    "'emsweep resume' on it"
                )
            self._taken += usd

    def put_back(self, taken: float, spent: float) -> None:
        """Count `spent` in the place of what was taken out."""
        with self._lock:
            self._taken -= taken
            self._spent += spent


def open_purse(plan: PursePlan, store: Store) -> Purse:
    """Return a model's purse, with what is spent until now."""
    return Purse(plan.config, f"model {plan.model!r}", partial(spent_usd, plan, store))


class PaidEndpoint:
    """An endpoint whose answers come out of a purse."""

    def __init__(
        self,
        endpoint: Endpoint,
        purse: Purse,
        *,
        at_once: int,
        tuned: bool = False,
        batch: bool = False,
    ) -> None:
        """Take money out for `at_once` calls at most: those that wait for their turn cost nothing.

        `tuned` and `batch` bear on the price.
        """
        self._endpoint, self._purse = endpoint, purse
        self._slots = asyncio.Semaphore(at_once)
        self._tuned, self._batch = tuned, batch

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return what the endpoint returns. Raises ApiBudgetSpent before what may cost too much."""
        async with self._slots:
            return await self._ask(prompts)

    async def _ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        most = self._usd(
            sum(
                len(message["content"]) // FEWEST_CHARACTERS + 1
                for prompt in prompts
                for message in prompt.messages
            ),
            sum(prompt.max_tokens for prompt in prompts),
        )
        self._purse.take(most, f"{len(prompts)} answers")
        spent = most  # after another error nobody knows what was paid for
        try:
            answers = await self._endpoint.ask(prompts)
            spent = self._cost(answers)
        except AskingStopped as stopped:
            spent = self._cost(answer for answer in stopped.answers if answer is not None)
            raise
        finally:
            self._purse.put_back(most, spent)
        return answers

    def _cost(self, answers: Iterable[Answer]) -> float:
        used = [(answer.prompt_tokens, answer.num_tokens) for answer in answers]
        return self._usd(sum(read for read, _ in used), sum(wrote for _, wrote in used))

    def _usd(self, read: int, written: int) -> float:
        known = self._purse.known
        if known is None:
            return 0.0
        return known.answer_usd(read, written, tuned=self._tuned, batch=self._batch)


def spent_usd(plan: PursePlan, store: Store, known: KnownApiModel) -> float:
    """Return what the trainings and responses in the store have cost, and jobs under way may."""
    total = 0.0
    for key in plan.trainings:
        record = store.training(key)
        if record is not None:
            total += known.training_usd(record.result.num_tokens * plan.config.training.epochs)
        elif job := store.files.read_note(job_place(key), ApiJob):
            total += job.usd or 0.0
    for stream, tuned in plan.streams:
        for part in store.all_parts("responses", stream):
            items = store.read_part("responses", stream, part, _Told, tuple(_Told.model_fields))
            total += known.answer_usd(
                sum(item.prompt_tokens for item in items),
                sum(item.num_tokens for item in items),
                tuned=tuned,
                batch=plan.config.batch,
            )
    return total


def training_tokens(cell: CellPlan) -> int:
    """Return about the most tokens that a training is billed: of its text, over all epochs."""
    epochs = cell.cell.training.epochs if cell.cell.training else 0
    return round(cell.num_characters * epochs / FEWEST_CHARACTERS)


def foreseen_of_models(plan: SweepPlan, todo: Sequence[CellPlan], store: Store) -> list[str]:
    """Return a line for each model behind an API: what it may still cost, and what it lacks."""
    said = []
    for purse in purse_plans(plan):
        known = known_api_model(purse.config)
        mine = [cell for cell in todo if cell.cell.model.name == purse.model]
        lacking = {
            cell.training_key: cell
            for cell in mine
            if cell.cell.training is not None and store.training(cell.training_key) is None
        }
        tokens = sum(map(training_tokens, lacking.values()))
        answers, usd = _answers_left(mine, purse.config, known, store)
        share = float(times(plan))
        line = (
            f"model {purse.model}: {round(len(lacking) * share)} trainings at "
            f"{purse.config.url} on about {round(tokens * share):,} tokens; "
            f"{round(answers * share):,} answers"
        )
        if known is None:
            line += "; no price is known for this address"
        else:
            training = share * known.training_usd(tokens)
            until_now = spent_usd(purse, store, known)
            line += (
                f"; at most about {training + share * usd:,.2f} USD to come ({training:,.2f} of it "
                f"for training), {until_now:,.2f} USD until now"
            )
            limit = purse.config.budget_usd
            line += f", of a budget of {limit:g} USD" if limit is not None else ""
        try:
            check_key(purse.config.url, purse.config.key_env, who="model", setting="key_env")
        except ValueError as error:
            line += f". IT CANNOT RUN YET: {error}"
        said.append(line)
    return said


def _answers_left(
    cells: Sequence[CellPlan], config: ApiModelConfig, known: KnownApiModel | None, store: Store
) -> tuple[int, float]:
    """Return how many answers are missing, and dollars if each is as long as it may be."""
    answers, usd = 0, 0.0
    for cell in cells:
        for evaluation in cell.evaluations:
            left = store.num_missing("responses", evaluation.stream, evaluation.wanted)
            length = {
                w.key: (len(w.user) + len(w.system or "")) // CHARACTERS_A_TOKEN
                for w, _ in evaluation.asked
            }
            num = sum(left.values())
            answers += num
            if known is not None:
                usd += known.answer_usd(
                    sum(count * length[key] for key, count in left.items()),
                    num * evaluation.longest,
                    tuned=cell.cell.training is not None,
                    batch=config.batch,
                )
    return answers, usd
