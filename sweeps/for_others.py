"""What may be told outside: a value without the places that it names on this machine.

Knows nothing of what the value is, or of who is told.
"""

import re
from typing import Any

# A path that begins at the root, the home folder or beside the working folder, but not the path of
# an address; its last part is kept.
PATH = re.compile(r"(?<![\w:/.])(?:file://)?(?:~|\.{1,2})?/(?:[^\s'\",;()/]+/)*([^\s'\",;()/]+)")
PLACES = frozenset({"host", "api", "store"})


def without_places(value: Any) -> Any:
    """Return plain values without hosts and addresses, and with file names in place of paths."""
    if isinstance(value, str):
        return PATH.sub(r"\1", value)
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items() if key not in PLACES}
    if isinstance(value, list | tuple):
        return [without_places(one) for one in value]
    return value
