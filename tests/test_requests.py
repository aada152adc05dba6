"""What may be asked of an engine."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines import ask, engine_config

ROOT = Path(__file__).parent.parent


def test_the_types_import_nothing_heavy() -> None:
    code = (
        "import sys, cluster.engine, cluster.serving; "
        "print([m for m in ('torch', 'vllm', 'ray', 'transformers', 'em') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"seed": -1},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"logprob_ids": tuple(range(129))},
    ],
)
def test_a_request_out_of_range_is_refused_with_what_is_allowed(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}: got .*, allowed: "):
        ask("hello", **change)


def test_a_lora_rank_that_vllm_does_not_know_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="max_lora_rank: got 24, allowed: one of 1, 8, 16, 32"):
        engine_config(Path("model"), max_lora_rank=24)
