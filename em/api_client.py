"""A server with OpenAI's API: whether it needs a key, and a connection that keeps to its pace.

Calls are tried again by the client alone, which waits as the server asks (Retry-After) or longer
each time, with jitter; but a chat that was one too many is not: it gives its place back and waits
for its turn (em.pacing), or those that are refused would ask again and again at the pace that the
server is too slow for. Knows nothing of what is asked: see em.api_judge for
judges, em.api_endpoint for models that answer, em.api_finetune for trainings.
"""

import email.utils
import os
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from em.pacing import Pace
from em.told import cut

MAX_RETRIES = 5  # with growing waits, for 408, 409, 429, 5xx and broken connections
TIMEOUT_S = 60.0
NO_KEY = "none"  # for servers that need no key; the client refuses an empty one
TOO_MANY = 429
CHATS = "/chat/completions"
NO_MONEY = "insufficient_quota"  # OpenAI's code, of an account that must pay first
# Keys that clients have, by their variable's name: the variable may be out of the environment when
# a server repeats one (see em.inspect_model, of code that a model has written).
_given: dict[str, str] = {}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ApiUnavailable(Exception):
    """The server did not answer, however often it was asked; it may answer later."""


class ApiBusy(ApiUnavailable):
    """The server has as much of ours under way as it allows; it takes more when some has ended."""


class ApiRefusesUs(ValueError):
    """The key, the model or the address is wrong: the user's to mend."""


def needs_key(url: str) -> bool:
    """Whether a server is on another machine, and hence asked with a key."""
    return urllib.parse.urlsplit(url).hostname not in LOOPBACK


def check_address(address: str, name: str = "api") -> None:
    """Raise ValueError where a key would travel in the clear, or stands in the address.

    `name` is the setting that it is given by.
    """
    if not address.isprintable() or " " in address:  # urlsplit leaves some of these out
        raise ValueError(f"{name} must be an http(s) address, got {address!r}")
    parts = urllib.parse.urlsplit(address)
    try:
        port = parts.port
    except ValueError as error:
        text = f"{name} must have a number as its port, got {address!r}: {error}"
        raise ValueError(text) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{name} must be an http(s) address, got {address!r}")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"{name} must not hold a name, password or query: keys are in the environment"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError(f"{name} must be https except on this machine, got {address!r}")


def check_key_name(key_env: str, name: str) -> None:
    """Raise ValueError where a spec could have another secret than a key sent to its address."""
    if not key_env.endswith("_API_KEY"):
        raise ValueError(
            f"{name}: {key_env!r} does not end in _API_KEY, so that no spec can send another "
            "secret to its 'api'; rename the variable"
        )


def check_key(url: str, key_env: str, *, who: str = "judge", setting: str = "api_key_env") -> None:
    """Raise ValueError where a server on another machine would be asked without a key."""
    if needs_key(url) and not os.environ.get(key_env):
        raise ValueError(
            f"the {who} at {url} needs a key, and the environment variable {key_env} is not set: "
            f"set it (to {NO_KEY!r} for a server that takes any), or name another in {setting}"
        )


def key_for(key_env: str) -> str:
    """Return the key that the client is given."""
    key = os.environ.get(key_env)
    if key:
        _given[key_env] = key
    return key or NO_KEY


def safe(error: Exception, key_env: str) -> str:
    """Return what the server said without the key, which it may have repeated."""
    key = os.environ.get(key_env) or _given.get(key_env)
    return cut(str(error).replace(key, "***") if key else str(error))


def refused_or_away(error: Exception, where: str, key_env: str) -> Exception:
    """Return an error of the client, of a call about a model, as one of ours.

    ApiRefusesUs, ApiBusy or ApiUnavailable; what it says of the call itself (a 400, a 422) is the
    caller's to read first. `where` names the model and its address.
    """
    import openai

    said = safe(error, key_env)
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError() | openai.NotFoundError():
            return ApiRefusesUs(
                f"{where} refuses us: {said}. Check its url, model and the key in the "
                f"environment variable {key_env}"
            )
        case openai.RateLimitError(code=code) if code == NO_MONEY:
            return ApiRefusesUs(f"{where}: {said}")
        case openai.RateLimitError():
            return ApiBusy(f"{where} takes no more for now: {said}")
        case _:
            return ApiUnavailable(f"{where} does not answer: {said}")


def paced_client(
    url: str, api_version: str | None, *, key_env: str, pace: Pace,
    max_retries: int = MAX_RETRIES, timeout_s: float = TIMEOUT_S, what: str = "a judge with 'api'",
) -> Any:  # fmt: skip
    """Return an asynchronous client of OpenAI's SDK that tells `pace` how its calls end.

    With `api_version` in Azure's way. `what` needs it, for the error (ValueError) where the SDK is
    not installed.
    """
    try:
        import openai  # half a second
    except ImportError as error:
        raise ValueError(f"{what} needs the extra 'serve': {error}") from error

    async def on_response(response: Any) -> None:
        """See every reply, those that the client tries again, too."""
        if response.status_code == TOO_MANY:
            pace.slow_down(_wait_asked(response.headers))
            if response.request.url.path.endswith(CHATS):
                response.headers["x-should-retry"] = "false"  # to the client of the SDK
        elif response.is_success:
            pace.went_well()

    settings: dict[str, Any] = {
        "api_key": key_for(key_env),
        "max_retries": max_retries,
        "timeout": timeout_s,
        "http_client": openai.DefaultAsyncHttpxClient(event_hooks={"response": [on_response]}),
    }
    if api_version is None:
        return openai.AsyncOpenAI(base_url=url, **settings)
    return openai.AsyncAzureOpenAI(azure_endpoint=url, api_version=api_version, **settings)


def _wait_asked(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait, or until the date that it names; or None."""
    for name, parts in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return float(headers[name]) / parts
        except (KeyError, ValueError):
            continue
    try:
        until = email.utils.parsedate_to_datetime(headers["retry-after"])
        return until.timestamp() - time.time()
    except (KeyError, ValueError):
        return None
