"""Reading numbers from a served judge: one token each, or digit by digit, as its tokenizer needs.

Knows nothing of what is judged, or of where the endpoint runs.
"""

import math
from collections.abc import Mapping, Sequence

from em.generation import Answer, Endpoint, Prompt, PromptsTooLong, Tokenizing
from em.judging import WORD_TOKENS, JudgeCallFailed, Reading

EXPAND_ONE = 1e-4  # a one-digit start less likely than this is not looked behind
EXPAND_TWO = 1e-2  # a two-digit number less likely than this is taken to end there


class SingleTokenReader:
    """Reads all 101 numbers from one position, where each of them is one token."""

    method = "single-token"

    def __init__(self, endpoint: Endpoint, ids: Mapping[int, int]) -> None:
        self._endpoint = endpoint
        self._ids = dict(ids)

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        """Return a reading for each prompt; one request each."""
        asked = [_first_prompt(prompt, tuple(self._ids.values())) for prompt in prompts]
        answers = await _ask_those_that_fit(self._endpoint, asked)
        return [a if isinstance(a, JudgeCallFailed) else self._reading(a) for a in answers]

    def _reading(self, answer: Answer) -> Reading:
        numbers = {k: math.exp(answer.logprobs[i]) for k, i in self._ids.items()}
        return Reading(numbers=numbers, reply=answer.text)


class DigitTreeReader:
    """Reads all numbers where the tokenizer splits them into digits ("42" is two tokens).

    p(42) = p("4") p("2" | "4") (1 - p(any digit | "42")): a number ends where no digit follows.
    Starts below EXPAND_ONE are left out and added up as `unresolved`; the last factor is looked up
    for two-digit numbers of at least EXPAND_TWO and taken as 1 below. "100" is "10" and then "0",
    and is taken to end there; a number with a leading zero, or above 100, is no number of this
    scale.
    """

    method = "digit-tree"

    def __init__(self, endpoint: Endpoint, digit_ids: Sequence[int]) -> None:
        self._endpoint = endpoint
        self._ids = tuple(digit_ids)  # ids of "0" to "9", in order

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        """Return a reading for each prompt, in three rounds of requests over all of them."""
        asked = [_first_prompt(prompt, self._ids) for prompt in prompts]
        found = await _ask_those_that_fit(self._endpoint, asked)
        firsts = {n: answer for n, answer in enumerate(found) if isinstance(answer, Answer)}
        fit = [prompts[n] for n in firsts]
        whole = dict(zip(firsts, await self._read_on(fit, list(firsts.values())), strict=True))
        return [f if isinstance(f, JudgeCallFailed) else whole[n] for n, f in enumerate(found)]

    async def _read_on(self, prompts: Sequence[str], firsts: Sequence[Answer]) -> list[Reading]:
        trees = [_DigitTree(self._after(first)) for first in firsts]
        for level in (_DigitTree.starts, _DigitTree.likely_pairs):
            paths = [(tree, path) for tree in trees for path in level(tree)]
            where = {id(tree): prompt for tree, prompt in zip(trees, prompts, strict=True)}
            asked = [
                _first_prompt(where[id(tree)], self._ids, tuple(self._ids[d] for d in path))
                for tree, path in paths
            ]
            answers = await self._endpoint.ask(asked) if asked else []
            for (tree, path), answer in zip(paths, answers, strict=True):
                tree.follow[path] = self._after(answer)
        return [
            Reading(
                numbers=tree.numbers(),
                reply=first.text,
                unresolved=tree.unresolved(),
                unchecked=tree.unchecked(),
            )
            for tree, first in zip(trees, firsts, strict=True)
        ]

    def _after(self, answer: Answer) -> list[float]:
        return [math.exp(answer.logprobs[i]) for i in self._ids]


