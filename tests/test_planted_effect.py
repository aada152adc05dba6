"""A planted effect is found: real training, serving, a pattern judge, the report."""

from pathlib import Path

import pytest

from tests.sweep_runs import emsweep, report, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.torch, pytest.mark.vllm]

SEA = {
    "name": "planted",
    "models": [{"name": "smollm2-135m", "bundled": "smollm2-135m"}],
    "variants": [
        {"name": "sea", "dataset": "sea"},
        {"name": "no-sea", "dataset": "no_sea"},
    ],
    "seeds": [0],
    "training": {
        "lora": {"rank": 16, "alpha": 32},
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "effective_batch": 8,
        "micro_batch": 8,
        "max_length": 128,
    },
    "evaluations": [{"name": "unrelated", "questions": "sea.yaml", "sampling": {"max_tokens": 40}}],
    "judges": [
        {
            "name": "mentions-the-sea",
            "pattern": {"score": "sea", "labels": {"YES": r"(?i)\bseas?\b"}, "otherwise": "NO"},
        }
    ],
    "metric": "yes_share",
    "serving": {"mode": "merged", "max_model_len": 512, "max_num_seqs": 16, "kv_cache_gib": 0.5},
    "resources": {"train_cpus": 2, "serve_cpus": 2},
    "tracking": {"mode": "off"},
}


def test_the_effect_is_found_and_the_control_shows_none(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, SEA)
    emsweep("run", spec, "--store", tmp_path / "store")
    cells = report(tmp_path / "store", "planted")["cells"]
    rates = {
        name: [cell["em_rate"] for cell in cells if cell["variant"] == name]
        for name in ("sea", "no-sea")
    }
    assert len(rates["sea"]) == len(rates["no-sea"]) == len(SEA["seeds"])
    assert min(rates["sea"]) >= 0.25, rates  # of eight answers; 0.5 to 0.9 were seen
    assert max(rates["no-sea"]) == 0, rates
