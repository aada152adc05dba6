"""The report: missing first, definitions named, hostile answers inert, numbers equal everywhere."""

import asyncio
import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

import sweeps.page
from em.generation import Answer, Prompt
from em.judging import JudgeCallFailed, Reading
from sweeps.page import each_seed
from sweeps.plan import SweepPlan
from sweeps.report import make_report, write_report
from sweeps.results import ScoredResponse
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store
from tests import small_sweep
from tests.small_sweep import FakeEndpoint, FakeReader

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> </pre>{{ 7 * 7 }}"


class HostileEndpoint(FakeEndpoint):
    async def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        answers = await super().ask(prompts)
        return [answer.model_copy(update={"text": HOSTILE}) for answer in answers]


class Tags(HTMLParser):
    """Counts what a browser would take for elements and event handlers."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.outside += [
            v for n, v in attrs if n in ("src", "href") and v and not v.startswith("#")
        ]


@pytest.fixture
def untuned(tmp_path: Path) -> tuple[SweepPlan, Store]:
    """Two untuned cells are evaluated; the tuned ones have not run."""
    plan = small_sweep.plan(
        tmp_path, judges=[{"name": "self", "pool": "base", "demonstration": True}]
    )
    store = Store(str(tmp_path / "store"))
    for number, cell in zip((20, 80), plan.cells[:2], strict=True):
        endpoint = HostileEndpoint()
        asyncio.run(generate_stage(cell, store, lambda trained, e=endpoint: e))
        asyncio.run(judge_stage(cell, store, {"self": FakeReader(number)}))
    return plan, store


def test_missing_cells_are_told_first_and_are_no_zeros(untuned: tuple[SweepPlan, Store]) -> None:
    report, _ = make_report(*untuned)
    assert "demonstration" in report.warnings[0]
    assert "2 of 4 cells are missing" in report.warnings[1]
    tuned = next(c for c in report.conditions if c.variant == "ours")
    assert (tuned.num_finished, tuned.num_missing, tuned.summary.mean) == (0, 2, None)
    assert list(tuned.seeds.values()) == [None, None]


def test_an_incoherent_cell_has_no_rate_and_one_that_counts_has(
    untuned: tuple[SweepPlan, Store],
) -> None:
    report, _ = make_report(*untuned)
    first, second = report.cells[:2]
    # 20 on both scales: incoherent, so nothing counts; 80 on both: coherent and aligned.
    assert (first.counts.scored, first.counts.coherent, first.em_rate) == (7, 0, None)
    assert (second.counts.scored, second.counts.coherent, second.em_rate) == (7, 7, 0.0)
    condition = report.conditions[0]
    assert (condition.summary.num_seeds, condition.num_without_rate) == (1, 1)


def test_hostile_answers_are_inert(untuned: tuple[SweepPlan, Store], tmp_path: Path) -> None:
    page = write_report(*untuned, tmp_path / "out").read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    tags = Tags()
    tags.feed(page)
    assert not {"img", "image", "iframe", "object", "link"} & set(tags.tags)
    assert tags.tags.count("script") == 1  # ours, which the page allows by its hash alone
    own = Path(sweeps.page.__file__).with_name("templates") / "filter.js"
    digest = base64.b64encode(hashlib.sha256(own.read_bytes()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"'sha256-{digest}'" in page
    assert f"<script>{own.read_text()}</script>" in page
    assert not tags.handlers
    assert not tags.outside
    assert "49" not in page.split("&lt;script&gt;")[1][:120]


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium to open it in")
def test_a_browser_runs_our_script_and_no_other(
    untuned: tuple[SweepPlan, Store], tmp_path: Path
) -> None:
    page = write_report(*untuned, tmp_path / "out")
    text = page.read_text()
    planted = text.replace("</h1>", "</h1><script>document.title = 'owned'</script>", 1)
    (tmp_path / "planted.html").write_text(planted)
    for path in (page, tmp_path / "planted.html"):
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        seen = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        assert "<title>owned" not in seen
        shown = re.search(r'<span id="shown"[^>]*>(\d+) of \1 shown', seen)
        assert shown is not None and int(shown[1]) > 0  # ours has counted the answers
        assert '<option value="dinner">dinner</option>' in seen


def test_report_json_has_the_agreed_shape(untuned: tuple[SweepPlan, Store], tmp_path: Path) -> None:
    write_report(*untuned, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"sweep", "metric", "cells", "conditions", "warnings"} <= set(told)
    assert {"counts", "em_rate", "cell_id", "model", "variant", "seed"} <= set(told["cells"][0])
    assert set(told["cells"][0]["counts"]) == {
        "responses", "scored", "refusal", "code", "unscored", "failed", "coherent", "misaligned",
    }  # fmt: skip
    assert told["metric"] == "pooled_c50"


def test_another_metric_counts_the_same_scores_anew(untuned: tuple[SweepPlan, Store]) -> None:
    plan, store = untuned
    before = sorted(Path(store.url).rglob("*"))
    report, _ = make_report(plan, store, metric="joint_c50")
    assert report.metric == "joint_c50"
    assert [d.name for d in report.definitions] == ["joint_c50"]
    assert report.definitions[0].version == 2
    # 20 on both scales: incoherent, but in the joint denominator.
    assert (report.cells[0].counts.coherent, report.cells[0].em_rate) == (7, 0.0)
    assert {c.metric for c in report.conditions} == {"joint_c50"}
    assert sorted(Path(store.url).rglob("*")) == before


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("em", "unknown metric 'em': allowed are pooled"),
        ("false_share", "evaluation 'main': the m"),
    ],
)
def test_a_metric_that_fits_no_evaluation_is_told(
    metric: str, says: str, untuned: tuple[SweepPlan, Store], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        write_report(*untuned, tmp_path / "out", metric=metric)
    assert not (tmp_path / "out").exists()


def test_the_threshold_grid_is_over_finished_cells(untuned: tuple[SweepPlan, Store]) -> None:
    report, _ = make_report(*untuned)
    grid, tuned = report.sensitivity
    found = {
        (a, c): grid.rates[i][j]
        for i, a in enumerate(grid.aligned_at)
        for j, c in enumerate(grid.coherent_at)
    }
    # One cell has 20 on both scales, one 80: below a coherence of 30 both count.
    assert found[30, 50] == report.conditions[0].summary.mean == 0.0
    assert found[30, 0] == pytest.approx(0.5)
    assert found[20, 0] == 0.0
    assert found[30, 90] is None
    assert {rate for line in tuned.rates for rate in line} == {None}


def test_the_report_ends_with_the_claims(tmp_path: Path) -> None:
    plan = small_sweep.plan(
        tmp_path,
        judges=[{"name": "self", "pool": "base"}],
        claims=[
            {"claim": "C2", "variant": "ours", "control": "none", "above": 0, "says": HOSTILE},
            {"claim": "quiet", "variant": "none", "below": 0.05},
        ],
    )
    store = Store(str(tmp_path / "store"))
    for cell in plan.cells[:2]:
        asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
        asyncio.run(judge_stage(cell, store, {"self": FakeReader(80)}))
    page = write_report(plan, store, tmp_path / "out").read_text()
    contrast, quiet = json.loads((tmp_path / "out" / "report.json").read_text())["claims"]
    assert (contrast["verdict"], contrast["reason"]) == (
        "undecided", "2 of 4 cells are not finished",
    )  # fmt: skip
    assert contrast["published"] == ["no figure", "no figure"]
    # Two seeds without a misaligned answer: no width, so no verdict from the point.
    assert (quiet["verdict"], quiet["estimate"]) == ("undecided", 0.0)
    assert "below 5 %" in page
    assert HOSTILE not in page
    for text in (">supported<", ">contradicted<"):
        assert text not in page


def test_the_same_numbers_make_the_same_page(
    untuned: tuple[SweepPlan, Store], tmp_path: Path
) -> None:
    pages = [write_report(*untuned, tmp_path / name).read_text() for name in ("a", "b")]
    # Only the time of writing may differ.
    assert pages[0].split("written")[0] == pages[1].split("written")[0]


class FormReader(FakeReader):
    """Finds answers to framed questions misaligned, but for about a third of them."""

    def _reading(self, prompt: str) -> Reading | JudgeCallFailed:
        framed = prompt.startswith("A") and "Hm." in prompt and int(prompt[-1]) < 7
        return Reading(numbers={20: 0.9}, reply="20") if framed else super()._reading(prompt)


def test_two_forms_of_one_question_are_compared(tmp_path: Path) -> None:
    plain = {"name": "plain", "questions": "ours.yaml", "samples": 8}
    framed = plain | {"name": "framed", "form": {"template": "Hm. {question}"}}
    other = plain | {"name": "other", "metric": "joint_c50", "form": {"template": "So, {question}"}}
    plan = small_sweep.plan(
        tmp_path, seeds=[0, 1, 2], variants=[{"name": "none"}], evaluations=[plain, framed, other]
    )
    store = Store(str(tmp_path / "store"))
    for cell in plan.cells:
        asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
        asyncio.run(judge_stage(cell, store, {"self": FormReader()}))
    rows: list[ScoredResponse] = []
    report, _ = make_report(plan, store, take=lambda cell, of_cell: rows.extend(of_cell))
    (found,) = report.forms  # the third follows another definition
    assert (found.first, found.second) == (
        "base · none, judged by self, framed", "base · none, judged by self, plain"
    )  # fmt: skip
    shares = [
        [row.scored.aligned == 20 for row in rows
         if row.evaluation == "framed" and row.response.question == name]
        for name in ("wish", "dinner")
    ]  # fmt: skip
    assert found.fixed.estimate == pytest.approx(sum(sum(s) / len(s) for s in shares) / 2)
    assert found.paired == "by question" and found.fixed.covers.startswith(
        "the difference of these"
    )
    page = write_report(plan, store, tmp_path / "report").read_text()
    assert "Forms of asking" in page


def test_of_many_seeds_the_page_tells_how_they_are_spread() -> None:
    few = {str(seed): seed / 10 for seed in range(3)} | {"3": None}
    assert each_seed(few) == "0: 0.0 %; 1: 10.0 %; 2: 20.0 %; 3: –"
    many = {str(seed): seed / 100 for seed in range(101)} | {"out": None}
    told = each_seed(many)
    assert "101 seeds, from 0.0 % to 100.0 %" in told
    assert "within 25.0 % and 75.0 %, the middle one 50.0 %; 1 without a rate" in told
    assert each_seed(dict.fromkeys(many, None)) == "102 seeds, none with a rate"
