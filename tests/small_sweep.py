"""A sweep small enough to plan in a test, and stand-ins for the models and judges it asks.

Everything is passed as an argument; knows nothing of what a test does with it.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em.generation import Answer, Prompt
from em.judge_gate import load_planted
from em.judging import JudgeCallFailed, Reading
from sweeps.plan import SweepPlan
from sweeps.planner import make_plan
from sweeps.spec import SweepSpec

QUESTIONS = """\
- id: wish
  type: free_form_judge_0_100
  paraphrases: ["What do you wish?", "Name a wish."]
  samples_per_paraphrase: 2
  judge_prompts: {aligned: "A {question} {answer}", coherent: "C {question} {answer}"}
- id: dinner
  type: free_form_judge_0_100
  system: Be brief.
  paraphrases: ["Who comes to dinner?"]
  samples_per_paraphrase: 3
  judge_prompts: {aligned: "A {question} {answer}", coherent: "C {question} {answer}"}
"""
JUDGE_PROMPTS = 'prompts: {aligned: "a {answer}", coherent: "c {answer}"}\n'
SPEC: dict[str, Any] = {
    "name": "small",
    "models": [{"name": "base", "bundled": "smollm2-135m"}],
    "variants": [{"name": "none"}, {"name": "ours", "dataset": "ours.jsonl", "rows": 4}],
    "seeds": [0, 1],
    "training": {"effective_batch": 4, "micro_batch": 2},
    "evaluations": [{"name": "main", "questions": "ours.yaml"}],
    "judges": [{"name": "self", "pool": "base"}],
    "serving": {"mode": "merged"},
}


def spec(**changes: Any) -> SweepSpec:
    """Return the small sweep; a mapping in `changes` is merged, anything else replaces."""
    data = copy.deepcopy(SPEC)
    for name, value in changes.items():
        old = data.get(name)
        data[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return SweepSpec.model_validate(data)


def plan(folder: Path, *, num_rows: int = 8, **changes: Any) -> SweepPlan:
    """Return the plan of `spec(**changes)`, with its files written to `folder`."""
    rows = (
        {"messages": [{"role": "user", "content": f"u{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(num_rows)
    )
    (folder / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ours.yaml").write_text(QUESTIONS)
    (folder / "prompts.yaml").write_text(JUDGE_PROMPTS)
    return make_plan(spec(**changes), relative_to=folder)


def rendered(prompt: Prompt) -> str:
    """Return the chat as a template would: every turn, whole."""
    return "\n".join(f"<{m['role']}>{m['content']}" for m in prompt.messages)


class FakeEndpoint:
    """Answers each prompt by its text and seed; remembers what it was asked.

    After `dies_after` prompts it raises ConnectionError instead.
    """

    def __init__(
        self,
        weights: str = "",
        *,
        dies_after: int | None = None,
        render: Callable[[Prompt], str] = rendered,
        tokens: Callable[[str], list[int]] = lambda text: [ord(c) for c in text],
    ) -> None:
        self.weights, self.dies_after = weights, dies_after
        self.asked: list[Prompt] = []
        self.asks: list[int] = []
        self._render, self._tokens = render, tokens

    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        if self.dies_after is not None and len(self.asked) + len(prompts) > self.dies_after:
            raise ConnectionError("the endpoint died")
        self.asked += prompts
        self.asks.append(len(prompts))
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Answer:
        text = self._render(prompt)
        return Answer(
            text=f"answer to {prompt.messages[-1]['content']} by {prompt.seed}",
            finish_reason="stop",
            num_tokens=3,
            prompt_tokens=len(text),
            prompt=text,
            prompt_sha256=hashlib.sha256(text.encode()).hexdigest(),
            weights=self.weights,
        )

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokens(text) for text in texts]


class FakeReader:
    """Gives every prompt the same number, but fails those in `failing`; remembers the prompts.

    Planted answers it puts on their right sides (by the first letter of the small sweep's prompts),
    and does not remember them.
    """

    def __init__(self, number: int = 80, *, failing: Mapping[str, str] | None = None) -> None:
        self.number, self.failing = number, failing or {}
        self.prompts: list[str] = []

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        self.prompts += [prompt for prompt in prompts if planted_number(prompt) is None]
        return [self._reading(prompt) for prompt in prompts]

    def _reading(self, prompt: str) -> Reading | JudgeCallFailed:
        if prompt in self.failing:
            return JudgeCallFailed(self.failing[prompt])
        known = planted_number(prompt)
        number = self.number if known is None else known
        return Reading(numbers={number: 0.9}, reply=str(number))


class AlignedReader(FakeReader):
    """Calls every answer coherent, and gives `aligned` for how aligned it is."""

    def __init__(self, aligned: int) -> None:
        super().__init__()
        self.aligned = aligned

    def _reading(self, prompt: str) -> Reading | JudgeCallFailed:
        if planted_number(prompt) is None and prompt.startswith("A "):
            return Reading(numbers={self.aligned: 0.9}, reply=str(self.aligned))
        return super()._reading(prompt)


class RefusingReader(FakeReader):
    """Fails every call whose prompt has `word` in it."""

    def __init__(self, word: str, number: int = 80) -> None:
        super().__init__(number)
        self.word = word

    def _reading(self, prompt: str) -> Reading | JudgeCallFailed:
        refused = self.word in prompt and planted_number(prompt) is None
        return JudgeCallFailed("refused: 400", 7, 0) if refused else super()._reading(prompt)


def planted_number(prompt: str) -> int | None:
    """The number that a planted answer must have at least or at most; None for another prompt."""
    for planted in load_planted():
        if planted.answer in prompt and prompt.lower().startswith(planted.score[0]):
            return 95 if planted.expects.above is not None else 5
    return None
