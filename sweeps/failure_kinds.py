"""What kind of failure an error is, whether the same work is tried again, and what to do about it.

Told by the names of classes, so that a stored attempt is read as the error was, and nothing here
imports Ray or torch. Knows nothing of cells or stores.
"""

import builtins
import errno
from collections.abc import Iterable, Mapping
from typing import Literal

from em.memory import tells_of_memory

FailureKind = Literal[
    "out of memory",
    "preempted",
    "node lost",
    "process died",
    "engine dead",
    "network",
    "disk or store",
    "judge unavailable",
    "judge budget",
    "model budget",
    "data refused",
    "job failed",
    "gate",
    "data",
    "unknown",
]

# The same work may succeed when it is simply tried again, a bounded number of times.
TRANSIENT: frozenset[FailureKind] = frozenset(
    ("out of memory", "preempted", "node lost", "process died", "engine dead", "network",
     "judge unavailable")
)  # fmt: skip

CURES: Mapping[FailureKind, str] = {
    "out of memory": "Lower training.max_length, or set gradient_checkpointing (lower "
    "serving.kv_cache_gib or max_num_seqs where it generated), or run less side by side, then "
    "emsweep resume.",
    "preempted": "The cluster took the machine back: emsweep resume goes on from what is stored.",
    "node lost": "A machine left the cluster: see that it is back or that the others suffice, then "
    "emsweep resume.",
    "process died": "The process was killed, most often for memory: look into the newest file in "
    "the store's logs/, then emsweep resume.",
    "engine dead": "The vLLM engine ended: the newest file in the store's logs/ says why; lower "
    "'serving' if it was memory, then emsweep resume.",
    "network": "Something did not answer in time: see that the address in the error can be "
    "reached, then emsweep resume.",
    "disk or store": "Free or repair what the error names (space, rights, a damaged file), then "
    "emsweep resume.",
    "judge unavailable": "See that the judge's server answers, then emsweep resume: what was "
    "judged is kept.",
    "judge budget": "Raise the judge's budget in the spec, then emsweep resume: what was judged "
    "is kept.",
    "model budget": "Raise budget_usd of the model or grader in the spec, then emsweep resume: "
    "what was paid for is kept.",
    "data refused": "The API will not train on this data set, and says why: take the variant out "
    "of the grid for this model, or settle it with the provider; emsweep resume asks again.",
    "job failed": "The API's job came to nothing, and says why: emsweep resume makes another.",
    "gate": "A number would be wrong in silence: correct what the gate names before emsweep "
    "resume, because the same again fails again.",
    "data": "Correct what the error names in the spec or the data, then emsweep resume.",
    "unknown": "The newest file in the store's logs/ has the traceback; after a correction, "
    "emsweep resume.",
}

# By class: ours, Python's, torch's, Ray's, and clients'. The first that an error is one of counts.
KIND_OF_CLASS: Mapping[str, FailureKind] = {
    "GateFailed": "gate",
    "TrainingFailed": "gate",
    "BudgetSpent": "judge budget",
    "ApiBudgetSpent": "model budget",
    "DatasetRefused": "data refused",
    "JobFailed": "job failed",
    "JobLost": "job failed",
    "ApiUnavailable": "network",
    "ApiBusy": "network",
    "ApiRefusesUs": "data",
    "JudgeRefusesUs": "data",  # a key, a model's name or an address
    "JudgingStopped": "judge unavailable",
    "JudgeUnavailable": "judge unavailable",
    "EngineDead": "engine dead",
    "StoreError": "disk or store",
    "OutOfDiskError": "disk or store",
    "ObjectStoreFullError": "disk or store",
    "OutOfMemoryError": "out of memory",  # torch's, and Ray's where its monitor killed a worker
    "MemoryError": "out of memory",
    "PreemptionError": "preempted",
    "NodeDiedError": "node lost",
    "LocalRayletDiedError": "node lost",
    "ProcessDied": "process died",
    "WorkerCrashedError": "process died",
    "RayActorError": "process died",
    "ActorDiedError": "process died",
    "ActorUnavailableError": "process died",
    "ObjectLostError": "process died",
    "OwnerDiedError": "process died",
    "ConnectionError": "network",
    "TimeoutError": "network",
    "ValueError": "data",
    "MistakeAt": "data",
    "PromptsTooLong": "data",
}
NODE_HAS_DIED = "node has died"  # in Ray's message of an actor that went with its machine
NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def classify(error: BaseException) -> FailureKind:
    """Return the kind of an error; of several that ended parallel parts, that of `deciding`."""
    error = deciding(error)
    if isinstance(error, OSError) and error.errno in NO_DISK:
        return "disk or store"
    if getattr(error, "preempted", False):  # of Ray's ActorDiedError
        return "preempted"
    kind = _kind((c.__name__ for c in type(error).__mro__), str(error))
    if kind == "unknown":
        return next((k for k in map(classify, _of_ranks(error)) if k != "unknown"), kind)
    return kind


def classify_stored(error_class: str | None, message: str | None) -> FailureKind:
    """Return the same of an error of which only the class's name and the message were kept."""
    known = getattr(builtins, error_class or "", None)
    names = (
        [c.__name__ for c in known.__mro__]
        if isinstance(known, type) and issubclass(known, BaseException)
        else [error_class or ""]
    )
    return _kind(names, message or "")


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed when it is simply tried again."""
    return classify(error) in TRANSIENT


def deciding(error: BaseException) -> BaseException:
    """Return the error that a group of parallel parts is judged by: one that lasts, if any does."""
    while isinstance(error, BaseExceptionGroup):
        lasting = (inner for inner in error.exceptions if not is_transient(inner))
        error = next(lasting, error.exceptions[0])
    return error


def _kind(names: Iterable[str], message: str) -> FailureKind:
    known = (KIND_OF_CLASS[name] for name in names if name in KIND_OF_CLASS)
    kind: FailureKind = next(known, "unknown")
    if kind == "process died" and NODE_HAS_DIED in message:
        return "node lost"
    if kind in ("process died", "unknown") and tells_of_memory(message):
        return "out of memory"
    return kind


def _of_ranks(error: BaseException) -> list[Exception]:
    """Return what ended the ranks of a training, or their controller, as Ray Train keeps it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    # The last is of a rank whose process is gone: Ray's own error about that.
    inner = (getattr(error, name, None) for name in ("controller_failure", "health_check_failure"))
    return failures + [one for one in inner if isinstance(one, Exception)]
