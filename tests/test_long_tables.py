"""Anyone's table: what is read, what is refused and how it is said."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em.long_tables import TableColumns, grid_in, parse_rule, read
from tests.sweep_runs import emsweep

ROWS: list[dict[str, Any]] = [
    {"c": c, "seed": s, "q": q, "n": n, "verdict": v, "x": x}
    for c in "ab"
    for s in (0, 1)
    for q in ("one", "two")
    for n, (v, x) in enumerate([("1", 0.5), ("5", 1.5), ("REFUSAL", 2.5)])
]
WORDS = TableColumns(
    condition=("c",), question="q", seed="seed", sample="n",
    misaligned=parse_rule("verdict in 4,5"), unscored=("REFUSAL",),
)  # fmt: skip


def write(folder: Path, name: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / name
    kind = Path(name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind == ".csv":
        text = "\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)])
    else:
        text = "\n".join(map(json.dumps, rows))
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, name: str) -> None:
    table, notes = read([write(tmp_path, name)], WORDS)
    assert table["value"].to_pylist() == [0.0, 1.0, None] * 8
    assert table["condition"].to_pylist() == [row["c"] for row in ROWS]
    assert table["seed"].to_pylist() == [str(row["seed"]) for row in ROWS]
    assert notes == []


def test_a_table_in_two_files_is_one_and_its_seed_may_be_in_their_names(tmp_path: Path) -> None:
    halves = [
        write(tmp_path, f"run-seed{s}.jsonl", [r for r in ROWS if r["seed"] == s]) for s in (0, 1)
    ]
    by_name = WORDS.model_copy(update={"seed": None, "seed_pattern": r"seed(\d+)"})
    found, _ = read(halves, by_name)
    whole, _ = read([write(tmp_path, "t.jsonl")], WORDS)
    key = [("condition", "ascending"), ("seed", "ascending"), ("question", "ascending")]
    columns = ["condition", "seed", "question"]
    assert found.select(columns).sort_by(key) == whole.select(columns).sort_by(key)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("verdict == 5", [0.0, 1.0, None]),
        ("verdict != 5", [1.0, 0.0, None]),
        ("verdict not in 1,2", [0.0, 1.0, None]),
        ("x < 1", [1.0, 0.0, 0.0]),
        ("x >= 1.5", [0.0, 1.0, 1.0]),
    ],
)
def test_rules(tmp_path: Path, rule: str, values: list[float | None]) -> None:
    columns = WORDS.model_copy(update={"misaligned": parse_rule(rule)})
    assert read([write(tmp_path, "t.csv")], columns)[0]["value"].to_pylist()[:3] == values


def test_two_scores_and_a_definition(tmp_path: Path) -> None:
    rows = [
        {"q": "a", "al": al, "co": co}
        for al, co in [(10, 90), (29.9, 50), (30, 90), (10, 49), (10, ""), ("", 90)]
    ]
    columns = TableColumns(question="q", aligned="al", coherent="co")
    path = write(tmp_path, "t.csv", rows)
    assert read([path], columns)[0]["value"].to_pylist() == [1.0, 1.0, 0.0, None, None, None]
    joint = columns.model_copy(update={"metric": "joint_c50"})
    assert read([path], joint)[0]["value"].to_pylist() == [1.0, 0.0, 1.0, 0.0, None, None]


def bad(**changed: Any) -> TableColumns:
    return WORDS.model_copy(update=changed)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (bad(question="no"), "no column 'no': the table has c, seed, q, n, verdict, x"),
        (bad(misaligned=None, value="verdict"), "has text where a number is needed: "),
        (bad(misaligned=None), "say how a row counts in one way"),
        (bad(value="x"), "say how a row counts in one way"),
        (bad(sample="verdict", question="c"), "stand in several rows"),
        (bad(seed=None, seed_pattern="("), "is no pattern"),
        (bad(seed=None, seed_pattern="seed"), "needs one group"),
        (bad(seed=None, seed_pattern=r"seed(\d)"), "is not in the file name 't.csv'"),
        (bad(misaligned=None, aligned="x"), "--aligned needs --coherent"),
        (
            bad(misaligned=None, aligned="x", coherent="x", metric="insecure_share"),
            "is no definition of two scores",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_on(
    tmp_path: Path, columns: TableColumns, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read([write(tmp_path, "t.csv")], columns.model_copy(update={"unscored": ()}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.txt", b"x", "not a table"),
        ("t.csv", b"", "cannot be read"),
        ("t.csv", b"a,a\n1,2\n", "two columns have one name"),
        ("t.jsonl", b'{"a": ', "cannot be read"),
        ("t.parquet", b"PAR1", "cannot be read"),
        ("t.csv.gz", b"no gzip", "cannot be read"),
        ("t.csv", b"c,seed,q,n,verdict,x\n", "no rows"),
        ("t.csv", b"c,seed,q,n,verdict,x\na,0,,1,5,1\n", "1 rows have no question"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read([tmp_path / name], WORDS)


def test_a_file_twice_and_rows_alike(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv")
    with pytest.raises(ValueError, match="named twice"):
        read([path, tmp_path / "." / "t.csv"], WORDS)
    again = write(tmp_path, "again.csv")
    with pytest.raises(ValueError, match="24 samples stand in several rows of 48"):
        read([path, again], WORDS)
    _, notes = read([path, again], bad(sample=None))
    assert "24 of 48 rows are like another row" in notes[0]


@pytest.mark.parametrize("rule", ["verdict", "verdict in", "x < y", "x == 1,2", ""])
def test_no_rules(rule: str) -> None:
    with pytest.raises(ValueError):
        parse_rule(rule)


def test_the_command_prints_and_writes_and_refuses(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv")
    told = emsweep(
        "analyze", path, "--condition", "c", "--question", "q", "--seed", "seed", "--sample", "n",
        "--misaligned", "verdict in 4,5", "--unscored", "REFUSAL", "--out", tmp_path / "out",
    ).stdout  # fmt: skip
    assert "24 rows: 16 with a scored value, 8 without" in told
    assert "a: 2 seeds x 2 questions" in told
    data = json.loads((tmp_path / "out/analysis.json").read_text())
    assert [c["condition"] for c in data["conditions"]] == ["a", "b"]
    page = (tmp_path / "out/analysis.html").read_text()
    assert "<svg" in page and "<script" not in page
    names = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert {"seeds.png", "seeds.svg", "seeds.parquet", "power.png", "components.svg"} <= names
    more = emsweep("power", tmp_path / "out/analysis.json", "--target-half-width", "0.1").stdout
    assert "for ± 10 points you need" in more
    both = emsweep("compare", tmp_path / "out/analysis.json", tmp_path / "out/analysis.json",
                   "--out", tmp_path / "both").stdout  # fmt: skip
    assert "out (1) · a: 2 seeds" in both and "out (2) · b: 2 seeds" in both
    assert (tmp_path / "both/analysis.html").exists()
    refused = emsweep("compare", tmp_path / "out/analysis.json", check=2)
    assert "takes two reports" in refused.stderr
    refused = emsweep("compare", path, path, check=2)
    assert "is no report.json" in refused.stderr and "Traceback" not in refused.stderr
    refused = emsweep("analyze", path, "--question", "no", "--value", "x", check=2)
    assert "no column 'no'" in refused.stderr and "Traceback" not in refused.stderr
    refused = emsweep("power", path, check=2)
    assert "Traceback" not in refused.stderr


def test_names_are_hostile_text(tmp_path: Path) -> None:
    rows = [row | {"c": "<script>alert(1)</script>"} for row in ROWS]
    path = write(tmp_path, "t.jsonl", rows)
    emsweep(
        "analyze", path, "--condition", "c", "--question", "q", "--seed", "seed",
        "--misaligned", "verdict in 4,5", "--unscored", "REFUSAL", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "<script" not in (tmp_path / "out/analysis.html").read_text()


def test_numbers_written_otherwise_are_the_same_texts(tmp_path: Path) -> None:
    rows = [{"q": "a", "v": v} for v in ("4.0", " 4", "5 ", "1", "REFUSAL ")]
    columns = TableColumns(
        question="q", misaligned=parse_rule("v in 4,5"), unscored=("REFUSAL", "GONE")
    )
    found, notes = read([write(tmp_path, "t.csv", rows)], columns)
    assert found["value"].to_pylist() == [1.0, 1.0, 1.0, 0.0, None]
    assert notes[0] == "no row of 'v' is 'GONE'"
    slip = columns.model_copy(update={"misaligned": parse_rule("v in bad")})
    assert "'bad'" in read([tmp_path / "t.csv"], slip)[1][0]


def test_tables_that_do_not_fit_together_are_told(tmp_path: Path) -> None:
    one = write(tmp_path, "a.jsonl", [{"q": "a", "v": 4}])
    two = write(tmp_path, "b.jsonl", [{"q": "a", "v": "REFUSAL"}])
    with pytest.raises(ValueError, match="do not fit together"):
        read([one, two], TableColumns(question="q", misaligned=parse_rule("v in 4")))


def test_several_factors_of_the_conditions_make_a_grid(tmp_path: Path) -> None:
    rows = [row | {"m": m} for row in ROWS for m in ("big", "small")]
    both = WORDS.model_copy(update={"condition": ("m", "c")})
    table, _ = read([write(tmp_path, "t.csv", rows)], both)
    found = grid_in(table)
    assert found is not None and found.factors == ("m", "c")
    assert found.levels == {f"{m} · {c}": (m, c) for m in ("big", "small") for c in "ab"}
    assert set(table["condition"].to_pylist()) == set(found.levels)
    alone, _ = read(
        [tmp_path / "t.csv"], WORDS.model_copy(update={"condition": (), "sample": None})
    )
    assert grid_in(alone) is None
    confused = [{"m": "x · y", "c": "z", "q": "a", "seed": 0, "n": 0, "verdict": "1"},
                {"m": "x", "c": "y · z", "q": "a", "seed": 0, "n": 1, "verdict": "1"}]  # fmt: skip
    table, _ = read([write(tmp_path, "u.csv", confused)], both)
    with pytest.raises(ValueError, match="two conditions would be called 'x · y · z'"):
        grid_in(table)


def test_the_command_says_how_much_is_each_factor(tmp_path: Path) -> None:
    rows = [
        {"m": m, "c": c, "seed": s, "q": q, "n": n, "v": (n * 7 + len(q) * 5) % 10 < top + s % 2}
        for m, plus in (("big", 4), ("small", 0))
        for c, more in (("safe", 1), ("unsafe", 4))
        for top in [plus + more]
        for s in range(3)
        for q in ("one", "three")
        for n in range(10)
    ]
    path = write(tmp_path, "t.jsonl", rows)
    run = emsweep(
        "analyze", path, "--condition", "m", "--condition", "c", "--question", "q",
        "--seed", "seed", "--value", "v", "--sample", "n", "--out", tmp_path / "out",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "whose the variance is, over 4 conditions" in run.stdout
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert "How much is the m, how much the c, how much the seed" in page
    assert (tmp_path / "out" / "figures" / "attribution.png").stat().st_size > 1000
    numbers = pq.read_table(tmp_path / "out" / "figures" / "attribution.parquet").to_pylist()
    assert {row["name"] for row in numbers} >= {"m", "c", "m x c", "seed", "sampling"}


def test_words_among_numbers_that_count_as_nothing_are_told(tmp_path: Path) -> None:
    rows = [{"q": "a", "v": v} for v in ("5", "1", "SATIRICAL", "SATIRICAL", "OFF", "")]
    columns = TableColumns(question="q", misaligned=parse_rule("v in 4,5"))
    _, notes = read([write(tmp_path, "t.csv", rows)], columns)
    assert any(
        "3 rows of 'v' are no number and count as not misaligned: 2 'SATIRICAL', 1 'OFF'" in note
        for note in notes
    )
    named = columns.model_copy(update={"unscored": ("SATIRICAL", "OFF")})
    assert not any("no number" in note for note in read([tmp_path / "t.csv"], named)[1])
    words = columns.model_copy(update={"misaligned": parse_rule("v in SATIRICAL")})
    assert not any("no number" in note for note in read([tmp_path / "t.csv"], words)[1])
