"""The runner of the benchmark, with rows that take no time, and the arithmetic of its rows."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench import FAILED, OK, bench, main, read
from tests.benchmarks.comparisons import (
    Ask,
    Measured,
    NotTheSame,
    Row,
    compared,
    demand_same,
    lines,
)
from tests.benchmarks.parts import PartFailed, Parts, since_start
from tests.benchmarks.rows import ROWS
from tests.benchmarks.stand_in import ALLOWED_A_SECOND, BURST, Bucket
from tests.benchmarks.standing import Code
from tests.benchmarks.trainings import LOSS_NOISE, loss_apart, step_rate

Git = Callable[..., None]


class Counted:
    """Rows that are measured at once, and how often each was."""

    def __init__(self, *names: str) -> None:
        self.times = dict.fromkeys(names, 0)
        self.broken: set[str] = set()
        self.rows = [Row(name, f"row {name}", self._measure(name)) for name in names]

    def _measure(self, name: str) -> Callable[[Ask], Measured]:
        def measure(ask: Ask) -> Measured:
            self.times[name] += 1
            if name in self.broken:
                raise NotTheSame("7 tokens here, 8 there")
            figure = compared("speed", "tokens/s", 30.0, "a peer", 10.0, least_ratio=2)
            return Measured([figure], checked=["8 tokens"], notes=["a note"])

        return measure


@pytest.fixture
def rows() -> Counted:
    return Counted("P1", "P2")


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, Git]:
    """A checkout with one commit, and git in it."""
    root = tmp_path / "checkout"
    (root / "em").mkdir(parents=True)
    (root / "tests" / "benchmarks").mkdir(parents=True)

    def git(*arguments: str) -> None:
        own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        subprocess.run(["git", "-C", root, *who, *arguments], check=True, env=os.environ | own)

    git("init", "--quiet")
    (root / "em" / "code.py").write_text("x = 1\n")
    (root / "README.md").write_text("words\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return root, git


def ran(rows: Counted, root: Path, **options: Any) -> tuple[int, list[str]]:
    said: list[str] = []
    path = root / "tests" / "benchmarks" / "results.json"
    return bench(rows.rows, path=path, code=Code(root), say=said.append, **options), said


def test_each_row_is_told_and_written_with_where_and_when(
    rows: Counted, checkout: tuple[Path, Git]
) -> None:
    root, _ = checkout
    code, said = ran(rows, root)
    assert code == OK
    found = read(root / "tests" / "benchmarks" / "results.json").rows
    assert list(found) == ["P1", "P2"]
    result = found["P1"]
    assert result.commit == Code(root).commit and "cores" in result.machine and result.date
    [figure] = result.comparisons
    assert (figure.ratio, figure.wanted, figure.met) == (3.0, ">= 2 x", True)
    assert [line for line in said if "a peer" in line and "3.00 x" in line and "met" in line]


def test_a_row_that_is_done_at_this_code_is_told_and_not_measured(
    rows: Counted, checkout: tuple[Path, Git]
) -> None:
    root, git = checkout
    ran(rows, root)
    first = lines(read(root / "tests" / "benchmarks" / "results.json").rows["P1"])
    _, said = ran(rows, root)
    assert rows.times == {"P1": 1, "P2": 1} and set(first) <= set(said)
    (root / "README.md").write_text("other words\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "words and results")
    ran(rows, root)
    assert rows.times == {"P1": 1, "P2": 1}


def test_other_code_is_measured_anew(rows: Counted, checkout: tuple[Path, Git]) -> None:
    root, git = checkout
    ran(rows, root)
    (root / "em" / "code.py").write_text("x = 2\n")
    ran(rows, root)
    ran(rows, root)  # code that is in no commit is never known to be the same
    assert rows.times == {"P1": 3, "P2": 3}
    git("commit", "--quiet", "-a", "-m", "second")
    ran(rows, root)
    ran(rows, root)
    assert rows.times == {"P1": 4, "P2": 4}


def test_named_rows_and_all_of_them_are_measured_anew(
    rows: Counted, checkout: tuple[Path, Git]
) -> None:
    root, _ = checkout
    ran(rows, root, named=["P2"])
    assert rows.times == {"P1": 0, "P2": 1}
    ran(rows, root, named=["P2"])
    assert rows.times == {"P1": 0, "P2": 2}
    ran(rows, root, again=True)
    assert rows.times == {"P1": 1, "P2": 3}


def test_a_row_that_fails_is_told_and_the_others_go_on(
    rows: Counted, checkout: tuple[Path, Git]
) -> None:
    root, _ = checkout
    ran(rows, root, named=["P1"])
    rows.broken = {"P1"}
    code, said = ran(rows, root, again=True)
    assert code == FAILED and rows.times["P2"] == 1
    assert [line for line in said if line.startswith("P1") and "7 tokens here" in line]
    assert list(read(root / "tests" / "benchmarks" / "results.json").rows) == ["P1", "P2"]


def test_what_was_measured_before_an_interruption_is_kept(
    rows: Counted, checkout: tuple[Path, Git]
) -> None:
    root, _ = checkout

    def stop(ask: Ask) -> Measured:
        raise KeyboardInterrupt

    second = rows.rows[1]
    rows.rows[1] = Row("P2", "stopped", stop)
    with pytest.raises(KeyboardInterrupt):
        ran(rows, root)
    rows.rows[1] = second
    ran(rows, root)
    assert rows.times == {"P1": 1, "P2": 1}


def test_outside_git_nothing_counts_as_done(rows: Counted, tmp_path: Path) -> None:
    place = tmp_path / "tests" / "benchmarks"
    place.mkdir(parents=True)
    for _ in range(2):
        bench(rows.rows, path=place / "r.json", code=Code(tmp_path), say=lambda line: None)
    assert rows.times == {"P1": 2, "P2": 2} and read(place / "r.json").rows["P1"].commit is None


def test_a_name_that_no_row_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["P9"]) == 2
    assert "P9" in capsys.readouterr().err
    assert [row.name for row in ROWS] == ["P1", "P2", "P3", "P4", "P5", "P6"]


def test_a_file_that_is_no_results_is_refused(rows: Counted, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"rows": 3}))
    with pytest.raises(ValueError, match=r"results\.json"):
        bench(rows.rows, path=tmp_path / "results.json", code=Code(tmp_path), say=lambda _: None)
    assert rows.times == {"P1": 0, "P2": 0}


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "ratio", "met"),
    [
        (8.0, 4.0, {"least_ratio": 2}, 2.0, True),
        (8.0, 4.0, {"least_ratio": 2.1}, 2.0, False),
        (2.0, 8.0, {"less_is_better": True, "least_ratio": 4, "most": 1.5}, 4.0, False),
        (2.0, 8.0, {"less_is_better": True}, 4.0, None),
        (2.0, None, {"most": 2}, None, True),
        (2.0, None, {"least_ratio": 1}, None, False),
    ],
)
def test_a_ratio_above_one_is_better_whichever_way_is_better(
    ours: float, theirs: float | None, options: dict[str, Any], ratio: float | None, met: bool
) -> None:
    peer = None if theirs is None else "peer"
    figure = compared("x", "s", ours, peer, theirs, **options)
    assert (figure.ratio, figure.met) == (ratio, met)


def test_work_that_is_not_the_same_has_no_ratio() -> None:
    assert "tokens: 8" in demand_same("tokens", {"ours": 8, "theirs": 8})
    with pytest.raises(NotTheSame, match="theirs: 7"):
        demand_same("tokens", {"ours": 8, "theirs": 7})


def test_loss_curves_are_compared_step_for_step() -> None:
    near = [1.0 * (1 + LOSS_NOISE / 2), 0.5]
    assert loss_apart([1.0, 0.5], near) == pytest.approx(LOSS_NOISE / 4)
    with pytest.raises(NotTheSame, match="losses differ"):
        loss_apart([1.0, 0.5], [0.5, 1.0])
    with pytest.raises(NotTheSame, match="number of losses"):
        loss_apart([1.0, 0.5], [1.0])


def test_the_first_step_warms_up_and_is_in_no_rate() -> None:
    said = {"tokens": [1000, 30, 50], "ends": [60.0, 63.0, 68.0]}
    assert step_rate(said) == 10.0


def process(folder: str, fails: int = 0) -> dict[str, Any]:
    """What the test below runs elsewhere."""
    if fails:
        raise ValueError("what went wrong")
    return {"pid": os.getpid(), "folder": folder, "s": since_start()}


def test_a_part_has_a_process_of_its_own_once_a_run(tmp_path: Path) -> None:
    from tests.test_bench import process as elsewhere  # by the name that others can import

    parts = Parts(tmp_path)
    parts.begin()
    said = parts(elsewhere)
    assert said["pid"] != os.getpid() and said["folder"] == str(tmp_path) and said["s"] > 0
    parts.begin()
    assert parts(elsewhere) == said and list(parts.asked.values()) == [said]
    with pytest.raises(PartFailed, match="what went wrong"):
        parts(elsewhere, fails=1)


def test_the_stand_in_allows_its_rate_and_no_more() -> None:
    bucket = Bucket()
    assert [bucket.wait_s(0.0) for _ in range(BURST)] == [0.0] * BURST
    assert bucket.wait_s(0.0) == pytest.approx(1 / ALLOWED_A_SECOND)
    step = 0.5 / ALLOWED_A_SECOND
    allowed = sum(bucket.wait_s(step * n) == 0.0 for n in range(1, 1001))
    assert allowed == pytest.approx(500, abs=1)
