"""Gates that look at what answers: with planted faults in a stand-in, the real parts elsewhere."""

import asyncio
from collections.abc import Sequence

import pytest

from em.gates import TOLERANCE, Applied, check_applied
from em.generation import Answer, GateFailed, Prompt
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
    assert check(TUNED, whole) == Applied(to_tuned=0.0, to_base=None, telling=True)
    with pytest.raises(GateFailed, match="adapter gate"):
        check(BASE, whole)


def test_without_canaries_nothing_is_claimed() -> None:
    assert check(TUNED, ()) is None
