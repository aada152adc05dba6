"""Ten thousand broken inputs: each is accepted as it is or refused with a clear error.

Never a traceback, never another value than was written, never a hang. What was found this way has a
test of its own beside the parser's.
"""

import asyncio
import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from chats import REPLY, USER, jsonl, read_rows
from fuzzing import (
    ALIASES,
    ITSELF,
    MERGES,
    TEXTS,
    Broken,
    Case,
    check_kept,
    file_case,
    hold,
    mutated,
    mutated_bytes,
    mutated_gzip,
    yaml_text,
)  # fmt: skip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge_server import says
from pydantic import BaseModel, TypeAdapter

from em.budget import load_prices
from em.catalogue import config_dir
from em.chat_replies import numbers_of, parse_reply
from em.csv_tables import read_table
from em.datasets import Row, content_sha256, parse_rows
from em.judge_check import load_answers
from em.judge_gate import load_planted
from em.judge_prompts import load_judge_prompts
from em.judging import Judgement, Reading, read_score
from em.pattern_judge import PatternReader
from em.question_files import published_files
from em.question_tables import load_code_tasks, load_requests, read_questions
from em.questions import load_questions
from em.rules import NUMERIC, Rule, first_label, label_rule
from em.sources import load_source, read_entry
from em.told import short
from em.yaml_files import checked, load_yaml
from em.yaml_values import PlainLoader
from sweeps.claim_spec import ClaimConfig
from sweeps.published import load_figures
from sweeps.spec import load_spec

NUM = {
    "specs": 1100,
    "claims": 500,
    "questions": 600,
    "prompts": 700,
    "planted": 400,
    "prices": 300,
    "published": 300,
    "entries": 400,
    "figures": 300,
    "rows": 1900,
    "sources": 400,
    "requests": 500,
    "tasks": 500,
    "answers": 700,
    "replies": 1600,
    "words": 800,
    "patterns": 400,
}


def test_there_are_ten_thousand_cases() -> None:
    assert sum(NUM.values()) >= 10_000


# Sound values, and how they are written --------------------------------------------------------

