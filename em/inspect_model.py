"""Inspect's own interfaces, as they are needed to run samples of a task with a model of ours.

Its classes are made when they are first asked for: importing Inspect takes seconds. Knows nothing
of endpoints (see em.inspect_run).
"""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

from em.generation import Answer

MODEL = "cell"
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
    class Cell(ModelAPI):
        asker: Asker

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            answer = await self.asker.ask(input, tools, config)
            reason = "max_tokens" if answer.finish_reason == "length" else "stop"
            output = ModelOutput.from_content(MODEL, answer.text, stop_reason=reason)
            output.usage = ModelUsage(
                input_tokens=answer.prompt_tokens,
                output_tokens=answer.num_tokens,
                total_tokens=answer.prompt_tokens + answer.num_tokens,
            )
            return output

        def max_connections(self) -> int:
            return AT_ONCE

    return Cell


def model_of(asker: Asker) -> Any:
    """Return an Inspect model that asks `asker`."""
    from inspect_ai.model import GenerateConfig, Model

    api = _api()(MODEL)
    api.asker = asker
    return Model(api, GenerateConfig())


def solving(task: Any, samples: Sequence[Any], note: Callable[[str], object]) -> Any:
    """Return the task with `samples` alone; `note` is told whose turn it is, in that one's context.

    It is told the sample's id before it is solved, and nothing ("") before it is scored.
    """
    from inspect_ai import Task, task_with
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.solver import Generate, TaskState, solver

    @solver
    def begin() -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            note(str(state.sample_id))
            return state

        return solve

    @solver
    def noted(inner: Any) -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            note(str(state.sample_id))
            try:
                return await inner(state, generate)
            finally:
                note("")

        return solve

    own: Task = copy.copy(task)
    before = [begin(), *([task.setup] if task.setup is not None else [])]
    return task_with(
        own, dataset=MemoryDataset(list(samples)), setup=before, solver=noted(task.solver), epochs=1
    )


async def evaluate(task: Any, model: Any, folder: str) -> Any:
    """Return Inspect's log of a run; its file goes to `folder`. Errors of samples are in it."""
    from inspect_ai import eval_async
    from inspect_ai.util._display import display_type_initialized, init_display_type

    if not display_type_initialized():
        init_display_type("none")
    (log,) = await eval_async(
        task, model=model, log_dir=folder, log_format="json",  # the other is read when looked at
        log_level="error", log_samples=True, log_realtime=False,
        log_images=False, log_model_api=False, score_display=False, fail_on_error=False,
        retry_on_error=0, max_samples=AT_ONCE, max_connections=AT_ONCE, acp_server=False,
        ctl_server=False,
    )  # fmt: skip
    return log