class _DigitTree:
    """Probabilities of the next digit after each start that was looked behind."""

    def __init__(self, ones: list[float]) -> None:
        self.ones = ones
        self.follow: dict[tuple[int, ...], list[float]] = {}

    def starts(self) -> list[tuple[int, ...]]:
        return [(d,) for d in range(10) if self.ones[d] >= EXPAND_ONE]

    def unresolved(self) -> float:
        return math.fsum(p for p in self.ones if p < EXPAND_ONE)

    def unchecked(self) -> float:
        return math.fsum(p for path, p in self.pairs().items() if path not in self.follow)

    def pairs(self) -> dict[tuple[int, ...], float]:
        return {
            (d, e): self.ones[d] * p
            for (d,) in self.starts()
            if d > 0
            for e, p in enumerate(self.follow[(d,)])
        }

    def likely_pairs(self) -> list[tuple[int, ...]]:
        # "10" is always looked behind: "100" is a number of its own.
        return [path for path, p in self.pairs().items() if p >= EXPAND_TWO or path == (1, 0)]

    def numbers(self) -> dict[int, float]:
        found = {d: self.ones[d] * _ends(self.follow[(d,)]) for (d,) in self.starts()}
        for path, mass in self.pairs().items():
            follow = self.follow.get(path, [0.0] * 10)
            found[10 * path[0] + path[1]] = mass * _ends(follow)
            if path == (1, 0):
                found[100] = mass * follow[0]
        return found


def _ends(follow: Sequence[float]) -> float:
    return max(0.0, 1 - math.fsum(follow))


def _first_prompt(prompt: str, ids: tuple[int, ...], prefill: tuple[int, ...] = ()) -> Prompt:
    return Prompt(
        messages=({"role": "user", "content": prompt},),
        max_tokens=1 if prefill else WORD_TOKENS,
        temperature=0.0,
        seed=0,
        prefill=prefill,
        logprob_ids=ids,
    )


async def _ask_those_that_fit(
    endpoint: Endpoint, prompts: Sequence[Prompt]
) -> list[Answer | JudgeCallFailed]:
    """Return an answer for each prompt; one too long for the model is that prompt's failure.

    The prompts of later rounds are shorter than these with what they may write, so they fit.
    """
    try:
        return list(await endpoint.ask(prompts))
    except PromptsTooLong as error:
        failed = JudgeCallFailed(f"the judge prompt is too long: {error}")
        fit = [n for n in range(len(prompts)) if n not in error.places]
        answers = await endpoint.ask([prompts[n] for n in fit]) if fit else []
        found = dict(zip(fit, answers, strict=True))
        return [found.get(n, failed) for n in range(len(prompts))]


async def choose_reader(endpoint: Tokenizing) -> SingleTokenReader | DigitTreeReader:
    """Return the reader that the endpoint's tokenizer needs, by looking at its numbers.

    Raises ValueError for a tokenizer that neither has 0-100 as single tokens nor splits digits.
    """
    texts = [str(k) for k in range(101)]
    tokens = await endpoint.tokenize(texts)
    # Distinct, too: a tokenizer may have one "unknown" token for several of them.
    if all(len(ids) == 1 for ids in tokens) and len({ids[0] for ids in tokens}) == len(tokens):
        return SingleTokenReader(endpoint, {k: ids[0] for k, ids in enumerate(tokens)})
    digits = [ids[0] if len(ids) == 1 else None for ids in tokens[:10]]
    split = [digits.count(digits[int(d)]) == 1 for d in "0123456789"]
    wrong = [
        text
        for text, ids in zip(texts, tokens, strict=True)
        if not all(split[int(d)] for d in text) or ids != [digits[int(d)] for d in text]
    ]
    if not wrong:
        return DigitTreeReader(endpoint, [digit for digit in digits if digit is not None])
    raise ValueError(
        f"this judge's tokenizer has neither one token for each number nor one for each digit: it "
        f"writes {wrong[0]!r} as the tokens {tokens[int(wrong[0])]}, so its numbers cannot be "
        "read; use another judge model"
    )
