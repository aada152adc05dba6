"""Training on one GPU, at the sizes that are studied: against the same peers, and the card itself.

    python -m tests.benchmarks.gpu_training [MODEL ...]

prints a table and writes what each side said. Models have the shapes of configs/models/known.yaml
and random weights, which bear on neither speed nor memory; they are written once and then read by
each side, in a process of its own (tests/benchmarks/trainings.py). Needs one GPU and the extra
`bench`, reads the published insecure code where EMSWEEP_DATA says.

Arithmetic counted, a token of a row (never padding): 4 for each weight of the layers, as a frozen
weight is multiplied by once forward and once backward and needs no gradient; 6 for each of the
adapter; 12 for each of queries' width and place looked back on; 4 for each weight of the output
layer, at trained tokens only. What is computed again, or for padding, or at other tokens, counts as
nothing. Knows nothing of the table of `make bench`, which is of machines without a GPU.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em.footprint import training_footprint
from em.model_shape import ModelShape, known_models, shape_from_config
from tests.benchmarks.comparisons import NotTheSame, demand_same
from tests.benchmarks.parts import Parts
from tests.benchmarks.trainings import (
    CONFIG,
    loss_apart,
    ours,
    plain,
    rendered_steps,
    step_rate,
    trl,
)

MODELS = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
SIDES = {"em-sweeps": ours, "TRL's SFTTrainer": trl, "a plain padded loop": plain}
NUM_ROWS = 512
PRODUCT = 8192  # rows and columns of the matrices that show what the card reaches
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
GIB = 2**30


def make_model(folder: str, model: str, tokenizer: str, into: str) -> dict[str, Any]:
    """Write a model of the shape of `model` with random weights, and the tokenizer beside it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = dict(known_models()[model].config)
    config = AutoConfig.for_model(**given)
    torch.manual_seed(0)
    with torch.device("cuda"):
        net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    net.save_pretrained(into)
    for name in TOKENIZER:
        shutil.copy(Path(tokenizer) / name, into)
    return {"parameters": sum(p.numel() for p in net.parameters())}


def card(folder: str) -> dict[str, Any]:
    """Return the card's name, and the arithmetic that it reaches in products of bfloat16."""
    import torch

    left, right = (torch.randn(PRODUCT, PRODUCT, device="cuda").bfloat16() for _ in range(2))
    for _ in range(5):
        left @ right
    torch.cuda.synchronize()
    began, times = time.monotonic(), 50
    for _ in range(times):
        left @ right
    torch.cuda.synchronize()
    rate = times * 2 * PRODUCT**3 / (time.monotonic() - began)
    return {"name": torch.cuda.get_device_name(0), "flop_s": rate, "torch": torch.__version__}


def work_of_steps(folder: str, model: str, model_dir: str) -> dict[str, Any]:
    """Return the arithmetic of all steps but the first, and their rows and tokens."""
    from em.base_model import load_tokenizer

    shape = shape_from_config(known_models()[model].config, model)
    steps = rendered_steps(load_tokenizer(Path(model_dir), trust=False), NUM_ROWS)[1:]
    rows = [row for step in steps for row in step]
    return {
        "flop": sum(flop(shape, len(row.input_ids), row.num_targets) for row in rows),
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in rows),
    }


def flop(shape: ModelShape, num_tokens: int, num_targets: int) -> float:
    """Return what training on one row takes, forward and backward; see this module's docstring."""
    layer = sum(into * out for into, out in shape.linears.values())
    adapter = shape.lora_parameters(CONFIG.lora.target_modules, CONFIG.lora.rank)
    weights = 4 * shape.num_layers * layer + 6 * adapter
    looked_back = num_tokens / 2
    attention = 12 * shape.num_layers * shape.num_heads * shape.head_dim * looked_back
    head = 4 * shape.hidden_size * shape.vocab_size * num_targets
    return float(num_tokens * (weights + attention) + head)


def measured(model: str, tokenizer: str, parts: Parts, folder: Path) -> dict[str, Any]:
    """Return what each side said of one model, and the arithmetic of its steps."""
    into = str(folder / "model")
    shutil.rmtree(into, ignore_errors=True)
    made = parts(make_model, model=model, tokenizer=tokenizer, into=into)
    work = parts(work_of_steps, model=model, model_dir=into)
    given = {"model_dir": into, "num_rows": NUM_ROWS}
    said = {name: parts(side, **given) for name, side in SIDES.items()}
    parts.forget()  # the next model is written to the same place
    demand_same("tokens of each step", {name: one["tokens"] for name, one in said.items()})
    return {"model": model, **made, "work": work, "sides": said}


def lines(found: dict[str, Any], of_card: dict[str, Any]) -> list[str]:
    """Return the table of one model."""
    work, sides = found["work"], found["sides"]
    shape = shape_from_config(known_models()[found["model"]].config, found["model"])
    told = [
        f"{found['model']}: {found['parameters'] / 1e9:.2f}e9 parameters, {work['rows']} rows of "
        f"{work['tokens'] / work['rows']:.0f} tokens, {work['flop'] / 1e15:.2f}e15 FLOP"
    ]
    own = step_rate(sides["em-sweeps"])
    for name, said in sides.items():
        rate = step_rate(said)
        reached = work["flop"] / work["tokens"] * rate
        try:
            apart = f"{loss_apart(sides['em-sweeps']['losses'], said['losses']):.2%} apart"
        except NotTheSame as error:
            apart = f"NOT THE SAME WORK: {error}"
        told.append(
            f"  {name:20} {rate:9,.0f} tokens/s {own / rate:6.2f} x {reached / 1e12:6.0f} TFLOP/s "
            f"{reached / of_card['flop_s']:6.1%} {said['peak_bytes'] / GIB:6.1f} GiB "
            f"{said['all_s']:6.0f} s  loss {said['losses'][0]:.2f} to {said['losses'][-1]:.2f}, "
            f"{apart}"
        )
    expected = training_footprint(shape, CONFIG).total / GIB
    told.append(f"  em.footprint expects {expected:.1f} GiB, every row being as long as allowed")
    return told


def main(arguments: Sequence[str]) -> int:
    """Measure the models asked for; print, and write what each side said beside the table."""
    parser = argparse.ArgumentParser(prog="gpu_training", description="Training on one GPU.")
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--tokenizer", help="a folder with one; the bundled model's")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args(arguments)
    tokenizer = given.tokenizer
    if tokenizer is None:
        from tests.benchmarks.rows.engines import bundled_model

        tokenizer = str(bundled_model())
    with tempfile.TemporaryDirectory(prefix="emsweep-gpu-") as temporary:
        folder = Path(temporary)
        parts = Parts(folder)
        of_card = parts(card)
        print(
            f"{of_card['name']}, torch {of_card['torch']}, {time.strftime('%Y-%m-%d')}; "
            f"products of {PRODUCT} x {PRODUCT} in bfloat16: "
            f"{of_card['flop_s'] / 1e12:.0f} TFLOP/s",
            flush=True,
        )
        results: dict[str, Any] = {"card": of_card, "models": []}
        for model in given.models:
            found = measured(model, tokenizer, parts, folder)
            results["models"].append(found)
            given.out.write_text(json.dumps(results, indent=1) + "\n")
            print("\n".join(lines(found, of_card)), flush=True)
    return 0


if __name__ == "__main__":
    # Parts are found by their module's name, which is not __main__ in their own processes.
    from tests.benchmarks import gpu_training

    sys.exit(gpu_training.main(sys.argv[1:]))
