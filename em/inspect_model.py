"""Inspect's own interfaces, as they are needed to run samples of a task with a model of ours.

Its classes are made when they are first asked for: importing Inspect takes seconds. Knows nothing
of endpoints (see em.inspect_run).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from em.generation import Answer
from em.told import cut

CELL, GRADER = "cell", "grader"  # models as Inspect knows them; the second is a role, too
AT_ONCE = 256  # samples side by side: the pool has a queue of its own


class Asker(Protocol):
    """Who answers a request of Inspect's."""

    async def ask(self, messages: Sequence[Any], tools: Sequence[Any], config: Any) -> Answer:
        """Return the answer to Inspect's messages."""
        ...


@cache
def _api() -> Any:
    """Return Inspect's model class that asks an Asker."""
    from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, modelapi

    @modelapi(name="emsweep")
    class Asked(ModelAPI):
        asker: Asker

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            answer = await self.asker.ask(input, tools, config)
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

    return Asked


def model_of(asker: Asker, name: str) -> Any:
    """Return an Inspect model of that name that asks `asker`."""
    from inspect_ai.model import GenerateConfig, Model

    api = _api()(name)
    api.asker = asker
    return Model(api, GenerateConfig())


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
        (log,) = await eval_async(
            task, model=models[CELL], model_roles=roles, sandbox=sandbox, log_dir=folder,
            log_format="json",  # the other is read when looked at
            log_level="error", log_samples=True, log_realtime=False,
            log_images=False, log_model_api=False, score_display=False, fail_on_error=False,
            retry_on_error=0, max_samples=AT_ONCE, max_connections=AT_ONCE, acp_server=False,
            ctl_server=False,
        )  # fmt: skip
    except PrerequisiteError as error:  # such as a sandbox whose program is not there
        raise ValueError(f"Inspect cannot run the task here: {cut(error.message, 300)}") from error
    return log
