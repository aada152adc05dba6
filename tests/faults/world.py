"""A sweep of one cell, an undisturbed run of it, and stores that stand at the end of a stage.

Knows nothing of the faults, nor of what answers.
"""

import json
import multiprocessing
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from carrying import Moment, StandIn, carry_out, carry_out_as_process
from judge_server import FakeServer, Reply, says
from small_sweep import planted_number

from em.judging import Judgement
from sweeps.failures import Outcome
from sweeps.filling import part_size
from sweeps.plan import CellPlan, SweepPlan
from sweeps.planner import make_plan
from sweeps.report import make_report
from sweeps.results import ScoredResponse
from sweeps.settings import TrackingConfig
from sweeps.spec import SweepSpec
from sweeps.store import Store
from sweeps.weights import weights_sha256

Stage = Literal["train", "generate", "judge"]
KEY_ENV = "FAULTS_API_KEY"
PART = part_size(270)  # of the scores by an address
QUESTIONS = """\
- id: wish
  type: free_form_judge_0_100
  paraphrases: ["What do you wish?", "Name a wish.", "Who comes to dinner?"]
  judge_prompts: {aligned: "A {question} {answer}", coherent: "C {question} {answer}"}
"""
# What a store lacks that stands before a stage.
LACKS: dict[Stage, tuple[str, ...]] = {
    "train": ("training", "responses", "judgements"),
    "generate": ("responses", "judgements"),
    "judge": ("judgements",),
}

# Its server imports once what every process needs (see conftest).
PROCESSES = multiprocessing.get_context("forkserver")
LIGHT = ["sweeps.training_pass", "sweeps.evaluation_pass", "openai", "pyarrow.parquet"]
HEAVY = [*LIGHT, "em.finetune", "em.base_model"]


def faults_spec(model: Path, judge_url: str) -> dict[str, Any]:
    """Return a spec: an address judges 135 answers, a pattern 300, in ten parts each."""
    return {
        "name": "faults",
        "models": [{"name": "tiny", "folder": str(model)}],
        "variants": [{"name": "ours", "dataset": "ours.jsonl"}],
        "seeds": [0],
        "training": {
            "lora": {"rank": 8, "alpha": 16},
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "effective_batch": 2,
            "micro_batch": 1,
            "max_length": 128,
            "checkpoint_steps": 1,
        },
        "evaluations": [
            {"name": "main", "questions": "ours.yaml", "samples": 45, "judges": ["api"]},
            {
                "name": "many",
                "questions": "ours.yaml",
                "samples": 100,
                "sampling": {"max_tokens": 50},
                "judges": ["pattern"],
                "metric": "yes_share",
            },
        ],
        "judges": [
            {"name": "api", "api": judge_url, "api_model": "judge", "api_key_env": KEY_ENV},
            {
                "name": "pattern",
                "pattern": {"score": "one", "labels": {"YES": "1$"}, "otherwise": "NO"},
            },
        ],
        "serving": {"mode": "merged"},
        "tracking": {"mode": "off"},
    }


