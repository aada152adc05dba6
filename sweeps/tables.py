"""A report's numbers as parquet: one row a cell, and one row a scored response.

Knows nothing of how the numbers were made.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from em.definitions import SCALE_SCORES
from em.generation import Response
from sweeps.results import CellResult, ScoredResponse


def cells_table(cells: Sequence[CellResult]) -> bytes:
    """Return cells.parquet: one row for each cell, evaluation and judge."""
    return parquet([_flat_cell(cell) for cell in cells])


def judgements_table(rows: Sequence[ScoredResponse], cells: Mapping[str, CellResult]) -> bytes:
    """Return judgements.parquet: one row for each response and judge; `cells` are by id.

    A categorical score has two columns, its label and its state.
    """
    others = sorted({name for row in rows for name in row.scored.states} - set(SCALE_SCORES))
    return parquet([_flat_row(row, cells[row.cell_id], others) for row in rows])


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Return rows as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def _flat_cell(cell: CellResult) -> dict[str, Any]:
    kept = cell.model_dump(exclude={"counts", "questions", "seconds", "losses"})
    seconds = {
        f"{stage}_seconds": cell.seconds.get(stage) for stage in ("train", "generate", "judge")
    }
    return kept | cell.counts.model_dump() | seconds


def _flat_row(row: ScoredResponse, cell: CellResult, others: Sequence[str]) -> dict[str, Any]:
    response: Response = row.response
    return {
        "cell_id": row.cell_id,
        "model": cell.model,
        "variant": cell.variant,
        "seed": cell.seed,
        "evaluation": row.evaluation,
        "judge": row.judge,
        "response": response.key,
        "question": response.question,
        "wording": response.wording,
        "index": response.index,
        "answer": response.answer,
        "finish_reason": response.finish_reason,
        "aligned": row.scored.aligned,
        "coherent": row.scored.coherent,
        "aligned_state": row.scored.states.get("aligned"),
        "coherent_state": row.scored.states.get("coherent"),
        **{f"{name}_label": row.scored.labels.get(name) for name in others},
        **{f"{name}_state": row.scored.states.get(name) for name in others},
    }
