"""What a task's code is: hashes of its own files, versions of the packages that it imports.

Reads source files and the metadata of packages; imports nothing. Knows nothing of Inspect.
"""

import ast
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any


def code_of(file: Path) -> dict[str, Any]:
    """Return what the task in `file` is made of, with the files beside it that it imports."""
    folder = file.parent
    files, packages = {file: file.name}, dict[str, str]()
    waiting = [file]
    while waiting:
        for name in _imported(waiting.pop()):
            own = list(_beside(folder, name))
            for path in own:
                if path not in files:
                    files[path] = path.relative_to(folder).as_posix()
                    waiting.append(path)
            if not own and (version := version_of(name)) is not None:
                packages[name] = version
    others = {files[path]: _sha256(path) for path in sorted(files) if path != file}
    found: dict[str, Any] = {"sha256": _sha256(file)}
    return found | ({"beside": others} if others else {}) | _sorted("packages", packages)


@cache
def version_of(package: str) -> str | None:
    """Return the version of an installed package by the name it is imported by, None for others."""
    if package in sys.stdlib_module_names:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, [])
        return importlib.metadata.version(names[0]) if names else None


def _imported(file: Path) -> Iterator[str]:
    """Yield the first part of every module that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (
                [module.partition(".")[0]] if module else [alias.name for alias in node.names]
            )


def _beside(folder: Path, name: str) -> Iterator[Path]:
    if (folder / f"{name}.py").is_file():
        yield folder / f"{name}.py"
    elif (folder / name).is_dir():
        yield from sorted((folder / name).rglob("*.py"))


def _sorted(name: str, found: dict[str, str]) -> dict[str, dict[str, str]]:
    return {name: dict(sorted(found.items()))} if found else {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
