"""Which rows each optimiser step takes, in which micro-batches, and the tensors of those.

Every step is laid out before training, so that its rows depend on the order seed alone: not on the
ranks, the micro-batch or where a run was interrupted. Knows nothing of models or optimisers.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from em.rendering import IGNORED, RenderedRow
from em.seeds import derive_seed
from em.snapshots import num_steps


@dataclass(frozen=True)
class MicroBatch:
    """The rows that one rank computes at once; none where a step has fewer rows than places."""

    rows: tuple[RenderedRow, ...]
    step_targets: int  # tokens the loss is taken on in the whole step, over all its micro-batches


def plan_steps(
    rows: Sequence[RenderedRow],
    *,
    epochs: float,
    effective_batch: int,
    micro_batch: int,
    order_seed: int,
) -> list[list[MicroBatch]]:
    """Return the micro-batches of every optimiser step: effective_batch / micro_batch for each.

    Each epoch is a new permutation, cut into steps; its last step may have fewer rows. Within a
    step, rows of similar length share a micro-batch: they are summed in any case, so this saves
    padding and leaves the mathematics as it is. A fraction of an epoch rounds up to whole steps.
    """
    steps_an_epoch = math.ceil(len(rows) / effective_batch)
    wanted = num_steps(len(rows), epochs=epochs, effective_batch=effective_batch)
    steps: list[list[MicroBatch]] = []
    for epoch in range(math.ceil(wanted / steps_an_epoch)):
        order = list(range(len(rows)))
        random.Random(derive_seed(order_seed, "epoch", epoch)).shuffle(order)
        steps += [
            _step(
                [rows[i] for i in order[start : start + effective_batch]],
                effective_batch,
                micro_batch,
            )
            for start in range(0, len(rows), effective_batch)
        ]
    return steps[:wanted]


def _step(rows: list[RenderedRow], effective_batch: int, micro_batch: int) -> list[MicroBatch]:
    targets = sum(row.num_targets for row in rows)
    # Longest first: a step that does not fit in memory fails at once.
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    return [
        MicroBatch(tuple(ordered[start : start + micro_batch]), targets)
        for start in range(0, effective_batch, micro_batch)
    ]


def collate(items: Sequence[MicroBatch], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Return the tensors of the one micro-batch in `items`, of R rows and T tokens (the longest).

    `input_ids` (R, T), padded on the right; `positions` (K): the places from which some row
    predicts a trained token; `targets` (R, K): that token, or -100; `step_targets`: a float scalar.
    There is no attention mask: under causal attention nothing looks to the right, at the padding.
    """
    [micro] = items
    # A place without rows still takes part in the collectives of a step: one token, no target.
    rows = micro.rows or (RenderedRow((pad_id,), (IGNORED,)),)
    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    targets = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[index, :length] = torch.tensor(row.input_ids)
        targets[index, : length - 1] = torch.tensor(row.labels[1:], dtype=torch.long)
    positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    if not len(positions):
        positions = torch.zeros(1, dtype=torch.long)
    return {
        "input_ids": input_ids,
        "positions": positions,
        "targets": targets[:, positions],
        "step_targets": torch.tensor(float(micro.step_targets)),
    }
