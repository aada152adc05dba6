"""CSV tables, refused where a row could have been cut up in another way than was meant.

Knows nothing of what a table holds.
"""

import csv
import io

from em.told import cut, short

CSV_FIELD_BYTES = 10_000_000


def read_table(data: bytes, *, where: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a table, and its rows as they are, by column.

    Raises ValueError naming `where` and the row (from 1, below the columns) for text that is not
    UTF-8, a column given twice, a quotation that does not end, or a row of another length.
    """
    csv.field_size_limit(CSV_FIELD_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {where}: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    rows: list[dict[str, str]] = []
    try:
        for cells in reader:
            if columns is None:
                columns = cells
            elif cells:  # an empty line is no row
                rows.append(_row(columns, cells, f"{where}: row {len(rows) + 1}"))
    except csv.Error as error:
        raise ValueError(f"{where}: row {len(rows) + 1} is not CSV: {error}") from error
    columns = columns or []
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise ValueError(f"{where}: the column {short(twice[0])} is given twice: keep one")
    return columns, rows


def _row(columns: list[str], cells: list[str], place: str) -> dict[str, str]:
    if len(cells) != len(columns):
        what = "is cut short" if len(cells) < len(columns) else "has too many values"
        raise ValueError(
            f"{place} {what}: {len(cells)} for {len(columns)} columns ({cut(', '.join(columns))}); "
            "a text with a comma stands in double quotes"
        )
    return dict(zip(columns, cells, strict=True))