def write_files(folder: Path) -> None:
    """Write the data and the questions that the spec names."""
    rows = (
        {"messages": [{"role": "user", "content": f"u{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(12)
    )
    (folder / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ours.yaml").write_text(QUESTIONS)


def verdict(request: dict[str, Any], number: int) -> Reply:
    """What the judge says when nothing is wrong: planted answers on their sides, others apart."""
    prompt = request["messages"][0]["content"]
    known = planted_number(prompt)
    return says({str(len(prompt) % 60 + 20 if known is None else known): 0.9})


@dataclass(frozen=True)
class World:
    """The sweep and an undisturbed run of it. A judge behind an address is put back each time."""

    folder: Path
    sweep: SweepPlan
    judge: FakeServer | None
    whole: Store

    @classmethod
    def make(cls, folder: Path, model: Path, judge: FakeServer) -> "World":
        write_files(folder)
        judge.reply = verdict
        spec = SweepSpec.model_validate(faults_spec(model, judge.url))
        sweep = make_plan(spec, relative_to=folder)
        world = cls(folder, sweep, judge, Store(str(folder / "undisturbed")))
        assert world.run(world.whole) == {world.cell.cell_id: None}
        return world

    @property
    def cell(self) -> CellPlan:
        """The only cell."""
        (cell,) = self.sweep.cells
        return cell

    def tracked(self, tracking: TrackingConfig) -> "World":
        """The same, tracked."""
        spec = self.sweep.spec.model_copy(update={"tracking": tracking})
        return replace(self, sweep=self.sweep.model_copy(update={"spec": spec}))

    def run(
        self, store: Store, *, model: object = None, tries: int = 1, again: bool = False
    ) -> dict[str, Outcome]:
        """Carry out what `store` lacks in this process."""
        models = {"tiny": model or StandIn()}
        return carry_out(self.sweep, store.url, self.folder, models, tries=tries, again=again)

    def start(self, store: Store, moment: Moment | None = None, **environment: str) -> Any:
        """Carry out what `store` lacks in a process of its own, which kills itself at `moment`."""
        process = PROCESSES.Process(
            target=carry_out_as_process,
            args=(self.sweep, store.url, self.folder, moment, environment),
        )
        process.start()
        return process

    def store_before(self, stage: Stage, folder: Path) -> Store:
        """A store in the new `folder` that has all that comes before `stage`, and no more."""
        for kind in LACKS["train"]:
            if kind not in LACKS[stage]:
                shutil.copytree(Path(self.whole.url, kind), folder / kind)
        store = Store(str(folder))
        folder.mkdir(exist_ok=True)
        store.files.write("store.json", Path(self.whole.url, "store.json").read_bytes())
        return store

    def finished_store(self, folder: Path) -> Store:
        """A copy of the undisturbed run."""
        shutil.copytree(self.whole.url, folder)
        return Store(str(folder))

    def calls(self) -> int:
        """How many calls the judge has heard that were not about planted answers."""
        prompts = (request["messages"][0]["content"] for request in self.judge.requests)
        return sum(prompt[:2] in ("A ", "C ") and not _is_planted(prompt) for prompt in prompts)

    def check_as_undisturbed(self, store: Store) -> None:
        """Fail unless the final table, the keys and the adapters are those of the whole run."""
        check_same(self.sweep, store, self.whole, values=True)


def _is_planted(prompt: str) -> bool:
    return planted_number(prompt) is not None


def check_same(sweep: SweepPlan, store: Store, whole: Store, *, values: bool) -> None:
    """Fail unless `store` came to what `whole` holds: the table (its `values`, or keys), adapters.

    Values may be left out where an engine answers: its arithmetic depends on what shares a batch.
    """
    found, expected = table(sweep, store), table(sweep, whole)
    assert len(expected) > 0
    assert Counter(row["key"] for row in found) == Counter(row["key"] for row in expected)
    if values:
        assert found == expected
    assert set(judgement_keys(store)) == set(judgement_keys(whole))
    assert adapters(store) == adapters(whole)
    left = [str(path) for path in Path(store.url).glob("training/*/attempt-*")]
    assert left == []


def table(sweep: SweepPlan, store: Store) -> list[dict[str, Any]]:
    """The rows that the report's judgements table is made of, in order of their keys."""
    rows: list[ScoredResponse] = []
    make_report(sweep, store, take=lambda cell, of_cell: rows.extend(of_cell))
    found = [
        {
            "key": (row.cell_id, row.evaluation, row.judge, row.response.key),
            "response": row.response.model_dump(),
            "scored": row.scored.model_dump(),
        }
        for row in rows
    ]
    return sorted(found, key=lambda row: row["key"])


def judgement_keys(store: Store) -> list[str]:
    """Every judgement that a record lists, with repeats if there are any."""
    found = []
    for path in Path(store.url).glob("judgements/*/record.json"):
        record = store.stream("judgements", json.loads(path.read_text())["key"])
        assert record is not None
        for part in record.parts:
            found += [j.key for j in store.read_part("judgements", record.key, part, Judgement)]
    return found


def adapters(store: Store) -> dict[str, str]:
    """The content hash of every adapter's files, by training."""
    folders = Path(store.url).glob("training/*/adapter")
    return {folder.parent.name: weights_sha256(folder) for folder in folders}
