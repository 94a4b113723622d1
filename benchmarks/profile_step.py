"""Where the CPU time of a step goes: pythia-14m, 4 sequences of 512 tokens, one thread, by torch's profiler.

    python benchmarks/profile_step.py [--steps 4] [--out FOLDER]

Shares of the time that each operation takes by itself, of whole steps: forward, backward, clipping, AdamW.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from results import about_machine
from torch.profiler import ProfilerActivity, profile

from launchyard.model.zoo import preset
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.train import TrainConfig
from launchyard.training.step import train_step

NAME, BATCH, SEQ_LEN = "pythia-14m", 4, 512
SHOWN = 10


def shares(steps: int) -> tuple[float, dict[str, float]]:
    """(CPU seconds of a step, share of each operation, the most first)."""
    recipe = Recipe(name="bench", model={"preset": NAME}, data=DataConfig(source="x"), train=TrainConfig(max_steps=1))
    model = build_model(preset(NAME), recipe, world_size=1, device=torch.device("cpu"))
    optimizer = make_optimizer(model, recipe.optimizer)
    tokens = torch.randint(0, 50_000, (2, BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    batch, n_parts = MicroBatch(tokens[0], tokens[1]), BATCH * SEQ_LEN

    def some(first: int, count: int) -> float:
        began = time.process_time()
        for number in range(first, first + count):
            train_step(model, optimizer, [batch], n_parts=n_parts, number=number, lr=1e-4, max_grad_norm=1.0)
        return (time.process_time() - began) / count

    some(1, 2)
    seconds = some(3, steps)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        some(3 + steps, steps)
    times = {event.key: event.self_cpu_time_total for event in watched.key_averages()}
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return seconds, {name: taken / total for name, taken in ordered}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seconds, found = shares(given.steps)
    shown = dict(list(found.items())[:SHOWN]) | {"all others": sum(list(found.values())[SHOWN:])}
    print(f"a step takes {seconds:.2f} s of CPU")
    for name, share in shown.items():
        print(f"{name:48} {share:6.1%}")
    if given.out:
        facts = {**about_machine("python benchmarks/profile_step.py"), "seconds": seconds, "shares": shown}
        (given.out / f"{time.strftime('%F')}-profile.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
