"""A report's numbers as parquet: one row a cell, and one row a scored response.

Knows nothing of how the numbers were made.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from em.definitions import SCALE_SCORES
from em.generation import Response
from sweeps.outputs import told
from sweeps.results import CellResult, ScoredResponse

ROWS_AT_ONCE = 20_000  # in memory before they are written
_TEXTS = (
    "cell_id", "model", "variant", "evaluation", "judge", "response", "question", "answer",
    "finish_reason", "aligned_state", "coherent_state",
)  # fmt: skip


def cells_table(cells: Sequence[CellResult]) -> bytes:
    """Return cells.parquet: one row for each cell, evaluation and judge."""
    return parquet([_flat_cell(cell) for cell in cells])


class JudgementsTable:
    """judgements.parquet: one row for each response and judge, written as they come.

    A categorical score has two columns, its label and its state.
    """

    def __init__(self, path: Path, scores: Iterable[str]) -> None:
        """Write to `path`; `scores` are the names of all that judges give.

        Raises ValueError where it cannot, as the other methods do.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._others = sorted(set(scores) - set(SCALE_SCORES))
        texts = [f"{name}_{kind}" for kind in ("label", "state") for name in self._others]
        types = dict.fromkeys((*_TEXTS, *texts), pa.string())
        types |= dict.fromkeys(("seed", "wording", "index"), pa.int64())
        types |= dict.fromkeys(SCALE_SCORES, pa.float64())
        self._schema = pa.schema(types)
        with told(path):
            self._writer = pq.ParquetWriter(path, self._schema)
        self._path = path
        self._waiting: list[dict[str, Any]] = []

    def add(self, cell: CellResult, rows: Sequence[ScoredResponse]) -> None:
        """Take the responses of one cell."""
        self._waiting += [flat_row(row, cell, self._others) for row in rows]
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        with told(self._path):
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def close(self) -> None:
        """Write what waits, and end the file."""
        self._flush()
        with told(self._path):
            self._writer.close()


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


def flat_row(row: ScoredResponse, cell: CellResult, others: Sequence[str]) -> dict[str, Any]:
    """Return one response with its scores as plain values; `others` are scores with labels."""
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
