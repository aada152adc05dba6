"""What Kubernetes lets an object say, by the models of its own Python client."""

import re
from typing import Any


def checked(kind: str, value: Any, path: str = "") -> Any:
    """Return `value` as the client's `kind` (such as V1PodTemplateSpec).

    Raises ValueError for a field that is not known or lacks, and for a value of another type.
    """
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        _is(list, value, path)
        return [checked(match[1], item, f"{path}[{n}]") for n, item in enumerate(value)]
    if match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        _is(dict, value, path)
        return {key: checked(match[1], item, f"{path}.{key}") for key, item in value.items()}
    plain: dict[str, type] = {"str": str, "int": int, "bool": bool, "float": float}
    if kind in plain:
        _is(plain[kind], value, path)
        return value
    if kind == "object":  # such as a port: a number or a name
        return value
    from kubernetes.client import models

    model = getattr(models, kind)
    _is(dict, value, path)
    fields = {written: name for name, written in model.attribute_map.items()}
    if unknown := set(value) - set(fields):
        raise ValueError(f"{path or kind}: no such field: {', '.join(sorted(unknown))}")
    return model(
        **{
            fields[key]: checked(model.openapi_types[fields[key]], item, f"{path}.{key}")
            for key, item in value.items()
        }
    )


def _is(kind: type, value: Any, path: str) -> None:
    if type(value) is not kind:
        raise ValueError(f"{path}: expected {kind.__name__}, got {value!r}")
