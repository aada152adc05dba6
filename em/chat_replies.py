"""The replies of an OpenAI-compatible server, checked: the client builds its types unchecked.

Knows nothing of what was asked.
"""

import math
import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from em.told import first_mistake

MOST_MASS = 1.01  # of probabilities: servers round
NUMBER = re.compile("0|[1-9][0-9]?|100")  # a token that begins with 0 is a part of something else


class Part(BaseModel):
    """A part of a reply: keys that are not read are let be; "3" and true are no 3."""

    model_config = ConfigDict(strict=True)


class Candidate(Part):
    """One token that could have been said, and its natural log-probability."""

    token: str
    logprob: float = Field(le=0.01)  # servers round; NaN is refused too


class Token(Candidate):
    """One token that was said, with the likeliest candidates for its place."""

    top_logprobs: list[Candidate]


class Logprobs(Part):
    """The log-probabilities of a reply."""

    content: list[Token] | None = None


class Message(Part):
    """What was said, as text."""

    content: str | None = None


class Choice(Part):
    """One reply."""

    message: Message
    logprobs: Logprobs | None = None

    @property
    def tokens(self) -> list[Token]:
        """What was said, where the server gives candidates for its first token; else nothing."""
        tokens = (self.logprobs and self.logprobs.content) or []
        return tokens if tokens and tokens[0].top_logprobs else []


class ReplyUsage(Part):
    """What the call used, as the server bills it."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class Completion(Part):
    """A whole answer of the server."""

    choices: list[Choice] = Field(min_length=1)
    usage: ReplyUsage | None = None


def parse_reply(body: bytes) -> Completion:
    """Return the reply in the body of a server's answer. Raises ValueError saying what is wrong."""
    try:
        return Completion.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(first_mistake(error, "the reply")) from error


def numbers_of(token: Token) -> dict[int, float]:
    """Return the probability of each integer 0-100 among a token's candidates.

    Raises ValueError where they sum to more than 1: a server that says so means something else.
    """
    numbers: dict[int, float] = {}
    for top in token.top_logprobs:
        text = top.token.strip()  # " 42" and "42" are two tokens for one number
        if NUMBER.fullmatch(text):
            numbers[int(text)] = numbers.get(int(text), 0.0) + math.exp(top.logprob)
    if math.fsum(numbers.values()) > MOST_MASS:
        raise ValueError(
            f"the probabilities of its numbers sum to {math.fsum(numbers.values()):.3g}, more than "
            "1"
        )
    return numbers


def is_split(number: str, tokens: Sequence[str]) -> bool:
    """Whether `number` stands in the tokens, in more than one of them and in none alone."""
    bare = [token.strip() for token in tokens]
    if number in bare:
        return False
    for start in range(len(bare)):
        text = bare[start]
        for token in bare[start + 1 :]:
            text += token
            if text == number:
                return True
            if len(text) > len(number):
                break
    return False
