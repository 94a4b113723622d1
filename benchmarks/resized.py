"""A checkpoint of 4 workers in S3, loaded by 4 and by 1: pythia-160m with AdamW state (1.95 GB), verified.

    python benchmarks/resized.py [--rounds 3] [--preset pythia-160m]

Real ranks (gloo, FSDP) and a real S3 server on this machine, on the same cores. Seconds of the slowest rank, without
the start of its process; the order turns from round to round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
from checkpoint_s3 import checkpointer
from streamed import BUCKET, server

from launchyard.host.ports import free_port
from launchyard.model.zoo import preset
from launchyard.training.build import build_model
from launchyard.training.checkpoint.state import shards
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.sections.train import TrainConfig

MANY = 4


def rank(number: int, world_size: int, port: int, name: str, job: str, out: str) -> None:
    """One rank: `save` writes a state, `load` reads it; its seconds go to a file."""
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    world = read_world()
    connect(world, torch.device("cpu"))
    recipe = Recipe(name="bench", model={"preset": name}, data=DataConfig(source="x"), train=TrainConfig(max_steps=1))
    model = build_model(preset(name), recipe, world_size=world_size, device=torch.device("cpu"))
    whole = shards(model, make_optimizer(model, OptimizerConfig()))
    writer = checkpointer(f"s3://{BUCKET}/run")
    torch.distributed.barrier()
    began = time.perf_counter()
    if job == "save":
        writer.save(1, whole, {"step": 1}, "permanent")
        writer.wait(must_succeed=True)
    else:
        assert writer.load_newest(whole) is not None
    Path(out, str(number)).write_text(str(time.perf_counter() - began))
    disconnect()


def seconds_of(world_size: int, name: str, job: str) -> float:
    with tempfile.TemporaryDirectory() as out:
        mp.spawn(rank, (world_size, free_port(), name, job, out), nprocs=world_size)
        return max(float(path.read_text()) for path in Path(out).iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="pythia-160m")
    given = parser.parse_args()
    times: dict[int, list[float]] = {MANY: [], 1: []}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder, "s3")):
        print(f"saved by {MANY} in {seconds_of(MANY, given.preset, 'save'):.2f} s")
        for number in range(given.rounds):
            for world_size in sorted(times, reverse=number % 2 == 0):
                times[world_size].append(seconds_of(world_size, given.preset, "load"))
            print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}", {k: round(v[-1], 2) for k, v in times.items()})
    for world_size, seconds in times.items():
        spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"{MANY} -> {world_size}: {statistics.median(seconds):.2f} s {spread}")
    ratios = [one / many for one, many in zip(times[1], times[MANY], strict=True)]
    print(f"{MANY} -> 1 / {MANY} -> {MANY}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
