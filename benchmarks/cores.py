"""The cores of a CPU as workers or as threads: one worker with N threads beside N workers with one, in turn.

    python benchmarks/cores.py [--cores 2] [--rounds 3] [--steps 2] [--preset pythia-14m] [--precision fp32]

Steps of 8 sequences of 512 tokens, in micro batches of 4 at most: forward, backward, reduction, clipping, AdamW. CPU
seconds for 1,000 tokens by the kernel's account, which other work on the machine moves little: of all threads of all
workers, and of the busiest thread, the least that idle cores would take. Wall seconds beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from results import tell

from launchyard.host.ports import free_port
from launchyard.launcher.plan.planner import CPU_ENVIRONMENT, WORKER_ENVIRONMENT
from launchyard.model.zoo import preset
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.step import train_step

SEQUENCES, MICRO_BATCH, SEQ_LEN = 8, 4, 512
Figures = dict[str, float]


def thread_seconds() -> list[float]:
    """CPU seconds of each thread of this process."""
    found = []
    for file in Path("/proc/self/task").glob("*/schedstat"):
        found.append(int(file.read_text().split()[0]) / 1e9)
    return sorted(found, reverse=True)


def as_worker(name: str, steps: int, precision: str, *, pinned: bool) -> Figures:
    world = read_world()
    if pinned:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[world.rank]})
    connect(world, torch.device("cpu"))
    train = {"max_steps": 1, "precision": precision}
    recipe = Recipe.model_validate({"name": "b", "model": {"preset": name}, "data": {"source": "x"}, "train": train})
    model = build_model(preset(name), recipe, world_size=world.world_size, device=torch.device("cpu"))
    optimizer = make_optimizer(model, recipe.optimizer)
    mine = SEQUENCES // world.world_size
    tokens = torch.randint(0, 50_000, (2, mine, SEQ_LEN), generator=torch.Generator().manual_seed(world.rank))
    parts = [MicroBatch(*one) for one in zip(*(side.split(MICRO_BATCH) for side in tokens), strict=True)]
    n_parts = SEQUENCES * SEQ_LEN

    def some(first: int, count: int) -> None:
        for number in range(first, first + count):
            train_step(model, optimizer, parts, n_parts=n_parts, number=number, lr=1e-4, max_grad_norm=1.0)

    some(1, 1)
    before, cpu, wall = thread_seconds(), time.process_time(), time.perf_counter()
    some(2, steps)
    thousands = steps * n_parts / 1000
    busiest = thread_seconds()[0] - before[0]
    found = {"cpu": time.process_time() - cpu, "busiest": busiest, "wall": time.perf_counter() - wall}
    disconnect()
    return {name: seconds / thousands for name, seconds in found.items()}


def side(workers: int, threads: int, given: argparse.Namespace, *, pinned: bool = False) -> Figures:
    env = {**os.environ, **WORKER_ENVIRONMENT, **CPU_ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    env |= {"WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    argv = [sys.executable, __file__, "--as-worker", "--steps", str(given.steps), "--preset", given.preset]
    argv += ["--precision", given.precision, *(["--pinned"] if pinned else [])]
    started = [
        subprocess.Popen(argv, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(workers)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{workers} workers × {threads} threads failed; see above")
    found = [dict(json.loads(output.splitlines()[-1])) for output in outputs]
    worst = {name: max(one[name] for one in found) for name in ("busiest", "wall")}
    return {"cpu": sum(one["cpu"] for one in found), **worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--preset", default="pythia-14m")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pin", action="store_true", help="also the workers with one thread bound to a core each")
    parser.add_argument("--pinned", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_worker:
        print(json.dumps(as_worker(given.preset, given.steps, given.precision, pinned=given.pinned)))
        return
    sides = [(1, 1, False), (1, given.cores, False), (given.cores, 1, False)]
    if given.pin:
        sides.append((given.cores, 1, True))
    times: dict[str, list[float]] = {}
    for number in range(given.rounds):
        for workers, threads, pinned in sides:
            what = f"{workers} × {threads}{' pinned' * pinned}"
            for name, seconds in side(workers, threads, given, pinned=pinned).items():
                times.setdefault(f"{what}, {name} s", []).append(seconds)
        sides.reverse()
        print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}", {k: round(v[-1], 3) for k, v in times.items()})
    for name, seconds in times.items():
        print(f"{name:26} {statistics.median(seconds):6.3f}  ({min(seconds):.3f} to {max(seconds):.3f})")
    tell(times)


if __name__ == "__main__":
    main()
