"""W&B's real SDK, online on a stand-in for its server, and offline: what arrives there."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_store import finish
from small_sweep import SPEC, plan
from wandb_backend import Backend, Run, wandb_backend

from sweeps.analyses import tables_of
from sweeps.dashboard import sections
from sweeps.gathering import analyses_of, write_values
from sweeps.plan import SweepPlan
from sweeps.report import make_report
from sweeps.sent import identity_of
from sweeps.store import Store
from sweeps.tracked_cell import run_id
from sweeps.tracked_report import report_run_id

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow

EMSWEEP = Path(sys.executable).with_name("emsweep")
KEY = "a-made-up-key-of-this-test-" + "x" * 40


class Place:
    """A finished small sweep in a folder, and the command that sends it."""

    def __init__(self, folder: Path, like: "Place | None" = None, **changes: Any) -> None:
        self.folder = folder
        self.sweep: SweepPlan = plan(folder, **changes)
        self.spec = folder / "small.yaml"
        self.spec.write_text(yaml.safe_dump(SPEC | changes))
        self.store = Store(str(folder / "a-store"))
        if like is None:
            finish(self.sweep, self.store)
        else:
            shutil.copytree(like.kept, folder / "a-store")
        self.kept = folder / "as-it-was"
        shutil.copytree(folder / "a-store", self.kept)

    def environment(self, url: str) -> dict[str, str]:
        return os.environ | {
            "WANDB_BASE_URL": url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "A_SECRET": "do-not-tell-anyone",
        }

    def command(self, name: str = "sync") -> list[str]:
        return [str(EMSWEEP), name, str(self.spec), "--store", self.store.url]

    def sync(self, url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(), cwd=self.folder, env=self.environment(url), capture_output=True,
            text=True, timeout=240, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Backend]]:
    """A sweep that was sent in one go, to a server that answers still."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    with wandb_backend() as backend:
        done = place.sync(backend.url)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "sent 4 of 4 cells that W&B had not and the report" in done.stdout
        again = place.sync(backend.url)
        assert again.returncode == 0, again.stderr
        assert "sent 0 of 0" in again.stdout
        yield place, backend
    assert backend.broken == []


