"""How a mistake is told: short, printable, and without the words of a library.

Knows nothing of which mistakes there are.
"""

from typing import Any

from pydantic import ValidationError

MOST_VALUE = 60
MOST_TEXT = 500


def short(value: Any) -> str:
    """Return a value as Python writes it, cut to MOST_VALUE characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "something nested too deeply to show"
    return text if len(text) <= MOST_VALUE else text[: MOST_VALUE - 3] + "..."


def cut(text: str, most: int = MOST_TEXT) -> str:
    """Return `text` cut to `most` characters, with \\x07 for what a terminal would not show."""
    kept = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in kept)


def first_mistake(error: ValidationError, whole: str = "the file") -> str:
    """Return where the first mistake is (or `whole`), and what it is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or whole
    text = f"{where}: {first['msg'].removeprefix('Value error, ')}"
    if first["type"] not in ("value_error", "missing", "extra_forbidden"):
        text += f"; got {short(first['input'])}"
    return cut(text)
