"""What a scalar of a YAML file is: text, a number, true or false, or nothing.

YAML 1.1 also reads 010 as 8, 1:30 as 90, 2024-01-01 as a date and 1e-4 as text, and has sets (in no
order), bytes and objects. Here 1e-4 is a number, the first three are the text that they show, and
the others are refused. Knows nothing of files.
"""

import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
STR, INT, FLOAT, MERGE = TAG + "str", TAG + "int", TAG + "float", TAG + "merge"
CHECKED = (INT, FLOAT, TAG + "bool", TAG + "null")
MOST_DIGITS = 40  # Python does not even print an integer of some thousands

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
_NOT_AS_YAML_1_1 = (INT, FLOAT, TAG + "timestamp")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


class PlainLoader(_BASE):  # type: ignore[misc]
    """Reads YAML into dict, list, str, int, float, bool and None, and nothing else."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own form)
        first: [pair for pair in known if pair[0] not in _NOT_AS_YAML_1_1]
        for first, known in _BASE.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: build
        for tag, build in _BASE.yaml_constructors.items()
        if tag not in {TAG + name for name in ("binary", "timestamp", "omap", "pairs", "set")}
    }


PlainLoader.add_implicit_resolver(INT, re.compile(rf"(?:{_INT.pattern})\Z"), list("-+0123456789"))
PlainLoader.add_implicit_resolver(
    FLOAT, re.compile(rf"(?:{_FLOAT.pattern})\Z"), list("-+0123456789.")
)


_RESOLVER = PlainLoader("")


def scalar_mistake(node: yaml.ScalarNode) -> str | None:
    """Return what is wrong with a scalar whose tag says that it is no text; None: nothing."""
    if node.tag == INT and len(node.value) > MOST_DIGITS:
        return f"a whole number of {len(node.value)} digits is too long"
    if node.tag not in CHECKED:
        return None
    is_a = _RESOLVER.resolve(yaml.ScalarNode, node.value, (True, False))
    if is_a == node.tag or (node.tag == FLOAT and is_a == INT):
        return None
    return f"{node.value!r:.60} is not what its tag !!{node.tag.removeprefix(TAG)} says"
