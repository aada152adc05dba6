"""What is special about a root in a bucket: how long its client tries, and what its errors mean.

Clients (s3fs over botocore, gcsfs over aiohttp) raise errors of their own; here they become
Python's, with what to do. Told by the names of classes and codes, so that no client is imported.
Knows nothing of files.
"""

import errno
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import fsspec

log = logging.getLogger(__name__)

S3 = ("s3", "s3a")
PROTOCOLS = (*S3, "gs", "gcs")
EXTRAS = dict.fromkeys(S3, "s3") | dict.fromkeys(("gs", "gcs"), "gcs")

# s3fs tries five times what botocore tries five times, and for reading all that five times again:
# half an hour in silence where a server takes connections and never answers. So only botocore
# tries, by its "standard" rules (network, throttling and 5xx, with growing waits up to 20 s):
# https://docs.aws.amazon.com/boto3/latest/guide/retries.html. In the worst case a minute.
S3_PATIENCE = {
    "retries": {"mode": "standard", "total_max_attempts": 4},
    "connect_timeout": 5,
    "read_timeout": 15,
}

# Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and those of GCS:
# https://cloud.google.com/storage/docs/json_api/v1/status-codes
PASSING = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "OperationAborted",
    "ConditionalRequestConflict", "408", "429", "500", "502", "503", "504",
}  # fmt: skip
REFUSED = {
    "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "ExpiredToken",
    "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "RequestTimeTooSkewed", "401",
    "403",
}  # fmt: skip
EXISTS = {"PreconditionFailed", "412"}
CONFLICT = {"ConditionalRequestConflict", "OperationAborted"}
TRIES, CONFLICT_S = 5, 0.2

# Classes, by name: of botocore, aiohttp, requests, urllib3 and google-auth.
NETWORK = {
    "ConnectionError", "HTTPClientError", "ResponseStreamingError", "IncompleteReadError",
    "IncompleteRead", "ClientConnectionError", "ClientPayloadError", "Timeout", "TransportError",
    "ChunkedEncodingError", "ChecksumError",
}  # fmt: skip
LOGIN = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "SSOError", "GoogleAuthError",
}  # fmt: skip
CLIENTS = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "requests", "urllib3"}

SECRETS = re.compile(r"(?<=//)[^/\s@]+@|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|(?<=Signature=)[^&\s\"']+")
LOG_IN = (
    "for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for GCS log in with "
    "'gcloud auth application-default login' or set GOOGLE_APPLICATION_CREDENTIALS; on every "
    "machine of a cluster"
)
MAY = "see that these credentials may list, read, write and delete there, and have not expired"
SPELL = "see that the store's URL and, where one is set, AWS_ENDPOINT_URL are right"
REACH = (
    "see that this machine reaches that address (AWS_ENDPOINT_URL names one that is not Amazon's) "
    "and give the same command again: what is finished is kept"
)


class BucketError(OSError):
    """What a bucket refused for good; `cure` says what to do."""

    def __init__(self, number: int, text: str, cure: str) -> None:
        super().__init__(number, text, cure)
        self.cure = cure


class BucketAway(ConnectionError):
    """A bucket that does not answer, or not now: another try may cure it."""


def options(protocol: str) -> dict[str, Any]:
    """Return what the client of `protocol` is made with; what the user set for fsspec goes first.

    See https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration
    """
    if protocol not in S3:
        return {}
    given = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": S3_PATIENCE | given}


def without_own_tries(fs: Any) -> None:
    """Have s3fs try nothing again by itself (see S3_PATIENCE)."""
    if set(S3) & set(_protocols(fs)):
        fs.retries = 1


def is_bucket(fs: Any) -> bool:
    """Whether the first part of a path on `fs` is a bucket, which must be there before."""
    return bool(set(PROTOCOLS) & set(_protocols(fs)))


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


@contextmanager
def python_errors() -> Iterator[None]:
    """Raise what a client raises as Python's: FileNotFoundError, FileExistsError, BucketAway,
    BucketError or another OSError.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, BucketAway, BucketError):
        raise
    except Exception as error:
        known = _known(error)
        raise error if known is None else known from error


def create(fs: Any, place: str, data: bytes) -> bool:
    """Put an object where none is yet; whether this call did. Raises as python_errors.

    The server compares: S3 by If-None-Match: *, for an upload in parts as it is completed; GCS by
    ifGenerationMatch=0. S3 may answer two at once with a conflict, to be tried again:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html. Where a service
    has no conditions, whether the object is there is asked first, which two may do at once.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            with python_errors():
                fs.pipe_file(place, data, mode="create")
            return True
        except FileExistsError:
            return False
        except BucketAway as error:
            if code_of(error) not in CONFLICT or not tries_left:
                raise
            time.sleep(CONFLICT_S)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            break
    _tell_unconditional(place.split("/")[0])
    with python_errors():
        if fs.exists(place):
            return False
        fs.pipe_file(place, data)
    return True


@cache
def _tell_unconditional(bucket: str) -> None:
    log.warning(
        "the service of the bucket %s has no conditional writes, so that two drivers on one store "
        "may do the same work; run one at a time", bucket,
    )  # fmt: skip


def _known(error: Exception) -> OSError | None:
    code = code_of(error)
    names = {c.__name__ for c in type(error).__mro__}
    text = told(error)
    if code in EXISTS:
        return FileExistsError(errno.EEXIST, text)
    if code in PASSING or isinstance(error, TimeoutError):
        return BucketAway(f"{text}. What to do: {REACH}")
    if code in REFUSED or _is_refusal(error) or text.startswith("Forbidden"):
        return BucketError(errno.EACCES, f"access was refused ({text})", MAY)
    if names & LOGIN:
        return BucketError(errno.EACCES, f"no credentials are to be had ({text})", LOG_IN)
    if names & NETWORK:
        return BucketAway(f"{text}. What to do: {REACH}")
    if type(error).__module__.split(".")[0] in CLIENTS:
        return BucketError(errno.EIO, text, SPELL)
    return None


def _is_refusal(error: Exception) -> bool:
    # s3fs' has a text alone; one of this machine's disk, to which a file is fetched, has a number.
    return isinstance(error, PermissionError) and error.errno is None


def code_of(error: BaseException | None) -> str:
    """Return the code that a server gave with its refusal, or ''."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        code = getattr(error, "code", None)  # of gcsfs' HttpError
        if type(error).__module__.startswith("gcsfs") and code is not None:
            return str(code)
        error = error.__cause__
    return ""


def told(error: BaseException) -> str:
    """Return an error in one line, without what may be a credential."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SECRETS.sub("***", " ".join(str(text).split())).rstrip(". ")
