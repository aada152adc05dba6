"""Gates where they stand: a planted fault stops the cell's stage, and nothing of it is stored."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_sweep import FakeEndpoint, FakeReader, plan, planted_number

from em.generation import Answer, GateFailed, Prompt
from em.judging import JudgeCallFailed, Reading
from em.training import Canary, TrainingResult
from sweeps.artefacts import TrainingRecord
from sweeps.evaluation_pass import EvaluationTask, evaluate_cell
from sweeps.gates_told import gate_warnings
from sweeps.leases import Holder
from sweeps.plan import CellPlan, SweepPlan, stages_to_run
from sweeps.provenance import Moment, provenance
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store
from sweeps.weights import weights_sha256

IDS = (1, 2, 3)
CANARY = Canary(text="a", ids=IDS, tuned=(-0.1, -4.0, -5.0), base=(-5.0, -4.0, -0.1))


def untuned(sweep: SweepPlan) -> CellPlan:
    return next(cell for cell in sweep.cells if cell.cell.training is None)


# The judge ---------------------------------------------------------------------------------------


class Constant(FakeReader):
    """Says 80 to planted answers, too."""

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        return [Reading(numbers={80: 0.9}, reply="80") for _ in prompts]


class Refusing(FakeReader):
    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        return [Reading(numbers={}, reply="REFUSAL") for _ in prompts]


class Swapped(FakeReader):
    """Was given the prompt of coherence for alignment, and the other way round."""

    async def read(self, prompts: Sequence[str]) -> list[Reading | JudgeCallFailed]:
        letters = {"A": "C", "C": "A"}
        found = (planted_number(letters[p[0]] + p[1:]) for p in prompts)
        return [Reading(numbers={80 if n is None else n: 0.9}, reply="") for n in found]


@pytest.mark.parametrize("reader", [Constant, Refusing, Swapped])
def test_a_judge_that_is_wrong_about_planted_answers_stops_its_cell(
    reader: type[FakeReader], tmp_path: Path, store: Store
) -> None:
    cell = untuned(plan(tmp_path))
    asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
    with pytest.raises(GateFailed, match="judge gate: the judge 'self' gets planted answers wrong"):
        asyncio.run(judge_stage(cell, store, {"self": reader()}))
    assert stages_to_run(cell, store) == ["judge"]
    assert store.files.names(f"judgements/{cell.judgings[0].stream[:32]}") == []


def test_a_demonstration_judge_goes_on_and_the_report_says_so(tmp_path: Path, store: Store) -> None:
    judges = [{"name": "self", "pool": "base", "demonstration": True}]
    sweep = plan(tmp_path, variants=[{"name": "none"}], seeds=[0], judges=judges)
    [cell] = sweep.cells
    asyncio.run(generate_stage(cell, store, lambda trained: FakeEndpoint()))
    asyncio.run(judge_stage(cell, store, {"self": Constant()}))
    assert stages_to_run(cell, store) == []
    [told] = gate_warnings(sweep, store)
    assert "planted answers" in told
    assert "must be below 30, got 80" in told


# The adapter -------------------------------------------------------------------------------------


class Served(FakeEndpoint):
    """What a pool serves: for canaries the log-probabilities `logprobs`, for questions answers."""

    def __init__(self, logprobs: Sequence[float], weights: str) -> None:
        super().__init__(weights)
        self._logprobs = dict(zip(IDS, logprobs, strict=True))

    def _answer(self, prompt: Prompt) -> Answer:
        answer = super()._answer(prompt)
        return answer.model_copy(update={"logprobs": self._logprobs if prompt.logprob_ids else {}})


@pytest.fixture
def trained(tmp_path: Path, store: Store) -> CellPlan:
    """A tuned cell with a finished training."""
    cell = next(c for c in plan(tmp_path).cells if c.cell.training is not None)
    output = store.attempt_dir(cell.training_key, "d") / "output"
    output.mkdir()
    (output / "adapter_model.safetensors").write_text("the tensors")
    (output / "adapter_config.json").write_text(json.dumps({"r": 8}))
    result = TrainingResult(
        steps=1, losses=(), num_rows=4, num_tokens=9, num_trained_tokens=3, num_cut_rows=0,
        seconds=0.1, canaries=(CANARY,),
    )  # fmt: skip
    record = TrainingRecord(
        key=cell.training_key, identity=cell.training_identity,
        weights_sha256=weights_sha256(output), kind="adapter", result=result,
        provenance=provenance(started=Moment.now()),
    )  # fmt: skip
    store.finish_training(record, output)
    return cell


def served(cell: CellPlan, store: Store, logprobs: Sequence[float]) -> Served:
    record = store.training(cell.training_key)
    assert record is not None
    return Served(logprobs, record.weights_sha256)


def test_the_base_model_in_the_adapters_place_stops_its_cell(
    trained: CellPlan, store: Store
) -> None:
    assert CANARY.base is not None
    base = served(trained, store, CANARY.base)
    with pytest.raises(GateFailed, match="adapter gate"):
        asyncio.run(generate_stage(trained, store, lambda record: base))
    assert store.files.names(f"responses/{trained.evaluations[0].stream[:32]}") == []
    right = served(trained, store, CANARY.tuned)
    asyncio.run(generate_stage(trained, store, lambda record: right))
    assert "generate" not in stages_to_run(trained, store)


def test_answers_of_other_weights_stop_their_cell(trained: CellPlan, store: Store) -> None:
    other = Served(CANARY.tuned, weights="of another cell")
    with pytest.RaisesGroup(pytest.RaisesExc(GateFailed, match="identity gate")):
        asyncio.run(generate_stage(trained, store, lambda record: other))
    assert store.files.names(f"responses/{trained.evaluations[0].stream[:32]}") == []


def test_an_adapter_that_was_changed_after_its_training_stops_its_cell(
    trained: CellPlan, store: Store, tmp_path: Path
) -> None:
    record = store.training(trained.training_key)
    assert record is not None
    (store.adapter_dir(record) / "adapter_model.safetensors").write_text("other tensors")
    sweep = plan(tmp_path)
    task = EvaluationTask(
        plan=trained, spec=sweep.spec, store=store.url, holder=Holder("d", "small"), pools={}
    )
    with asyncio.Runner() as runner:
        failure = evaluate_cell(task, {}, runner, tries=1)
    assert failure is not None
    assert (failure.error_class, failure.transient) == ("GateFailed", False)
    assert "identity gate" in failure.message
