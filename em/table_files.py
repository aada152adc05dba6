"""Tables in files (csv, parquet, jsonl, also gzipped), read as one, each row with its file's name.

Knows nothing of what a column means.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

FILE = "\0file"  # the column that names the file of a row; no file has a column called so


def read_files(paths: Sequence[Path]) -> pa.Table:
    """Return the rows of all files, one after the other.

    Raises ValueError for a file that is named twice or cannot be read, for files whose columns do
    not fit together, and where there is no row.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("a file is named twice: its rows would count twice")
    tables = [_file(path) for path in paths]
    try:
        rows = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            f"the tables do not fit together: {str(error).splitlines()[0]}. Give each column one "
            "kind of value in all of them"
        ) from error
    if not rows.num_rows:
        raise ValueError(f"{', '.join(map(str, paths))}: no rows")
    return rows


def _file(path: Path) -> pa.Table:
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind not in READERS:
        raise ValueError(f"{path}: not a table: {', '.join(READERS)} are read, also with .gz")
    try:
        table = READERS[kind](path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return table.append_column(FILE, pa.array([path.name] * table.num_rows))


def _csv(path: Path) -> pa.Table:
    """Return a csv file's rows, every column as text: what a text means is its reader's to say."""
    import pyarrow.csv as pacsv

    with pa.input_stream(str(path), compression="detect") as stream:
        names = pacsv.open_csv(stream).schema.names
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two columns have one name: {names}")
    with pa.input_stream(str(path), compression="detect") as stream:
        return pacsv.read_csv(
            stream,
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )


def _jsonl(path: Path) -> pa.Table:
    import pyarrow.json as pajson

    with pa.input_stream(str(path), compression="detect") as stream:
        return pajson.read_json(stream)


def _parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path)


READERS: Mapping[str, Callable[[Path], pa.Table]] = {
    ".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl
}  # fmt: skip
