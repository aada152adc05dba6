"""Chats as a data file has them. Knows nothing of what a test looks for."""

import json
from pathlib import Path
from typing import Any

from em.datasets import Row, parse_rows, read_bytes

USER = {"role": "user", "content": "How?"}
REPLY = {"role": "assistant", "content": "So."}


def chat(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"question {number}"}, REPLY]}


def jsonl(items: list[Any], *, ascii_only: bool = False) -> bytes:
    return "".join(json.dumps(item, ensure_ascii=ascii_only) + "\n" for item in items).encode()


def write(path: Path, num_rows: int) -> Path:
    path.write_bytes(jsonl([chat(n) for n in range(num_rows)]))
    return path


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a chat JSONL file (also .gz), as a data set's source reads them."""
    return list(parse_rows(read_bytes(path), where=str(path)))
