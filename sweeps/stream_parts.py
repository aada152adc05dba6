"""What a stream's record and the bytes of its parts say: what is there, lacking, failed, paid for.

Knows nothing of paths (see sweeps.store).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from em.budget import NOTHING, Usage, usage_of
from em.generation import Response
from em.judging import Judgement
from em.record import Record
from sweeps.artefacts import Part, StreamRecord
from sweeps.ranges import expand, holds_all


def lacks(record: StreamRecord | None, wanted: Mapping[str, int]) -> bool:
    """Whether anything of `wanted` (group → number of samples) is missing in a stream's record."""
    covers = record.covers if record else {}
    for group, samples in wanted.items():  # a loop: a sweep of ten thousand cells has many
        if samples and not holds_all(covers.get(group, ()), samples):
            return True
    return False


def failed_in(record: StreamRecord | None, wanted: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the indices of each group in `wanted` whose item is a failed one, by its record."""
    found = {
        group: sorted(i for i in expand(ranges) if i < wanted.get(group, 0))
        for group, ranges in (record.failed.items() if record else ())
    }
    return {group: indices for group, indices in found.items() if indices}


def is_failed(item: Record) -> bool:
    """Whether an item of a stream is a call that failed (a judgement may be), to be made again."""
    return getattr(item, "state", None) == "failed"


BY_GRADER = "grader"  # where usage goes by the name of a judge


class Graded(Record):
    """The columns of a response that say what was used to grade it."""

    grader_calls: int = 0
    grader_prompt_tokens: int = 0
    grader_tokens: int = 0


def usage_by_judge(items: Sequence[Record]) -> dict[str, Usage] | None:
    """Return what the calls behind judgements used, so that a budget need not read them again.

    Of responses what was used to grade them, where anything was.
    """
    judged = [item for item in items if isinstance(item, Judgement)]
    judges = dict.fromkeys(item.judge for item in judged)
    used = {name: usage_of(item for item in judged if item.judge == name) for name in judges}
    answered = [item for item in items if isinstance(item, Response)]
    if any(item.grader_calls for item in answered):
        used[BY_GRADER] = usage_of_grades(answered)
    return used or None


def usage_of_grades(items: Iterable[Graded | Response]) -> Usage:
    """Return what grading responses used."""
    total = NOTHING
    for item in items:
        total += Usage(
            calls=item.grader_calls,
            prompt_tokens=item.grader_prompt_tokens,
            completion_tokens=item.grader_tokens,
        )
    return total


def whole_part(name: str, data: bytes) -> Part | None:
    """Return the part that the file `name` is, by its bytes; None where it is torn."""
    sha256 = hashlib.sha256(data).hexdigest()
    if name != f"part-{sha256[:16]}.parquet":
        return None
    return Part(name=name, rows=len(rows_of(data)), sha256=sha256)


def rows_of(data: bytes, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a parquet file, with all columns or those named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # In this thread: pyarrow's own threads may abort a process that ends soon after a read.
    file = pq.ParquetFile(pa.BufferReader(data))
    return list(file.read(columns=columns, use_threads=False).to_pylist())
