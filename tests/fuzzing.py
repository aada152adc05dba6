"""Broken inputs from a seed, and what every parser must do with one.

Knows nothing of which parsers there are.
"""

import copy
import gzip
import json
import math
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from sweeps.cli import _is_ours

SEED = 20250725
CASE_CPU_S = 5  # of processor time: the machine may be busy
MOST_TOLD = 4_000  # characters of a refusal
MOST_LINES = 22
ENOUGH = 20  # failures, to show a small one of


def nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return value


TEXTS = [
    "", " ", "\0", "\x1b[31mred", "\ufeff", "\u2028", "\x85", "a\r\nb", "a\nb", "\t", "ＦＵＬＬ",
    "nаme", "😀", "e\u0301", "\u202eabc", "x" * 5000, "é" * 400, "~nobody-here/x", "../up",
    "/dev/null", "a\0b.jsonl", "{question}", "{answer}", "{other}", "1", "1.0", "true", "yes",
    "null", "NaN", "1e-4", "010", "1:30", "2024-01-01", "0x10", "1_000", "none", "main", "<<", "=",
    "[", "(?L)a", "(a", "a{99999999999}", "https://x.org\n", "http://[::1", "YES", "-", "'", '"',
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 100, 101, 2**31, 2**63, 2**64, 10**30, 10**60, 0.5, 1.0, 3.0, -0.0, 1e-4, 1e308,
    1e-320, math.inf, -math.inf, math.nan,
]  # fmt: skip
OTHERS = [None, True, False, [], {}, [[]], {"a": {}}, [None], nested(60), nested(150)]
BYTES = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\t", b"\n", b"\x07", b"\xe2\x80\xa8", b"'",
    b'"', b"&a ", b"*a", b"<<: *a\n", b"!!set ", b"!!binary ", b"!!int ", b"!!bool ", b"!!float ",
    b"!!timestamp ", b"!!omap ", b"!!python/object/apply:os.abort []", b"!mine ", b"? ", b"? [a]\n",
    b"- ", b": ", b"{", b"}", b"[", b"]", b",", b"#", b"---\n", b"...\n", b"%YAML 3.0\n", b"|",
    b"\\", b"\\ud800", b"\\u0000", b"NaN", b"Infinity", b"9" * 5000, b"0x" + b"f" * 6000,
    b"1e999", b"[" * 3000, b"{a: " * 300, b'{"a":' * 3000, b"- " * 1200, b"010", b"1:30", b"yes",
    b"true", b"1e5", b"\xed\xa0\x80", b"\xc0\x80",
]  # fmt: skip
# Billions of values in few lines: by aliases, and by merge keys.
ALIASES = b"".join(
    b"k%d: &k%d [%s]\n" % (n, n, b",".join([b"*k%d" % (n - 1) if n else b"x"] * 9))
    for n in range(12)
)
MERGES = b"k0: &k0 {a: 1}\n" + b"".join(
    b"k%d: &k%d {<<: [%s]}\n" % (n, n, b",".join([b"*k%d" % (n - 1)] * 9)) for n in range(1, 12)
)
ITSELF = b"k0: &k0 [*k0]\n"


def any_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(rng.choice([TEXTS, NUMBERS, OTHERS])))


def mutated(value: Any, rng: random.Random) -> Any:
    """Return `value` (of JSON's types) with one to three things in it changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        parents = [place for place in _containers(value) if place]
        if not parents or rng.random() < 0.01:
            return any_value(rng)
        _change(rng.choice(parents), rng)
    return value


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def _change(parent: Any, rng: random.Random) -> None:
    key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    old = parent[key]
    match rng.randrange(10):
        case 0:
            del parent[key]
        case 1:
            parent[key] = [old]
        case 2:
            parent[key] = _another_type(old)
        case 3:
            parent[key] = rng.choice([{}, [], None, "", nested(rng.randrange(90, 130))])
        case 4 if isinstance(parent, list):
            parent.append(copy.deepcopy(old))
        case 4:
            name = rng.choice([key + " ", key.upper(), key.replace("a", "а"), "", "x" * 3000])
            parent[name] = parent.pop(key)
        case 5 if isinstance(parent, list):
            parent.reverse()
        case 5:
            parent[rng.choice(TEXTS)] = any_value(rng)
        case 6 if isinstance(old, str):
            at = rng.randrange(len(old) + 1)
            parent[key] = old[:at] + rng.choice(TEXTS) + old[at:]
        case 7:
            parent[key] = rng.choice(NUMBERS)
        case _:
            parent[key] = any_value(rng)


def _another_type(value: Any) -> Any:
    match value:
        case bool():
            return int(value)
        case int():
            return value == 1 if value in (0, 1) else str(value)
        case float():
            return str(value)
        case str():
            return [value]
        case list():
            return {str(n): item for n, item in enumerate(value)}
        case dict():
            return list(value.values())
    return "null"


def mutated_bytes(data: bytes, rng: random.Random, more: Sequence[bytes] = ()) -> bytes:
    """Return `data` with one to three places broken. `more` may be put before it."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice([1, 1, 5, 60, 2000]))
        lines = data.split(b"\n")
        match rng.randrange(12):
            case 0:
                data = data[:start] + data[stop:]
            case 1:
                data = data[:stop] + data[start:]
            case 2:
                data = data[:start]
            case 3:
                data = data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\x0b", b" "]))
            case 4:
                data = b"\xef\xbb\xbf" + data
            case 5:
                data = data[:start] + rng.randbytes(rng.randrange(1, 9)) + data[stop:]
            case 6:
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                data = b"\n".join(lines)
            case 7:
                rng.shuffle(lines)
                data = b"\n".join(lines)
            case 8 if more:
                data = rng.choice(more) + data
            case 9 if rng.random() < 0.1:
                data = rng.choice([b"", b"\n", data.decode("latin-1").encode("utf-16")])
            case _:
                data = data[:start] + rng.choice(BYTES) + data[start:]
    return data