def shown(run: Run) -> list[dict[str, Any]]:
    """Return a run's history without times and the names that W&B draws for tables."""
    rows = []
    for row in run.rows():
        kept = {k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")}
        rows.append(
            {
                k: (v["_type"], v.get("nrows")) if isinstance(v, dict) else v
                for k, v in kept.items()
                if not (isinstance(v, dict) and v["_type"] in ("image-file", "html-file"))
            }
        )
    return rows


def same(first: Backend, second: Backend) -> None:
    """Check that two servers were told the same of every run."""
    assert by_name(first).keys() == by_name(second).keys()
    for name, run in by_name(first).items():
        other = by_name(second)[name]
        if run.fields["jobType"] == "cell":
            assert shown(run) == shown(other)
        assert run.config == other.config
        assert run.state == other.state == "finished"
        assert Counter(names(first, run.used)) == Counter(names(second, other.used))
        assert of_ours(versions(first, run)) == of_ours(versions(second, other))
    assert not any(run.overwritten for run in second.runs.values())


def by_name(backend: Backend) -> dict[str, Run]:
    """The runs by the names that they are shown with; each store has ids of its own."""
    return {run.fields["displayName"]: run for run in backend.runs.values()}


def of_ours(artifacts: list[str]) -> Counter[str]:
    """How many versions of each artifact there are, but of those that the SDK makes for tables."""
    return Counter(name for name in artifacts if not name.startswith("run-"))


def versions(backend: Backend, run: Run) -> list[str]:
    """The artifacts that a run has made; one that was begun and never committed is no version."""
    return names(backend, [i for i in run.logged if backend.artifacts[i].state == "COMMITTED"])


def names(backend: Backend, ids: list[str]) -> list[str]:
    return [backend.artifacts[i].collection for i in ids]


def test_every_cell_is_one_run_and_the_sweep_another(
    undisturbed: tuple[Place, Backend],
) -> None:
    place, backend = undisturbed
    cells = [run for run in backend.runs.values() if run.fields["jobType"] == "cell"]
    assert {run.fields["displayName"] for run in cells} == {c.cell_id for c in place.sweep.cells}
    assert len(backend.runs) == len(cells) + 1
    assert {run.fields["groupName"] for run in backend.runs.values()} == {"small"}
    assert {run.state for run in backend.runs.values()} == {"finished"}
    assert not any(run.overwritten for run in backend.runs.values())
    for run in cells:
        steps = [row["_step"] for row in run.rows()]
        assert steps == sorted(set(steps))
        assert run.summary["cell/state"] == "finished"
        assert run.config["condition"] in ("base · none", "base · ours")


def test_lineage_leads_from_the_data_to_the_report(undisturbed: tuple[Place, Backend]) -> None:
    _, backend = undisturbed
    (report,) = (run for run in backend.runs.values() if run.fields["jobType"] == "report")
    assert Counter(names(backend, report.used)) == {
        "judgements.base.none": 2, "judgements.base.ours": 2
    }  # fmt: skip
    assert "report.small" in names(backend, report.logged)
    makers = {i: run for run in backend.runs.values() for i in run.logged}
    for judgements in report.used:
        maker = makers[judgements]
        used = {name.partition(".")[0] for name in names(backend, maker.used)}
        tuned = maker.config["variant"] == "ours"
        assert used == ({"dataset", "adapter", "responses"} if tuned else {"responses"})
    assert len(backend.of_type("dataset")) == 2  # each seed draws its rows
    (artifact, *_) = backend.of_type("judgements")
    assert artifact.entries.keys() == {"judgements.parquet"}


def test_no_secret_and_no_path_of_this_machine_is_sent(undisturbed: tuple[Place, Backend]) -> None:
    place, backend = undisturbed
    everything = b"\n".join(backend.bodies)
    private = (str(place.folder), str(Path.home()), f'"{platform.node()}"', "emsweep sync")
    for word in (KEY, "do-not-tell-anyone", *private):
        found = everything.find(word.encode())
        assert found < 0, everything[max(0, found - 200) : found + 200]
    assert str(Path(__file__).parent.parent).encode() not in everything


def test_what_is_asked_for_each_cell_stays_few(undisturbed: tuple[Place, Backend]) -> None:
    place, backend = undisturbed
    asked = [line for line in backend.asked if " " in line]
    assert len(asked) < 75 * len(place.sweep.cells)
    # What the SDK asks for and the stand-in does not know changes nothing that is tried here.
    assert set(backend.unanswered) <= {
        "metadata", "createdAt", "state", "digest", "description", "__typename", "previewUrl",
        "type", "entityName",
    }  # fmt: skip


def test_another_machine_analyses_what_w_and_b_has_as_the_store_does(
    undisturbed: tuple[Place, Backend], tmp_path: Path
) -> None:
    place, backend = undisturbed
    command = [str(EMSWEEP), "analyze", "--wandb", "e/em-sweeps", "--group"]

    def analyse(*groups: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *groups, "--json", "--out", str(tmp_path / "out")], cwd=tmp_path,
            env=place.environment(backend.url), capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    done = analyse("small")
    assert done.returncode == 0, done.stderr
    report, _ = make_report(place.sweep, place.store)
    expected = report.analyses["main"].model_dump(mode="json")
    assert json.loads(done.stdout) == {"small, main": expected}
    assert (tmp_path / "out" / "analysis.html").exists()
    none = analyse("no-such-sweep")
    assert none.returncode == 2
    assert "has no report of a sweep 'no-such-sweep'" in none.stderr
    assert "Traceback" not in none.stderr


def test_a_dashboard_is_made_once_and_shows_what_is_logged(
    undisturbed: tuple[Place, Backend],
) -> None:
    pytest.importorskip("wandb_workspaces")
    place, backend = undisturbed
    shown = []
    for _ in range(2):
        done = subprocess.run(
            place.command("dashboard"), cwd=place.folder, env=place.environment(backend.url),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + "".join(backend.broken)
        assert "view: http" in done.stdout
        assert "report: http" in done.stdout
        shown.append({view["displayName"]: view["spec"] for view in backend.views.values()})
        assert len(backend.views) == 2
    (report,) = (run for run in backend.runs.values() if run.fields["jobType"] == "report")
    logged = {key for run in backend.runs.values() for row in run.rows() for key in row}
    for view in backend.views.values():
        for section in sections(place.sweep).values():
            for panel in section:
                keys = getattr(panel, "media_keys", None) or [getattr(panel, "table_name", None)]
                for key in filter(None, keys):
                    known = {"figures/attribution-self"}  # drawn where there is a grid
                    assert key in logged | known, key
                    assert key in view["spec"]
    assert report.rows()


REFERENCE = """
import sys
from pathlib import Path
from sweeps.settings import TrackingConfig
from sweeps.tracked_artifacts import Artifact
from sweeps.wandb_runs import About, WandbRuns

runs = WandbRuns(TrackingConfig(mode="online"), "s", Path(sys.argv[1]), online=True)
run = runs.open(About("r", "r", "cell", (), {}))
for _ in range(2):
    content = Artifact(
        "adapter.m.v", "model", ("key-1",), {"a": 1}, {"adapter.json": b"{}"},
        {"weights": ("s3://bucket/training/1/adapter", "0" * 64)},
    )
    print(run.upload(content))
run.close(0)
"""


def test_what_lies_in_a_bucket_is_sent_by_address(tmp_path: Path) -> None:
    environment = {"WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
    with wandb_backend() as backend:
        done = subprocess.run(
            [sys.executable, "-c", REFERENCE, str(tmp_path)], capture_output=True, text=True,
            env=os.environ | environment | {"WANDB_BASE_URL": backend.url}, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["e/em-sweeps/adapter.m.v:v0"] * 2
        (artifact,) = backend.of_type("model")
    assert artifact.entries["weights"]["ref"] == "s3://bucket/training/1/adapter"
    assert artifact.entries["weights"]["digest"] == "0" * 64
    assert backend.content(artifact, "adapter.json") == b"{}"


def test_a_store_is_as_whole_after_a_sync_as_before(undisturbed: tuple[Place, Backend]) -> None:
    place, _ = undisturbed
    for words in (["check"], ["gc", str(place.spec)]):
        done = subprocess.run(
            [str(EMSWEEP), "store", *words, "--store", place.store.url], cwd=place.folder,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_several_sweeps_are_analysed_together(
    undisturbed: tuple[Place, Backend], tmp_path: Path
) -> None:
    place, _ = undisturbed
    report, scores = make_report(place.sweep, place.store)
    tables = tables_of(place.sweep, report.cells, scores)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        renamed = place.sweep.spec.model_copy(update={"name": name})
        write_values(tmp_path / name, place.sweep.model_copy(update={"spec": renamed}), tables)
    found = analyses_of([tmp_path / "a", tmp_path / "b"])
    assert list(found) == ["a, main", "b, main", "2 sweeps, main"]
    together = found["2 sweeps, main"]
    assert {c.condition for c in together.conditions} == {
        f"{sweep} · base · {variant}" for sweep in "ab" for variant in ("none", "ours")
    }
    assert together.num_rows == 2 * found["a, main"].num_rows
    (tmp_path / "b" / "values.json").write_text("{}")
    with pytest.raises(ValueError, match="does not hold the values of a sweep"):
        analyses_of([tmp_path / "b"])


@pytest.mark.faults
@pytest.mark.parametrize("number", [25, 70, 140])
def test_after_an_outage_all_of_it_arrives(
    number: int, undisturbed: tuple[Place, Backend], tmp_path: Path
) -> None:
    place = Place(tmp_path, undisturbed[0])
    with wandb_backend() as backend:
        backend.turns = number
        done = place.sync(backend.url)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "does not answer" in done.stdout
        backend.be("well")
        done = place.sync(backend.url)
        assert done.returncode == 0, done.stdout + done.stderr
    same(undisturbed[1], backend)


@pytest.mark.faults
@pytest.mark.parametrize("number", [30, 120])
def test_a_killed_sync_goes_on(
    number: int, undisturbed: tuple[Place, Backend], tmp_path: Path
) -> None:
    place = Place(tmp_path, undisturbed[0])
    with wandb_backend() as backend:
        process = subprocess.Popen(
            place.command(), cwd=tmp_path, env=place.environment(backend.url),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while len(backend.times) < number and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = place.sync(backend.url)
        assert done.returncode == 0, done.stdout + done.stderr
    same(undisturbed[1], backend)


OFFLINE = """
import sys
from pathlib import Path
from sweeps.planner import load_plan
from sweeps.publisher import Publisher
from sweeps.sent import identity_of
from sweeps.store import Store
from sweeps.tracked_cell import run_id
from sweeps.tracked_report import report_run_id
from sweeps.wandb_runs import WandbRuns

sweep, store = load_plan(Path(sys.argv[1])), Store(sys.argv[2])
for again in range(2):
    runs = WandbRuns(sweep.spec.tracking, "small", store.local_dir("."), online=False)
    assert Publisher(sweep, store, runs, say=print).look(last=True)
"""


def test_offline_folders_hold_the_same(undisturbed: tuple[Place, Backend], tmp_path: Path) -> None:
    place = Place(tmp_path, undisturbed[0], tracking={"mode": "offline"})
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(place.spec), place.store.url], cwd=tmp_path,
        env=place.environment("http://127.0.0.1:9"), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "a-store" / "wandb").glob("offline-run-*"))
    identity = identity_of(place.store, "small")
    names_of = {run_id(identity, cell): cell.cell_id for cell in place.sweep.cells}
    names_of[report_run_id(identity)] = "small"
    assert len(folders) == len(place.sweep.cells) + 1
    for folder in folders:
        online = by_name(undisturbed[1])[names_of[folder.name.rpartition("-")[2]]]
        if online.fields["jobType"] == "cell":
            assert read_back(folder) == shown(online)


def read_back(folder: Path) -> list[dict[str, Any]]:
    """Return the history in an offline folder, as the SDK's own reader finds it."""
    (file,) = folder.glob("*.wandb")
    reader = [str(EMSWEEP.with_name("wandb")), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(reader, capture_output=True, text=True, timeout=60, check=True)
    run = Run("read", "back")
    records = (json.loads(line) for line in done.stdout.splitlines())
    told = (record["history"]["item"] for record in records if record["type"] == "history")
    run.history = [json.dumps(nested(item)) for item in told]
    return shown(run)


def nested(item: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose tables are values again; the reader tells "answers._type" and so on."""
    row: dict[str, Any] = {}
    for key, value in item.items():
        name, _, inner = key.partition(".")
        if inner:
            row.setdefault(name, {})[inner] = value
        else:
            row[key] = value
    return row


@pytest.mark.parametrize("what", ["entity", "deleted", "401", "old"])
def test_what_w_and_b_refuses_is_told_and_nothing_is_sent(
    what: Any, undisturbed: tuple[Place, Backend], tmp_path: Path
) -> None:
    tracking = {"entity": "nobody"} if what == "entity" else {"project": "p"}
    place = Place(tmp_path, undisturbed[0], tracking=tracking)
    with wandb_backend() as backend:
        if what == "deleted":
            identity = identity_of(place.store, "small")
            backend.deleted.add(report_run_id(identity))
            backend.deleted |= {run_id(identity, cell) for cell in place.sweep.cells}
        elif what != "entity":
            backend.be(what)
        done = place.sync(backend.url)
    words = {"entity": "nobody", "deleted": "has deleted", "401": "401", "old": "Cannot query"}
    assert words[what] in done.stdout
    assert "refuses" in done.stdout or what == "deleted"
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert backend.runs == {}
