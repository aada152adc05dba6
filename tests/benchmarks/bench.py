"""The benchmark: six rows of ratios against what one would use instead, measured on this machine.

    make bench                   # every row that has no result of this code on this machine
    make bench ROW=P1            # one row, measured anew; ROW="P1 P5" takes two
    make bench AGAIN=1           # all rows, measured anew

Each row is printed and written into results.json beside this file as soon as it is measured, with
machine, date and commit; an interrupted run is taken up by the next one, at the row. A row counts
as done while nothing has changed in the code that bears on it (words do not).

All comparisons are ratios of one run, on the same work, and each row checks that the results are
the same: as many tokens, the same losses, as many judgements. Each measurement has a process of its
own. Run it on an idle machine: the load before each row stands in its result. The model is the
bundled one of 135M parameters; P2 and P4 read public data where EMSWEEP_DATA says, and P2 needs the
extra `bench`. All six take more than an hour on two cores, and are for a machine without a GPU.
What each row measures is told in tests/benchmarks/rows. Knows nothing of what is measured.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from em.record import Record
from sweeps.provenance import versions
from tests.benchmarks.comparisons import HEADER, Row, RowResult, lines
from tests.benchmarks.parts import ROOT, Parts
from tests.benchmarks.rows import ROWS
from tests.benchmarks.standing import Code, machine

RESULTS = Path(__file__).with_name("results.json")
OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class Results(Record):
    """What results.json holds: the last result of each row, by its name."""

    rows: dict[str, RowResult] = Field(default_factory=dict)


def bench(
    rows: Sequence[Row],
    *,
    named: Sequence[str] = (),
    again: bool = False,
    path: Path = RESULTS,
    code: Code | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure the rows that are asked for and not done, print each and write it to `path`.

    `named` rows, and all with `again`, are measured anew. A row that fails is told, its earlier
    result stays, and the others go on. Returns OK or FAILED. Raises ValueError for a name that no
    row has, and for a file at `path` that holds no results.
    """
    known = {row.name: row for row in rows}
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ValueError(f"no row {', '.join(unknown)}: the rows are {', '.join(known)}")
    code = code or Code(ROOT)
    failed = False
    say(f"{machine()}, commit {code.commit}")
    say(HEADER)
    with tempfile.TemporaryDirectory(prefix="emsweep-bench-") as folder:
        parts = Parts(Path(folder))
        for row in [known[name] for name in named] or rows:
            result = read(path).rows.get(row.name)
            if named or again or result is None or not _stands(result, code):
                try:
                    result = _measured(row, code, parts)
                except Exception as error:  # noqa: BLE001  (whatever a peer raises fails its row)
                    failed = True
                    say(f"{row.name}  {row.title}  FAILED: {type(error).__name__}: {error}")
                    continue
                _write(path, result)
            for line in lines(result):
                say(line)
    return FAILED if failed else OK


def _stands(result: RowResult, code: Code) -> bool:
    return result.machine == machine() and code.is_that_of(result.commit)


def _measured(row: Row, code: Code, parts: Parts) -> RowResult:
    began, load = time.monotonic(), os.getloadavg()[0]
    parts.begin()
    measured = row.measure(parts)
    return RowResult(
        row=row.name,
        title=row.title,
        commit=code.commit,
        date=time.strftime("%Y-%m-%d"),
        machine=machine(),
        load_before=round(load, 2),
        seconds=round(time.monotonic() - began, 1),
        versions=versions(),
        comparisons=tuple(measured.comparisons),
        checked=tuple(measured.checked),
        notes=tuple(measured.notes),
        parts=parts.asked,
    )


def read(path: Path) -> Results:
    """Return the results in a file, none where it is not there. Raises ValueError for another."""
    if not path.is_file():
        return Results()
    try:
        return Results.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(
            f"{path} holds no results of this benchmark: remove it ({error})"
        ) from None


def _write(path: Path, result: RowResult) -> None:
    """Put one row in the place of its earlier result; the file is whole at every moment."""
    found = read(path).rows | {result.row: result}
    partial = path.with_suffix(".tmp")
    partial.write_text(Results(rows=dict(sorted(found.items()))).model_dump_json(indent=1) + "\n")
    partial.replace(path)


def main(arguments: Sequence[str]) -> int:
    """Be the command."""
    parser = argparse.ArgumentParser(prog="bench", description="The benchmark's table.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure anew, such as P1")
    parser.add_argument("--again", action="store_true", help="measure anew what is done, too")
    given = parser.parse_args(arguments)
    try:
        return bench(ROWS, named=given.rows, again=given.again)
    except ValueError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("stopped; the next run goes on at this row", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
