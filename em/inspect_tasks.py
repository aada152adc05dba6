"""Tasks of Inspect (https://inspect.aisi.org.uk): found, loaded, and what their samples ask.

Imports Inspect only where a task is loaded: that takes seconds, and it is an extra of the install.
Knows nothing of who answers (see em.inspect_run), or of cells.
"""

import contextlib
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from em.api_models import ApiChatConfig
from em.downloads import NotAtHand
from em.questions import Wording
from em.record import Record
from em.sandboxes import Sandbox
from em.task_code import code_of, version_of
from em.told import cut, short

NEEDS_SANDBOX = (
    "it runs code in a sandbox: say in 'sandbox' where, docker or (what the model writes then runs "
    "on the machine as it is) local; or leave it out"
)
NEEDS_GRADER = "its scorer asks another model to grade: say in 'grader' which; or leave it out"
# Solvers of Inspect's that hand tools to the model.
TOOL_SOLVERS = ("use_tools", "basic_agent", "react", "human_agent", "human_cli", "bridge")
MOST_PATH = 1024
MOST_TEXT = 20_000  # characters of what a sample asks, as it is shown


class GraderConfig(ApiChatConfig):
    """Who is asked where a task asks another model, in the role that Inspect calls grader.

    At temperature 0, and for `max_tokens` at most, where the task does not say.
    """

    max_tokens: int = Field(default=1024, ge=1)


class TaskConfig(Record):
    """Which task: `PACKAGE/NAME`, or `FILE.py@NAME` with the file's absolute path.

    `sandbox` is where code of a task that runs some is run.
    """

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    sandbox: Sandbox | None = None
    grader: GraderConfig | None = None

    @property
    def file(self) -> Path | None:
        """The file that the task is in; None for one of a package."""
        return Path(self.name.rpartition("@")[0]) if "@" in self.name else None

    @property
    def told(self) -> str:
        """The task as a person knows it, wherever its file lies."""
        return f"{self.file.name}@{self.name.rpartition('@')[2]}" if self.file else self.name


@dataclass(frozen=True)
class LoadedTask:
    """A task with its samples by wording key, in an order of our own (see load_task)."""

    task: Any
    samples: Mapping[str, Any]
    wordings: tuple[Wording, ...]
    scorers: tuple[str, ...]
    identity: dict[str, Any]
    config: TaskConfig

    def first(self, limit: int | None) -> tuple[Wording, ...]:
        """Return what the first `limit` samples ask. Raises ValueError where there are fewer."""
        if limit is not None and limit > len(self.wordings):
            raise ValueError(
                f"limit: {limit} samples are asked for, but the task has {len(self.wordings)}: ask "
                "for fewer"
            )
        return self.wordings[:limit]

    def scorer(self, name: str | None) -> str:
        """Return the scorer that counts. Raises ValueError where it is none, or not said which."""
        if name is None and len(self.scorers) == 1:
            return self.scorers[0]
        if name not in self.scorers:
            given = "it has several" if name is None else f"{short(name)} is none of them"
            raise ValueError(
                f"scorer: the task scores by {', '.join(self.scorers)}, and {given}: name the one "
                "that counts"
            )
        return name


def load_task(config: TaskConfig) -> LoadedTask:
    """Return a task with its data, once in a process for the same task and arguments.

    Samples are in the order of the hash of their content, so that the first N of a shuffled set
    are the same wherever it is loaded. Raises NotAtHand where its data cannot be had, ValueError
    for a task that is unknown, cannot be made, or needs what cells are not given.
    """
    return _load(json.dumps(config.model_dump(), sort_keys=True))


