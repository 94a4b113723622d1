"""How long a copy of the state into the agent's memory holds up a step, and what `auto` makes of that.

`python benchmarks/snapshots.py [--megabytes 512] [--step-seconds 0.5]`. A state of so many bytes in tensors of 16 MB,
two slots as an agent has them; steps are told, not made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from launchyard.host.environment import SLOTS
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.training.checkpoint.save_timer import COST_SHARE, LEAST_PAUSE
from launchyard.training.checkpoint.snapshots import Snapshots, Told, open_slots
from launchyard.training.checkpoint.state import Shard

TENSOR_MEGABYTES = 16
COPIES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--step-seconds", type=float, default=0.5)
    options = parser.parse_args()
    size = TENSOR_MEGABYTES << 18
    tensors = {f"t{n}": torch.rand(size) for n in range(max(1, options.megabytes // TENSOR_MEGABYTES))}
    held = {key: Shard(tuple(tensor.shape), (0,), tensor, writes=True) for key, tensor in tensors.items()}
    memory = AgentMemory()
    paths = memory.begin(1)[SLOTS].split()
    taken = Snapshots(open_slots(paths), {}, 0, held, print)
    began = time.perf_counter()
    taken.allocate_aside()
    taken.settle(others=False)
    allocated = time.perf_counter() - began
    stalls, seals = [], []
    for step in range(1, COPIES + 1):
        began = time.perf_counter()
        taken.copy(held, Told(step, {}), save=False, saving=False)
        copied = time.perf_counter()
        taken.settle(others=False)
        stalls.append(copied - began)
        seals.append(time.perf_counter() - copied)
    stall = statistics.median(stalls)
    pause = max(LEAST_PAUSE, stall / COST_SHARE)
    again = Snapshots(open_slots(paths), {}, 1, held, print)
    began = time.perf_counter()
    fault = again.fault(COPIES)
    again.load(COPIES, held)
    print(
        json.dumps(
            {
                "bytes": taken.bytes,
                "allocate_seconds_aside": round(allocated, 3),
                "stall_seconds": round(stall, 4),
                "bytes_per_second": round(taken.bytes / stall),
                "seal_seconds_aside": round(statistics.median(seals), 4),
                "steps_between": max(1, round(pause / options.step_seconds)),
                "share_of_time": round(stall / max(pause, options.step_seconds), 5),
                "restore_seconds": round(time.perf_counter() - began, 3),
                "fault": fault,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
