"""Inspect's own interfaces, as they are needed to run samples of a task with a model of ours.

Its classes are made when they are first asked for: importing Inspect takes seconds. Knows nothing
of endpoints (see em.inspect_run).
"""

import contextlib
import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from em.inspect_asking import Ask
from em.told import cut

# Models as Inspect knows them; the second is the name of a role, too.
SCORED, GRADER = "cell", "grader"
LOCAL = "local"  # the sandbox that is none
SECRET = re.compile("_(API_)?KEY(_ID)?$|_TOKEN$|SECRET|PASSWORD|CREDENTIALS")
AT_ONCE = 256  # samples side by side: who is asked has a pace of its own


@cache
def _classes() -> tuple[Any, Any]:
    """Return Inspect's model whose replies are never kept, and its interface that asks an Ask."""
    from inspect_ai.model import Model, ModelAPI, ModelOutput, ModelUsage, modelapi

    @modelapi(name="emsweep")
    class Asked(ModelAPI):
        ask: Ask

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            answer = await self.ask(input, tools, config)
            reason = "max_tokens" if answer.finish_reason == "length" else "stop"
            output = ModelOutput.from_content(self.model_name, answer.text, stop_reason=reason)
            output.usage = ModelUsage(
                input_tokens=answer.prompt_tokens,
                output_tokens=answer.num_tokens,
                total_tokens=answer.prompt_tokens + answer.num_tokens,
            )
            return output

        def max_connections(self) -> int:
            return AT_ONCE

    class Uncached(Model):
        """Inspect's cache of replies knows neither weights nor seeds: a task may not turn it on."""

        async def generate(self, *given: Any, **named: Any) -> Any:
            return await super().generate(*given, **named | {"cache": False})

    return Uncached, Asked


def model_of(ask: Ask, name: str) -> Any:
    """Return an Inspect model of that name that asks `ask`."""
    from inspect_ai.model import GenerateConfig

    model, interface = _classes()
    api = interface(name)
    api.ask = ask
    return model(api, GenerateConfig())


def solving(task: Any, samples: Sequence[Any], note: Callable[[bool], object]) -> Any:
    """Return the task with `samples` alone; `note` is told, in its context, that one is solved.

    That is True before what solves it, and False after that, before it is scored.
    """
    from inspect_ai import Task, task_with
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.solver import Generate, TaskState, solver

    @solver
    def begin() -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            note(True)
            return state

        return solve

    @solver
    def noted(inner: Any) -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            note(True)
            try:
                return await inner(state, generate)
            finally:
                note(False)

        return solve

    own: Task = copy.copy(task)
    before = [begin(), *([task.setup] if task.setup is not None else [])]
    return task_with(
        own, dataset=MemoryDataset(list(samples)), setup=before, solver=noted(task.solver), epochs=1
    )


def current_sample() -> str:
    """Return the id of the sample that is solved or scored in this context."""
    from inspect_ai.log._samples import sample_active

    active = sample_active()
    return str(active.sample.id) if active is not None else ""


def cut_short(folder: str) -> Any:
    """Return Inspect's log, in `folder`, of a run that was cancelled; None where there is none."""
    from inspect_ai.log import read_eval_log

    logs = sorted(Path(folder).glob("*.json"))
    return read_eval_log(str(logs[0])) if logs else None


@contextlib.contextmanager
def _without_secrets() -> Iterator[None]:
    """Take keys out of this process's environment, which a local sandbox hands to what it runs."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if SECRET.search(name)}
    try:
        yield
    finally:
        os.environ.update(taken)


async def evaluate(
    task: Any, models: Mapping[str, Any], folder: str, *, sandbox: str | None
) -> Any:
    """Return Inspect's log of a run; its file goes to `folder`. Errors of samples are in it.

    `models` are the one that is scored and, where there is one, the one in the role of a grader.
    Raises ValueError where what the task needs is not there.
    """
    from inspect_ai import eval_async
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.util._display import display_type_initialized, init_display_type

    if not display_type_initialized():
        init_display_type("none")
    roles = {GRADER: models[GRADER]} if GRADER in models else None
    try:
        with _without_secrets() if sandbox == LOCAL else contextlib.nullcontext():
            (log,) = await eval_async(
                task, model=models[SCORED], model_roles=roles, sandbox=sandbox, log_dir=folder,
                log_format="json",  # the other is read when looked at
                log_level="error", log_samples=True, log_realtime=False,
                log_images=False, log_model_api=False, score_display=False, fail_on_error=False,
                retry_on_error=0, max_samples=AT_ONCE, max_connections=AT_ONCE, acp_server=False,
                ctl_server=False,
            )  # fmt: skip
    except PrerequisiteError as error:  # such as a sandbox whose program is not there
        raise ValueError(f"Inspect cannot run the task here: {cut(error.message, 300)}") from error
    return log
