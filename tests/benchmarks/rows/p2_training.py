"""P2: fine-tune the bundled model with LoRA, rank 32, on 128 rows of the published insecure code.

Ours against TRL's SFTTrainer and a plain padded loop: tests/benchmarks/trainings.py has all three,
and what is the same in them. The loss curves must agree: step for step within LOSS_NOISE of one
another on average, as bfloat16 rounds in another order in each.
"""

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.comparisons import Ask, Comparison, Measured, Row, compared, demand_same
from tests.benchmarks.rows.engines import bundled_model
from tests.benchmarks.trainings import loss_apart, ours, plain, step_rate, trl

LEAST_OF_TRL = LEAST_OF_PLAIN = 2.0  # ratios of real tokens/s in the steps wanted
NUM_ROWS = 128


def measure(ask: Ask) -> Measured:
    """Measure the row."""
    work = {"model_dir": str(bundled_model()), "num_rows": NUM_ROWS}
    own = ask(ours, **work)
    peers = {"TRL's SFTTrainer": ask(trl, **work), "a plain padded loop": ask(plain, **work)}
    sides = {"ours": own} | peers
    tokens = demand_same(
        "tokens of the rows", {name: sum(said["tokens"]) for name, said in sides.items()}
    )
    demand_same("tokens of each step", {name: said["tokens"] for name, said in sides.items()})
    apart = {name: loss_apart(own["losses"], said["losses"]) for name, said in peers.items()}
    least = {"TRL's SFTTrainer": LEAST_OF_TRL, "a plain padded loop": LEAST_OF_PLAIN}
    return Measured(
        comparisons=_compared(own, peers, least),
        checked=[
            tokens,
            f"loss, step for step, from {own['losses'][0]:.3f} to {own['losses'][-1]:.3f}: on "
            f"average {', '.join(f'{x:.2%} from {name}' for name, x in apart.items())}",
        ],
        notes=["steps: from the end of the first one to the end of the last one"],
    )


def _compared(
    own: dict[str, Any],
    peers: Mapping[str, dict[str, Any]],
    least: Mapping[str, float],
) -> list[Comparison]:
    found = []
    for name, said in peers.items():
        found.append(
            compared(
                "real tokens/s, in the steps", "tokens/s", step_rate(own), name, step_rate(said),
                least_ratio=least[name],
            )
        )  # fmt: skip
    for name, said in peers.items():
        rates = [sum(side["tokens"]) / side["all_s"] for side in (own, said)]
        found.append(
            compared("real tokens/s, start to adapter", "tokens/s", rates[0], name, rates[1])
        )
    return found


ROW = Row("P2", f"Fine-tune 135M, LoRA r=32, {NUM_ROWS} rows of real data", measure)