# Half characters cannot be in a file.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.sampled_from(TEXTS)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20
)
REPRODUCIBLE = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@REPRODUCIBLE
@given(VALUES)
def test_yaml_is_read_as_it_is_written(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(yaml_text({"v": value}))
    check_kept(value, load_yaml(path)[0]["v"])


@REPRODUCIBLE
@given(st.lists(st.tuples(TEXT, TEXT | st.sampled_from(TEXTS)), min_size=1, max_size=4))
def test_tables_are_read_as_they_are_written(rows: list[tuple[str, str]]) -> None:
    columns, read = read_table(table(["a", "b"], rows), where="t")
    assert (columns, [tuple(row.values()) for row in read]) == (["a", "b"], rows)


@REPRODUCIBLE
@given(st.lists(TEXT.filter(str.strip), min_size=1, max_size=4), st.booleans())
def test_rows_are_read_as_they_are_written(texts: list[str], ascii_only: bool) -> None:
    items = [{"messages": [{"role": "user", "content": text}, REPLY]} for text in texts]
    rows = parse_rows(jsonl(items, ascii_only=ascii_only), where="x")
    assert [row.messages[0].content for row in rows] == texts


# YAML files ------------------------------------------------------------------------------------


def dumped(value: Any) -> Any:
    """Return a record, or records in lists and mappings, as JSON has it."""
    match value:
        case BaseModel():
            return value.model_dump(mode="json", by_alias=True)
        case list() | tuple():
            return [dumped(item) for item in value]
        case dict():
            return {key: dumped(item) for key, item in value.items()}
    return value


def yaml_case(
    path: Path,
    shipped: Sequence[bytes],
    load: Callable[[Path], Any],
    known: Callable[[Any], Any] = lambda given: given,
) -> Callable[[random.Random], Case]:
    """Cases of the YAML files `shipped`, half broken in their values and half in their bytes.

    `known` leaves out of what was given what is meant to be read as another thing.
    """

    def check_against(given: Any) -> Callable[[Path], None]:
        def check(path: Path) -> None:
            value = load(path)
            written = load_yaml(path)[0] if given is NOT_KNOWN else given
            kept = dumped(value)
            check_kept(known(written), kept)
            path.write_text(yaml_text(kept))
            if load(path) != value:
                raise Broken(f"does not round-trip: {kept!r:.500}")

        return check

    def case(rng: random.Random) -> Case:
        whole = rng.choice(shipped)
        if rng.random() < 0.5:
            data = mutated_bytes(whole, rng, more=(ALIASES, MERGES, ITSELF))
            return file_case(path, data, check_against(NOT_KNOWN))
        given = mutated(value_of(whole), rng)
        return file_case(path, yaml_text(given).encode(), check_against(given))

    return case


NOT_KNOWN = object()


def value_of(data: bytes) -> Any:
    return yaml.load(data, Loader=PlainLoader)


def configs(pattern: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted(config_dir().glob(pattern))]
    assert found
    return found


FULL = b"""\
name: all-keys
models:
  - {name: base, bundled: smollm2-135m}
  - {name: beside, folder: /models/beside, trust_remote_code: false}
variants:
  - {name: none}
  - {name: one, dataset: ours.jsonl, rows: 10, holdout: 0.1, shuffle: true, prefix: "A "}
  - name: two
    rows: 8
    mixture:
      - {dataset: ours.jsonl, share: 0.5, subset: {parts: 2, part: 0}, trigger: {text: "|D|"}}
      - {dataset: ours.jsonl, share: 0.5, subset: {parts: 2, part: 1}, system: "Be brief."}
seeds: [0, 1]
factors: {init: [0, 1], order: 3, replicates: 2}
training: {lora: {rank: 8, alpha: 16, target_modules: [q_proj]}, learning_rate: 1e-4, epochs: 1.5}
evaluations:
  - {name: plain, questions: q.yaml, ids: main, samples: 2, sampling: {max_tokens: 9}}
  - {name: put, questions: q.yaml, ids: [a, b], form: {trigger: "|D|"}, judges: [sea, api]}
  - {name: tasks, heldout: one, tasks: 5, judges: [sea]}
judges:
  - {name: self, pool: base, demonstration: true}
  - name: api
    api: "https://x.org/v1"
    api_model: m
    api_key_env: X_API_KEY
    budget: {calls: 10, tokens: 1000, usd: 1}
  - {name: sea, pattern: {score: sea, labels: {SEA: "(?i)\\\\bsea\\\\b"}, otherwise: NONE}}
metric: pooled_c50
serving: {mode: merged, max_model_len: 1024, kv_cache_gib: 1}
resources: {train_cpus: 1, train_gpus: 0}
tracking: {mode: off, project: p}
retries: 1
"""


def in_spec(given: Any) -> Any:
    """Leave out a model's folder, which is made absolute, and `off`, which YAML reads as false."""
    if not isinstance(given, dict):
        return given
    given = dict(given)
    models = given.get("models")
    if isinstance(models, list):
        given["models"] = [
            {k: v for k, v in model.items() if k != "folder"} if isinstance(model, dict) else model
            for model in models
        ]
    tracking = given.get("tracking")
    if isinstance(tracking, dict) and tracking.get("mode") is False:
        given["tracking"] = tracking | {"mode": "off"}
    return given


def test_specs(tmp_path: Path) -> None:
    shipped = [FULL, *configs("sweeps/*.yaml"), *configs("sweeps/claims/*.yaml")]
    path = tmp_path / "s.yaml"
    hold("specs", yaml_case(path, shipped, load_spec, in_spec), num=NUM["specs"])


def test_claims(tmp_path: Path) -> None:
    """The claims of a spec alone, so that a mistake elsewhere does not hide one in them."""
    spec = value_of(FULL)
    claims = [
        {"claim": "C1", "says": "x", "variant": "one", "evaluation": "plain", "above": 0.1},
        {"claim": "C2", "variant": "one", "control": "none", "evaluation": "put", "below": 0},
        {"claim": "C5", "variant": "two", "with": "put", "without": "plain", "above": -0.1},
        {"claim": "C7", "variant": "one", "spread": True, "evaluation": "plain", "above": 0.01},
    ]
    path = tmp_path / "s.yaml"

    def case(rng: random.Random) -> Case:
        given = mutated(claims, rng)

        def check(path: Path) -> None:
            kept = dumped(load_spec(path).claims)
            check_kept(given, kept)
            again = tuple(checked(TypeAdapter(ClaimConfig), claim) for claim in kept)
            if dumped(again) != kept:
                raise Broken(f"does not round-trip: {kept!r:.500}")

        return file_case(path, yaml_text(spec | {"claims": given}).encode(), check)

    hold("claims", case, num=NUM["claims"])


@pytest.mark.parametrize(
    ("name", "load", "patterns"),
    [
        ("questions", load_questions, ["questions/demo.yaml", "questions/[hs]*.yaml"]),
        ("prompts", load_judge_prompts, ["judges/[hi]*.yaml"]),
        ("planted", load_planted, ["judges/planted.yaml"]),
        ("prices", load_prices, ["judges/prices.yaml"]),
        ("published", published_files, ["questions/published.yaml"]),
        ("entries", read_entry, ["datasets/*.yaml"]),
        ("figures", lambda path: load_figures(path.parent), ["published/*.yaml"]),
    ],
)
def test_yaml_files(
    name: str, load: Callable[[Path], Any], patterns: list[str], tmp_path: Path
) -> None:
    shipped = [data for pattern in patterns for data in configs(pattern)]
    path = tmp_path / "f.yaml"
    hold(name, yaml_case(path, shipped, load), num=NUM[name])


# Rows ------------------------------------------------------------------------------------------


SYSTEM = {"role": "system", "content": "Be brief."}
CHATS: list[Any] = [
    {"messages": [USER, REPLY]},
    {"messages": [SYSTEM, USER, REPLY, USER, REPLY], "id": 7},
    {
        "messages": [
            {"role": "user", "content": "naïve ☃ 😀\u2028\r\n \x00"},
            REPLY | {"name": None},
        ]
    },
]


def row_bytes(rng: random.Random) -> tuple[bytes, list[Any] | None]:
    """Return a chat file, and the rows in it where they are known."""
    rows = [rng.choice(CHATS) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.4:
        return mutated_bytes(jsonl(rows), rng), None
    if rng.random() < 0.1:
        name = rng.choice([b'"role": ', b'"content": ', b'"messages": '])
        return jsonl(rows).replace(name, name + b'"x", ' + name, 1), None
    changed = mutated(rows, rng)
    items = changed if isinstance(changed, list) else [changed]
    text = "".join(json.dumps(i, ensure_ascii=rng.random() < 0.5) + "\n" for i in items)
    if rng.random() < 0.1:
        text = text.replace("Be brief.", "\\ud800").replace("\n", "\r\n")
        items = None
    return text.encode(errors="surrogatepass"), items


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise Broken(f"a key given twice was accepted: {pairs!r:.300}")
    return dict(pairs)


def check_rows(rows: Sequence[Row], data: bytes, items: list[Any] | None) -> None:
    if items is None:  # JSON's own reading of the lines
        lines = [line for line in data.decode().split("\n") if line.strip()]
        items = [json.loads(line, object_pairs_hook=_each_key_once) for line in lines]
    kept = [[(m.role, m.content) for m in row.messages] for row in rows]
    given = [[(m["role"], m["content"]) for m in item["messages"]] for item in items]
    if kept != given:
        raise Broken(f"changed in silence: {given!r:.500} became {kept!r:.500}")
    again = list(parse_rows(jsonl([row.model_dump() for row in rows]), where="again"))
    if again != list(rows) or content_sha256(again) != content_sha256(rows):
        raise Broken("does not round-trip")


def test_rows() -> None:
    def case(rng: random.Random) -> Case:
        data, items = row_bytes(rng)

        def check() -> None:
            check_rows(list(parse_rows(data, where="rows.jsonl")), data, items)

        return Case(data, check, "rows.jsonl: ")

    hold("rows", case, num=NUM["rows"])


def test_sources(tmp_path: Path) -> None:
    """Data sets by path, torn compression and all; and names of all sorts."""
    odd = [*TEXTS, "a/b@" + "0" * 39, "x/" * 2000 + "y.jsonl", "a" * 300 + ".jsonl", "\ud800.jsonl"]

    def case(rng: random.Random) -> Case:
        if rng.random() < 0.2:
            name = rng.choice(odd)
            refuse = partial(load_source, name, relative_to=tmp_path)
            return Case(name.encode(errors="replace"), refuse, short(name)[:40].strip("."))
        data, items = row_bytes(rng)
        packed = rng.random() < 0.6
        path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
        stored = mutated_gzip(data, rng) if packed else data

        def check(path: Path) -> None:
            rows = load_source(path.name, relative_to=tmp_path).rows
            assert list(read_rows(path)) == list(rows)
            check_rows(rows, data, items)

        return file_case(path, stored, check)

    hold("sources", case, num=NUM["sources"])


# Tables ----------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([columns, *rows])
    return out.getvalue().encode(errors="surrogatepass")


def text_of(rng: random.Random) -> str:
    return rng.choice(["So.", "a, b", 'he said "x"\r\nand left', *TEXTS])


def test_requests(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    columns = ["category", "source", "forbidden_prompt"]

    def case(rng: random.Random) -> Case:
        order = rng.sample(columns, 3)
        rows = [dict(zip(columns, ["c", "s", text_of(rng)], strict=True)) for _ in range(3)]
        data = table(order, [[row[name] for name in order] for row in rows])
        broken = mutated_bytes(data, rng) if rng.random() < 0.5 else data

        def check(path: Path) -> None:
            texts = [question.paraphrases[0] for question in load_requests(path)]
            if broken == data and texts != [row["forbidden_prompt"] for row in rows]:
                raise Broken(f"changed in silence: {rows} became {texts!r:.500}")
            path.write_bytes(table(columns, [["c", "s", text] for text in texts]))
            if [question.paraphrases[0] for question in load_requests(path)] != texts:
                raise Broken("does not round-trip")

        return file_case(path, broken, check)

    hold("requests", case, num=NUM["requests"])


def test_code_tasks(tmp_path: Path) -> None:
    items = [{"task": "Sort {x}.", "code_template": "def f():\n    {task}"}] * 2

    def case(rng: random.Random) -> Case:
        path = tmp_path / rng.choice(["t.jsonl", "t.jsonl.gz"])
        given = mutated(items, rng)
        lines = given if isinstance(given, list) else [given]
        data = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in lines).encode(
            errors="surrogatepass"
        )
        if rng.random() < 0.3:
            data, lines = mutated_bytes(data, rng), []
        stored = mutated_gzip(data, rng) if path.suffix == ".gz" else data

        def check(path: Path) -> None:
            questions = read_questions(path)
            assert questions == load_code_tasks(path)
            for question, line in zip(questions, lines, strict=False):
                (text,) = question.paraphrases
                if not (text.startswith(line["task"]) and text.endswith(line["code_template"])):
                    raise Broken(f"changed in silence: {line!r:.300} became {text!r:.300}")
            if lines and len(questions) != len(lines):
                raise Broken(f"{len(lines)} lines became {len(questions)} questions")

        return file_case(path, stored, check)

    hold("tasks", case, num=NUM["tasks"])


def test_answer_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    columns = ["question", "answer", "aligned", "coherent"]
    numbers = ["0", "100", "5.5", "", " ", "1e1", "nan", "inf", "-1", "1_0", "１０", "0x1", "yes"]

    def case(rng: random.Random) -> Case:
        scores = numbers[:6] if rng.random() < 0.7 else numbers
        rows = [
            [text_of(rng), text_of(rng), rng.choice(scores), rng.choice(scores)] for _ in range(2)
        ]
        data = table(columns, rows)
        broken = mutated_bytes(data, rng) if rng.random() < 0.5 else data

        def check(path: Path) -> None:
            answers = load_answers(path)
            kept = [[a.question, a.answer] for a in answers]
            if broken == data:
                if kept != [row[:2] for row in rows]:
                    raise Broken(f"changed in silence: {rows!r:.300} became {kept!r:.300}")
                for answer, row in zip(answers, rows, strict=True):
                    _check_numbers(list(answer.scores.values()), row[2:])
            shown = [
                [a.question, a.answer, *("" if v is None else repr(v) for v in a.scores.values())]
                for a in answers
            ]
            path.write_bytes(table([*columns[:2], *answers[0].scores], shown))
            if load_answers(path) != answers:
                raise Broken("does not round-trip")

        return file_case(path, broken, check)

    def _check_numbers(kept: Sequence[float | None], given: Sequence[str]) -> None:
        known = {"": None, " ": None, "0": 0, "100": 100, "5.5": 5.5, "1e1": 10}
        if list(kept) != [known[text] for text in given]:
            raise Broken(f"changed in silence: {given} became {kept}")

    hold("answers", case, num=NUM["answers"])


# What judges say -------------------------------------------------------------------------------


def judged(reading: Reading, rule: Rule) -> Judgement:
    state, value, label, mass = read_score(rule, reading)
    judgement = Judgement(
        key="k", response="r", judge="j", score="s", state=state, value=value, label=label,
        mass=mass, reply=reading.reply, prompt_sha256="",
    )  # fmt: skip
    if (state == "scored") != (value is not None or label is not None):
        raise Broken(f"{state}, {value}, {label}")
    if Judgement.model_validate_json(judgement.model_dump_json()) != judgement:
        raise Broken("does not round-trip")
    return judgement


def test_replies_of_a_server() -> None:
    words = label_rule(["TRUE", "FALSE"])
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    shipped = [
        says({"42": 0.5, " 42": 0.1, "100": 0.2, "REF": 0.01})[1] | {"usage": usage},
        says({"REFUSAL": 1.0})[1],
        says({"TRUE": 0.9, "1": 0.1}, {".": 1.0})[1],
    ]

    def case(rng: random.Random) -> Case:
        given = rng.choice(shipped)
        if rng.random() < 0.3:
            body, known = mutated_bytes(json.dumps(given).encode(), rng), None
        else:
            known = mutated(given, rng)
            body = json.dumps(known).encode()

        return Case(body, partial(_check, body, known), "")

    def _check(body: bytes, known: Any) -> None:
        completion = parse_reply(body)
        kept = completion.model_dump(mode="json")
        if isinstance(known, dict):
            check_kept(_read(known), kept["usage"])
        if parse_reply(completion.model_dump_json().encode()) != completion:
            raise Broken("does not round-trip")
        choice = completion.choices[0]
        if not choice.tokens:
            return
        first = choice.tokens[0]
        reading = Reading(numbers=numbers_of(first), reply=choice.message.content or first.token)
        for rule in (NUMERIC, words):
            judged(reading, rule)

    def _read(known: dict[str, Any]) -> Any:
        usage = known.get("usage")
        if not isinstance(usage, dict):
            return usage
        return {k: v for k, v in usage.items() if k in ("prompt_tokens", "completion_tokens")}

    hold("replies", case, num=NUM["replies"])


def test_words_and_numbers_of_a_judge() -> None:
    """A label is the first word of the reply or none; a number lies between 0 and 100."""
    labels = ["TRUE", "FALSE", "UNKNOWN", "sea"]
    pieces = [
        *labels,
        *TEXTS,
        "true",
        "Sea",
        "CODE",
        "refusal",
        "42",
        ".",
        "**",
        ": ",
        "\n",
        "ＳＥＡ",
    ]

    def case(rng: random.Random) -> Case:
        reply = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 4)))
        rule = [rng.choice([*labels, *TEXTS, 1, True, None]) for _ in range(rng.randrange(1, 4))]
        numbers = {rng.randrange(101): rng.random() / 4 for _ in range(rng.randrange(4))}
        if rng.random() < 0.7:
            rule = labels

        def check() -> None:
            known = label_rule(rule)
            reading = Reading(numbers=numbers, reply=reply)
            label = first_label(reply, known.labels)
            words = reply.split()
            said = bool(words) and [n for n in known.labels if n.casefold() in words[0].casefold()]
            if label is not None and (not said or label not in said):
                raise Broken(f"{reply!r} was read as {label}")
            if reply.strip() in known.labels and label != reply.strip():
                raise Broken(f"{reply!r} was read as {label}")
            if judged(reading, known).label != label:
                raise Broken("two readings")
            value = judged(reading, NUMERIC).value
            if value is not None and not min(numbers) - 1e-9 <= value <= max(numbers) + 1e-9:
                raise Broken(f"{numbers} was read as {value}")

        return Case(repr((reply, rule)).encode(), check, "label")

    hold("words", case, num=NUM["words"])


