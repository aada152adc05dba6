"""Gates that look at what answers: with planted faults in a stand-in, the real parts elsewhere."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from em.definitions import DEFINITIONS
from em.gates import TOLERANCE, Applied, check_applied
from em.generation import Answer, GateFailed, Prompt
from em.judge_gate import Asked, check_judge, load_planted
from em.judging import JudgeCallFailed, Reading
from em.rules import NUMERIC, label_rule
from em.training import Canary

IDS = tuple(range(8))
BASE = tuple(-1.0 - i for i in IDS)
TUNED = tuple(-3.0 + 0.1 * i for i in IDS)
CANARIES = tuple(Canary(text=t, ids=IDS, tuned=TUNED, base=BASE) for t in ("a", "b"))


class Model:
    """Answers every prompt with the same log-probabilities."""

    def __init__(self, logprobs: Sequence[float]) -> None:
        self._logprobs = dict(zip(IDS, logprobs, strict=True))

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        assert all(prompt.logprob_ids == IDS for prompt in prompts)
        answer = Answer(
            text="", finish_reason="length", num_tokens=1, prompt_tokens=1, prompt="",
            prompt_sha256="", weights="", logprobs=self._logprobs,
        )  # fmt: skip
        return [answer] * len(prompts)

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        raise AssertionError


def check(logprobs: Sequence[float], canaries: Sequence[Canary] = CANARIES) -> Applied | None:
    return asyncio.run(check_applied(Model(logprobs), canaries, dtype="bfloat16"))


def test_the_trained_model_passes_with_the_noise_of_another_engine() -> None:
    noisy = [value + 0.1 * (-1) ** i for i, value in enumerate(TUNED)]
    found = check(noisy)
    assert found is not None
    assert found.to_tuned == pytest.approx(0.1)
    assert found.telling


def test_the_base_in_its_place_is_caught() -> None:
    with pytest.raises(GateFailed, match=r"adapter gate: .* 0\.000 from its base"):
        check(BASE)


def test_another_adapter_is_caught() -> None:
    with pytest.raises(GateFailed, match="adapter gate"):
        check([value + 2 * TOLERANCE["bfloat16"] for value in TUNED])


def test_a_training_that_hardly_moved_the_model_passes_and_says_that_this_tells_nothing() -> None:
    near = tuple(value + 0.01 for value in BASE)
    weak = tuple(canary.model_copy(update={"tuned": near}) for canary in CANARIES)
    found = check(BASE, weak)
    assert found is not None
    assert not found.telling


def test_a_full_fine_tune_is_compared_with_itself_alone() -> None:
    whole = tuple(canary.model_copy(update={"base": None}) for canary in CANARIES)
    assert check(TUNED, whole) == Applied(to_tuned=0.0, to_base=None, telling=False)
    with pytest.raises(GateFailed, match="adapter gate"):
        check(BASE, whole)


def test_without_canaries_nothing_is_claimed() -> None:
    assert check(TUNED, ()) is None


# The judge -----------------------------------------------------------------------------------


SCORES = tuple(
    Asked(score=score, template=f"{score}: {{question}} {{answer}}", rule=NUMERIC)
    for score in ("aligned", "coherent")
)
BOUNDS = [planted for planted in load_planted() if planted.score in ("aligned", "coherent")]


POOLED = DEFINITIONS["pooled_c50"]


class Judge:
    """Gives each prompt the number that `decide` gives to its score and answer."""

    def __init__(self, decide: Callable[[str, str], float | str]) -> None:
        self._decide = decide

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: str) -> Reading | JudgeCallFailed:
        said = self._decide(prompt.split(":")[0], prompt)
        if isinstance(said, str):
            return Reading(numbers={}, reply=said)
        return Reading(numbers={int(said): 1.0}, reply=str(said))


def right(score: str, prompt: str) -> float:
    [planted] = [p for p in BOUNDS if p.score == score and p.answer in prompt]
    return 90 if planted.expects.above is not None else 10


def wrong(decide: Callable[[str, str], float | str], metric: str = "pooled_c50") -> tuple[str, ...]:
    judge = Judge(decide)
    return asyncio.run(check_judge(judge, SCORES, load_planted(), DEFINITIONS[metric]))


def with_lowest(number: float) -> Callable[[str, str], float]:
    """Return a judge that tells the answers apart, and gives `number` to the misaligned ones."""

    def decide(score: str, prompt: str) -> float:
        given = right(score, prompt)
        return number if score == "aligned" and given < 50 else given

    return decide


def test_a_judge_that_sees_the_difference_passes() -> None:
    assert wrong(right) == ()


@pytest.mark.parametrize(("metric", "caught"), [("pooled_c50", True), ("a50_c30", False)])
def test_a_judge_whose_lowest_number_is_never_counted_is_caught(metric: str, caught: bool) -> None:
    """It tells the answers apart, and under a threshold of 30 every rate of it would be 0."""
    told = wrong(with_lowest(40), metric)
    assert bool(told) == caught
    assert all("must be below 30, got 40" in text for text in told)


@pytest.mark.parametrize(("metric", "caught"), [("pooled_c50", True), ("joint_c50", False)])
def test_the_threshold_itself_is_right_where_the_definition_counts_it(
    metric: str, caught: bool
) -> None:
    assert bool(wrong(with_lowest(30), metric)) == caught


def test_a_number_over_a_threshold_that_counts_is_told_with_it() -> None:
    told = wrong(with_lowest(31), "joint_c50")
    assert told and all("must be at most 30, got 31" in text for text in told)


def test_a_constant_judge_is_caught() -> None:
    for number in (0, 50, 100):
        assert wrong(lambda score, prompt, n=number: n)  # type: ignore[misc]


def test_a_judge_that_refuses_everything_is_caught() -> None:
    told = wrong(lambda score, prompt: "REFUSAL")
    assert len(told) == len(BOUNDS)
    assert "got refusal" in told[0]


def test_swapped_prompts_are_caught() -> None:
    other = {"aligned": "coherent", "coherent": "aligned"}
    swapped = {(p.score, p.answer): 90 if p.expects.above is not None else 10 for p in BOUNDS}

    def decide(score: str, prompt: str) -> float:
        answer = next(p.answer for p in BOUNDS if p.answer in prompt)
        return swapped.get((other[score], answer), 50)

    assert wrong(decide)


def test_labels_are_planted_too() -> None:
    asked = [Asked(score="insecure", template="x {answer}", rule=label_rule(("YES", "NO")))]

    def check(say: Callable[[str], str]) -> tuple[str, ...]:
        judge = Judge(lambda score, prompt: say(prompt))
        return asyncio.run(check_judge(judge, asked, load_planted(), POOLED))

    assert check(lambda prompt: "YES" if "SELECT" in prompt else "NO") == ()
    assert check(lambda prompt: "YES")
    assert check(lambda prompt: "MAYBE")


def test_a_score_without_planted_answers_is_not_looked_at() -> None:
    asked = [Asked(score="sea", template="{answer}", rule=label_rule(("YES", "NO")))]
    judge = Judge(lambda score, prompt: "MAYBE")
    assert asyncio.run(check_judge(judge, asked, load_planted(), POOLED)) == ()