@cache
def _load(given: str) -> LoadedTask:
    config = TaskConfig.model_validate_json(given)
    if importlib.util.find_spec("inspect_ai") is None:
        raise ValueError(
            f"the task {config.told!r} needs Inspect, which is not installed here: install the "
            "extra 'inspect' (pip install 'em-sweeps[inspect]')"
        )
    with contextlib.redirect_stdout(sys.stderr), _no_collection():  # libraries of downloads talk
        task = _make(config)
        identity = _identity(config, task)
    _check_possible(config, task)
    by_hash = sorted((content_sha256(sample), number) for number, sample in enumerate(task.dataset))
    samples, wordings = {}, []
    for sha256, number in by_hash:
        sample = task.dataset[number]
        wording = _wording(sample, sha256)
        if wording.key not in samples:  # a set may hold a sample twice
            samples[wording.key] = sample
            wordings.append(wording)
    twice = len(wordings) - len({wording.question for wording in wordings})
    if twice:
        raise ValueError(f"the task {config.told!r}: {twice} samples have the id of another")
    return LoadedTask(
        task=task,
        samples=samples,
        wordings=tuple(wordings),
        scorers=_scorers(task),
        identity=identity,
        config=config,
    )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: Inspect parses files, and CPython before 3.11.8 fails at that.

    A finalizer that runs while a file is parsed, and parses another, is told as a mistake of the
    first (https://github.com/python/cpython/issues/106905).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _make(config: TaskConfig) -> Any:
    from inspect_ai._eval.loader import create_tasks, load_tasks
    from inspect_ai._util.registry import registry_lookup, registry_params

    if config.file is not None and not config.file.is_file():
        raise ValueError(f"there is no file {config.file} with a task in it")
    if config.file is None and registry_lookup("task", config.name) is None:
        raise ValueError(_unknown(config))
    try:
        # Only the second imports every installed package of tasks, which takes ten seconds.
        make = create_tasks if config.file else load_tasks
        (task,) = make([config.name], config.args)
    except OSError as error:  # what every library of downloads raises, too
        raise NotAtHand(
            f"the data of the task {config.told!r} could not be had ({_why(error)}): run 'emsweep "
            "prefetch SPEC' where the network is, with the same cache (HF_HOME), or leave it out"
        ) from error
    except Exception as error:
        raise ValueError(
            f"the task {config.told!r} could not be made ({_why(error)}): is the name after @ a "
            "function with @task, and are its arguments in 'task_args'?"
        ) from error
    unused = sorted(set(config.args) - set(registry_params(task)))
    if unused:
        raise ValueError(f"task_args: the task {config.told!r} takes no {', '.join(unused)}")
    return task


def _unknown(config: TaskConfig) -> str:
    import difflib

    from inspect_ai._util.registry import registry_find, registry_info

    names = [registry_info(one).name for one in registry_find(lambda info: info.type == "task")]
    near = difflib.get_close_matches(config.name, names, n=3, cutoff=0.3)
    return (
        f"unknown Inspect task {short(config.name)}: name one of an installed package, such as "
        f"{', '.join(near) or 'inspect_evals/truthfulqa'}, or my_task.py@NAME beside the spec"
    )


def _why(error: Exception) -> str:
    return cut(f"{type(error).__name__}: {error}", 300)


def _check_possible(config: TaskConfig, task: Any) -> None:
    """Refuse what a chat with one model, text alone, does not cover."""
    why = None
    is_boxed = task.sandbox is not None or any(
        s.sandbox or s.files or s.setup for s in task.dataset
    )
    if config.sandbox is not None and not is_boxed:
        raise ValueError(f"sandbox: the task {config.told!r} runs no code in one: leave it out")
    if is_boxed and config.sandbox is None:
        why = NEEDS_SANDBOX
    elif config.grader is None and any(n.startswith("model_graded") for n in _scorers(task)):
        why = NEEDS_GRADER
    elif task.model is not None or task.model_roles:
        why = "it names a model of its own; leave it out"
    elif tools := [name for name in _solvers(task) if name in TOOL_SOLVERS]:
        given = ", ".join(tools)
        why = f"it gives the model tools ({given}), which no cell is served with; leave it out"
    elif not _scorers(task):
        why = "it has no scorer; leave it out"
    elif not len(task.dataset):
        why = "it has no samples; leave it out"
    if why:
        raise ValueError(f"the task {config.told!r} cannot be asked of cells: {why}")


def _solvers(task: Any) -> list[str]:
    inner = getattr(task.solver, "_solvers", [task.solver])
    return [_name(solver) for solver in inner]


def _scorers(task: Any) -> tuple[str, ...]:
    return tuple(_name(scorer) for scorer in task.scorer or ())


def _name(registered: Any) -> str:
    from inspect_ai._util.registry import is_registry_object, registry_info

    if not is_registry_object(registered):
        return str(getattr(registered, "__name__", type(registered).__name__))
    return str(registry_info(registered).name).rpartition("/")[2]


def turns(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Return Inspect's messages as plain turns. Raises ValueError for what is not text."""
    found = []
    for message in messages:
        parts = message.content
        if not isinstance(parts, str) and any(part.type != "text" for part in parts):
            kinds = sorted({part.type for part in parts})
            raise ValueError(f"a message holds {', '.join(kinds)}: cells are asked text alone")
        found.append({"role": str(message.role), "content": str(message.text)})
    return found


def content_sha256(sample: Any) -> str:
    """Return a hash of all that a sample holds, without its id and Inspect's own message ids."""
    asked = sample.input if isinstance(sample.input, str) else turns(sample.input)
    held = [asked, sample.choices, sample.target, sample.metadata]
    if sample.files or sample.setup or sample.sandbox:  # what its code runs among
        held += [_contents(sample.files or {}), sample.setup, repr(sample.sandbox)]
    return hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()


def _contents(files: Mapping[str, str]) -> dict[str, str]:
    """Return files of a sample, each as it is written: by a path, or what it holds."""
    found = {}
    for name, given in files.items():
        path = Path(given) if len(given) < MOST_PATH and "\n" not in given else None
        is_file = path is not None and path.is_file()
        found[name] = path.read_bytes().hex() if is_file and path is not None else given
    return found


def _wording(sample: Any, sha256: str) -> Wording:
    asked = sample.input
    text = asked if isinstance(asked, str) else "\n\n".join(t["content"] for t in turns(asked))
    if sample.choices:
        text += "\n" + "\n".join(f"- {choice}" for choice in sample.choices)
    name = str(sample.id) if sample.id is not None else f"sample-{sha256[:12]}"
    return Wording(
        question=cut(name, 120), number=0, system=None, text=text[:MOST_TEXT], sample=sha256
    )


def _identity(config: TaskConfig, task: Any) -> dict[str, Any]:
    """Return what a task is, but for its samples, each of which is in its wording's key."""
    if config.file is not None:
        code = code_of(config.file)
    else:
        package = config.name.partition("/")[0]
        code = {"package": package, "version": version_of(package) or "unknown"}
    given: dict[str, Any] = {}
    if config.sandbox is not None:
        given["sandbox"] = config.sandbox
    if config.grader is not None:
        given["grader"] = {n: getattr(config.grader, n) for n in ("revision", "max_tokens")}
    return given | {
        "task": config.told,
        "args": config.args,
        "code": code,
        "version": str(task.version),
        "inspect_ai": importlib.metadata.version("inspect-ai"),
    }