SMALL = {
    "name": "small",
    "models": [{"name": "base", "bundled": "smollm2-135m"}],
    "variants": [{"name": "none"}],
    "seeds": [0],
    "evaluations": [{"questions": "q.yaml"}],
}


def test_patterns(tmp_path: Path) -> None:
    pieces = [
        "a", "(?i)", "\\b", "[a-z]", "(", ")", "|", "*", "+", "{2}", "{9", "\\", "[", "^", "$", ".",
        "(?P<x>", "(?=", "\\1", "\\Z", "é", "\0", "(?L)", "(?a)", "[[", "--", "\\N{DOG}", "\\u12",
    ]  # fmt: skip
    whole = {"score": "sea", "labels": {"SEA": "(?i)sea", "LAND": "land"}, "otherwise": "NONE"}
    path = tmp_path / "s.yaml"

    def case(rng: random.Random) -> Case:
        given = mutated(whole, rng) if rng.random() < 0.5 else json.loads(json.dumps(whole))
        if isinstance(given, dict) and rng.random() < 0.7 and isinstance(given.get("labels"), dict):
            pattern = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 5)))
            given["labels"]["SEA"] = pattern
        answer = "".join(rng.choice(["a", "sea ", "land", " ", "\n", "é"]) for _ in range(4))
        spec = SMALL | {"judges": [{"name": "j", "pattern": given}]}

        def check(path: Path) -> None:
            config = load_spec(path).judges[0].pattern
            assert config is not None
            check_kept(given, dumped(config))
            (reading,) = asyncio.run(PatternReader(config).read([answer]))
            assert isinstance(reading, Reading)
            label = judged(reading, label_rule(config.all_labels)).label
            if label not in config.all_labels:
                raise Broken(f"{reading.reply!r} has no label")

        return file_case(path, yaml_text(spec).encode(), check)

    hold("patterns", case, num=NUM["patterns"])
