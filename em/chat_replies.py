"""The replies of an OpenAI-compatible server, checked: the client builds its types unchecked.

Knows nothing of what was asked.
"""

from collections.abc import Sequence

from pydantic import BaseModel, Field


class Candidate(BaseModel):
    """One token that could have been said, and its natural log-probability."""

    token: str
    logprob: float = Field(le=0.01)  # servers round; NaN is refused too


class Token(Candidate):
    """One token that was said, with the likeliest candidates for its place."""

    top_logprobs: list[Candidate]


class Logprobs(BaseModel):
    """The log-probabilities of a reply."""

    content: list[Token] | None = None


class Message(BaseModel):
    """What was said, as text."""

    content: str | None = None


class Choice(BaseModel):
    """One reply."""

    message: Message
    logprobs: Logprobs | None = None

    @property
    def tokens(self) -> list[Token]:
        """What was said, where the server gives candidates for its first token; else nothing."""
        tokens = (self.logprobs and self.logprobs.content) or []
        return tokens if tokens and tokens[0].top_logprobs else []


class ReplyUsage(BaseModel):
    """What the call used, as the server bills it."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class Completion(BaseModel):
    """A whole answer of the server."""

    choices: list[Choice] = Field(min_length=1)
    usage: ReplyUsage | None = None


def is_split(number: str, tokens: Sequence[str]) -> bool:
    """Whether `number` stands in the tokens, in more than one of them and in none alone."""
    bare = [token.strip() for token in tokens]
    if number in bare:
        return False
    return any(
        "".join(bare[start:stop]) == number
        for start in range(len(bare))
        for stop in range(start + 2, len(bare) + 1)
    )