def mutated_gzip(data: bytes, rng: random.Random) -> bytes:
    """Return `data` compressed, and half of the time torn."""
    packed = gzip.compress(data, mtime=0)
    return mutated_bytes(packed, rng) if rng.random() < 0.5 else packed


def yaml_text(value: Any) -> str:
    """Return a value of JSON's types as YAML that can mean nothing else."""
    match value:
        case dict():
            return (
                "{"
                + ", ".join(f"? {yaml_text(k)} : {yaml_text(v)}" for k, v in value.items())
                + "}"
            )
        case list():
            return "[" + ", ".join(map(yaml_text, value)) + "]"
        case str():
            plain = {'"': '\\"', "\\": "\\\\"}
            shown = (
                plain.get(c) or (c if 32 <= ord(c) < 127 else f"\\U{ord(c):08x}") for c in value
            )
            return f'"{"".join(shown)}"'
        case float() if math.isnan(value):
            return ".nan"
        case float() if math.isinf(value):
            return ".inf" if value > 0 else "-.inf"
    return json.dumps(value)


def difference(given: Any, kept: Any, place: str = "") -> str | None:
    """Return where `kept`, a record dumped as JSON, is not what was `given`, type for type.

    A part that says nothing (null, empty) may be left out of a dump.
    """
    if isinstance(given, dict) and isinstance(kept, dict):
        missing = (key for key, value in given.items() if key not in kept and value)
        parts = [(key, given[key], kept[key]) for key in given if key in kept]
        found = (difference(one, other, f"{place}.{key}") for key, one, other in parts)
        return next((f"{place}.{key}: left out" for key in missing), None) or next(
            filter(None, found), None
        )
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = zip(given, kept, strict=True)
        inner = (difference(a, b, f"{place}.{n}") for n, (a, b) in enumerate(pairs))
        return next(filter(None, inner), None)
    if type(given) is int and type(kept) is float:  # 1 for 1.0
        given = float(given)
    if type(given) is type(kept) and given == kept:
        return None
    return f"{place}: {given!r:.200} became {kept!r:.200}"


def check_kept(given: Any, kept: Any) -> None:
    """Raise Broken where `kept` is not what was `given`."""
    if wrong := difference(given, kept):
        raise Broken(f"changed in silence: {wrong}")


class Broken(AssertionError):
    """A parser did what none may do."""


@contextmanager
def _bounded() -> Iterator[None]:
    """End what takes more than CASE_CPU_S seconds of processor time."""

    def end(signum: int, frame: object) -> None:
        raise Broken(f"more than {CASE_CPU_S} s")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, CASE_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check_refusal(error: ValueError, where: str) -> None:
    """Raise Broken where a refusal is not one that a user can be shown."""
    text = str(error)
    shown = repr(text[:300])
    if isinstance(error, ValidationError) or not _is_ours(error):
        raise Broken(f"{type(error).__name__} of a library: {shown}") from error
    if where not in text:
        raise Broken(f"{where!r} is not named: {shown}")
    if len(text) > MOST_TOLD or text.count("\n") >= MOST_LINES:
        raise Broken(f"{len(text)} characters, {text.count(chr(10)) + 1} lines: {shown}")
    if not text.replace("\n", "").isprintable():
        raise Broken(f"not printable: {shown}")
    if "Traceback" in text or "pydantic" in text:
        raise Broken(f"the words of a library: {shown}")


class Case(NamedTuple):
    """What is parsed, and what does it: ValueError is a refusal, which names `where`."""

    shown: bytes
    check: Callable[[], None]
    where: str


def hold(name: str, cases: Callable[[random.Random], Case], *, num: int) -> None:
    """Assert that each of `num` cases is accepted or refused as it should be, and some are either.

    Of the failures, the smallest input is shown.
    """
    ends: Counter[str] = Counter()
    failures: list[tuple[int, int, Case, BaseException]] = []
    for number in range(num):
        case = cases(random.Random(f"{SEED}/{name}/{number}"))
        try:
            with _bounded():
                try:
                    case.check()
                    ends["accepted"] += 1
                except ValueError as error:
                    check_refusal(error, case.where)
                    ends["refused"] += 1
        except Exception as error:  # noqa: BLE001  (any is a failure, and the smallest is shown)
            failures.append((len(case.shown), number, case, error))
            if len(failures) == ENOUGH:
                break
    if failures:
        size, number, case, error = min(failures, key=lambda failure: failure[:2])
        raise AssertionError(
            f"{len(failures)} of {num} cases of {name!r} failed (seed {SEED}); the smallest, "
            f"number {number} of {size} bytes: {case.shown[:2000]!r}\n"
            f"{type(error).__name__}: {error}"
        ) from error
    assert min(ends["accepted"], ends["refused"]) >= num / 50, (name, ends)


def file_case(path: Path, data: bytes, check: Callable[[Path], None]) -> Case:
    """A case that is a file of `data` at `path`."""

    def run() -> None:
        path.write_bytes(data)
        check(path)

    return Case(data, run, str(path))
