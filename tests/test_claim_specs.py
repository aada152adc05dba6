"""The claim specs are sound: what they claim is about what they run."""

from pathlib import Path
from typing import Any

import pytest

from em.catalogue import config_dir
from em.definitions import DEFINITIONS
from em.forms import Form
from em.yaml_files import load_yaml
from sweeps import planning
from sweeps.claim_spec import ClaimConfig
from sweeps.planner import load_plan, make_plan
from sweeps.published import NO_FIGURE
from sweeps.report import make_report
from sweeps.store import Store

FOLDER = config_dir() / "sweeps" / "claims"
SPECS = sorted(FOLDER.glob("c*.yaml"))
BY_API = sorted(FOLDER.glob("gpt*.yaml"))  # of models that an API trains


def data(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = load_yaml(path)[0]
    return loaded


def test_each_claim_has_a_spec_at_the_papers_scale_and_a_small_twin() -> None:
    assert {path.stem for path in SPECS} == {
        f"c{n}{twin}" for n in range(1, 8) for twin in ("", "_cpu")
    }


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_claim_is_about_what_its_spec_runs(path: Path) -> None:
    spec = data(path)
    claims = [ClaimConfig.model_validate(claim) for claim in spec["claims"]]
    assert claims[0].claim == path.stem[:2].upper()
    variants = {variant["name"] for variant in spec["variants"]}
    evaluations = {evaluation["name"] for evaluation in spec["evaluations"]}
    for claim in claims:
        assert {claim.variant, claim.control} - {None} <= variants
        assert {claim.evaluation, claim.with_, claim.without} - {None} <= evaluations
        assert claim.says
    assert spec["metric"] in DEFINITIONS


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_scale_is_that_of_the_papers_or_of_two_cores(path: Path) -> None:
    spec = data(path)
    small = path.stem.endswith("_cpu")
    assert len(spec["seeds"]) == (3 if small else 6)
    assert all(judge.get("demonstration") or "pool" not in judge for judge in spec["judges"])
    if not small:
        lora = spec["training"]["lora"]
        assert (lora["rank"], lora["alpha"], lora["rslora"]) == (32, 64, True)
        assert spec["training"]["effective_batch"] == 16
        assert spec["training"]["learning_rate"] == 1e-5
        return
    assert any(judge.get("demonstration") for judge in spec["judges"])
    assert all(variant.get("rows", 0) <= 48 for variant in spec["variants"])
    assert all(e["samples"] <= 8 and e["sampling"]["max_tokens"] <= 48 for e in spec["evaluations"])


@pytest.mark.real_data
@pytest.mark.parametrize("path", BY_API, ids=lambda path: path.stem)
def test_models_behind_an_api_have_the_papers_scale_and_a_cost(path: Path, tmp_path: Path) -> None:
    plan = load_plan(path)
    assert len(plan.spec.seeds) == 10 and len(plan.cells) == 50
    assert all(cell.evaluations[0].num_responses == 800 for cell in plan.cells)
    told = planning.describe(plan, Store(str(tmp_path / "store")), None)
    (model,), (judge,) = told["api_models"], told["api_judges"]
    assert "40 trainings" in model and "40,000 answers" in model and "USD to come" in model
    assert "80000 calls" in judge and "USD to come" in judge


@pytest.mark.real_data
@pytest.mark.parametrize("path", [*SPECS, *BY_API], ids=lambda path: path.stem)
def test_every_claim_spec_can_be_planned(path: Path) -> None:
    plan = load_plan(path)
    assert len(plan.cells) == len(plan.spec.cells())


@pytest.mark.real_data
def test_the_published_figure_stands_beside_the_papers_own_condition(tmp_path: Path) -> None:
    """And not beside the same questions in a form."""
    plan = load_plan(FOLDER / "c2.yaml")
    report, _ = make_report(plan, Store(str(tmp_path / "store")))
    figures = {c.variant: c.published for c in report.conditions}
    assert "4.68 %" in figures["insecure"]
    formed = plan.spec.evaluations[0].model_copy(update={"form": Form(system="Answer in JSON.")})
    spec = plan.spec.model_copy(update={"evaluations": (formed,)})
    other, _ = make_report(make_plan(spec, relative_to=FOLDER), Store(str(tmp_path / "store")))
    assert {c.published for c in other.conditions} == {NO_FIGURE}
