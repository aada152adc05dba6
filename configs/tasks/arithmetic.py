"""A task of Inspect of our own: a dozen sums that a person does in the head.

It shows how a task is written and run (see README); what a model gets right of it means little.
"""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate, system_message

PAIRS = ((2, 3), (4, 4), (7, 1), (6, 5), (9, 8), (3, 9), (12, 5), (8, 7), (11, 11), (5, 14),
         (20, 7), (15, 16))  # fmt: skip


@task
def sums(most: int = len(PAIRS)) -> Task:
    """Ask for the first `most` sums; the last number of the answer counts."""
    samples = [
        Sample(id=f"{a}+{b}", input=f"What is {a} plus {b}?", target=str(a + b))
        for a, b in PAIRS[:most]
    ]
    return Task(
        dataset=MemoryDataset(samples),
        solver=[system_message("Answer with a number alone."), generate()],
        scorer=match(location="end", numeric=True),
    )
